"""Certificates, keys and tokens on the disk: what is taken, and what people read when it is not."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cdc.errors import ConfigurationError
from server.security import auth_tokens, certificates
from server.security.reloaded import Reloaded, read_file
from tests.support.certificates import Authority, write_secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The same in every process: they are part of the tests' names.
A, B = "0123456789abcdef" * 2, "Az09_-xy" * 5


def refusal(function: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        function()
    # A chained error would show what it has read in a traceback.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_tokens_are_found_by_the_whole_token_only() -> None:
    tokens = auth_tokens.parse(f"# who\n\n  gateway-1: {A} \r\ngateway-2:{B}\ngateway-1:{B[::-1]}".encode())
    assert len(tokens) == 3
    for name, token in (("gateway-1", A), ("gateway-2", B), ("gateway-1", B[::-1])):
        found = tokens.find(token)
        assert found is not None
        assert found.name == name
        assert found in tokens
        assert token not in repr(found)
    for wrong in ("", A[:-1], f"{A}0", A.upper(), f" {A}", "gateway-1", f"gateway-1:{A}", "\udc80", "é"):
        assert tokens.find(wrong) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (A, "line 2 is not name:token"),
        (f":{A}", "line 2 is not name:token"),
        (f"two words:{A}", "line 2 is not name:token"),
        (f"{'n' * 65}:{A}", "line 2 is not name:token"),
        (f"name:{A[:-1]}", "line 2: the token has fewer than 32"),
        ("name:", "line 2: the token has fewer than 32"),
        (f"name:{A} {B}", "line 2: the token is not"),
        (f"name:Bearer {B}", "line 2: the token is not"),
        (f"name:{'é' * 32}", "line 2: the token is not"),
        (f"name:{'x' * 513}", "line 2: the token is not"),
        (f"other:{B}\n#\nagain:{B}", "line 4: the token is in the file twice"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_never_quoted(line: str, said: str) -> None:
    text = refusal(lambda: auth_tokens.parse(f"# comment\n{line}\n".encode()))
    assert text.startswith(f"AUTH_TOKENS_FILE: {said}")
    assert A not in text
    assert A[:-1] not in text
    assert B not in text


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# all are gone\n", b"\xef\xbb\xbf"])
def test_no_token_at_all_is_refused(content: bytes) -> None:
    assert "AUTH_TOKENS_FILE" in refusal(lambda: auth_tokens.parse(content))


def test_a_certificate_is_judged_before_it_is_served() -> None:
    authority = Authority()
    good, other = authority.issue("a"), authority.issue("b")
    hour = timedelta(hours=1)
    late, early = authority.issue("late", ends=-hour), authority.issue("early", begins=hour)
    locked = authority.issue("locked", passphrase=b"open sesame")
    chain = good.certificate + authority.certificate

    assert certificates.judge((chain, good.key)).expires == good.expires
    assert certificates.judge((chain, good.key, authority.certificate)).expires == good.expires
    assert good.key.decode() not in repr(certificates.judge((chain, good.key)))
    for contents, said in (
        ((b"", good.key), "TLS_CERT_FILE: the file's content is not"),
        ((good.key, good.key), "TLS_CERT_FILE: the file's content is not"),
        ((good.certificate[:-40], good.key), "TLS_CERT_FILE: the file's content is not"),
        ((chain[:-40], good.key), "TLS_CERT_FILE: the file's content is not"),
        ((good.certificate, b""), "TLS_KEY_FILE: the file's content is not"),
        ((good.certificate, good.certificate), "TLS_KEY_FILE: the file's content is not"),
        ((good.certificate, good.key[:-40]), "TLS_KEY_FILE: the file's content is not"),
        ((good.certificate, other.key), "TLS_KEY_FILE: is not the key"),
        ((authority.certificate + good.certificate, good.key), "TLS_KEY_FILE: is not the key"),
        ((locked.certificate, locked.key), "TLS_KEY_FILE: the key is encrypted"),
        ((late.certificate, late.key), "TLS_CERT_FILE: the certificate expired at 20"),
        ((early.certificate, early.key), "TLS_CERT_FILE: the certificate begins at 20"),
        ((good.certificate, good.key, b""), "TLS_CLIENT_CA_FILE: the file's content is not"),
        ((good.certificate, good.key, good.key), "TLS_CLIENT_CA_FILE: the file's content is not"),
    ):
        text = refusal(lambda contents=contents: certificates.judge(contents))  # type: ignore[misc] # of this turn
        assert text.startswith(said)
        assert not any(secret in text for pair in (good, other, locked) for secret in pair.secrets())


def test_a_certificate_that_is_served_ends_one_day() -> None:
    pair = Authority().issue("a")
    served = certificates.judge((pair.certificate, pair.key))
    assert served.lapsed(time.time()) is None
    assert "expired at" in (served.lapsed(pair.expires + 1) or "")


def test_files_are_refused_that_cannot_be_read_or_are_open_to_all(tmp_path: Path) -> None:
    file = write_secret(tmp_path / "tokens", "x")
    assert read_file("S", file, secret=True) == b"x"
    file.chmod(0o640)
    assert read_file("S", file, secret=True) == b"x"
    for mode in (0o644, 0o602, 0o666):
        file.chmod(mode)
        assert read_file("S", file) == b"x"
        assert refusal(lambda: read_file("S", file, secret=True)).endswith(f"chmod o= {file}")
    assert "No such file" in refusal(lambda: read_file("S", tmp_path / "none"))
    assert "is not a file" in refusal(lambda: read_file("S", tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in refusal(lambda: read_file("S", tmp_path / "pipe", secret=True))
    file.write_bytes(bytes(1024 * 1024 + 1))
    assert "larger than 1 MiB" in refusal(lambda: read_file("S", file))


def test_what_is_on_the_disk_is_taken_once_it_lasts_and_is_good() -> None:
    disk: list[bytes | str] = [b"1"]

    def read() -> tuple[bytes, ...]:
        if isinstance(disk[0], str):
            raise ConfigurationError(disk[0])
        return (disk[0],)

    def judge(contents: tuple[bytes, ...]) -> int:
        if not contents[0].isdigit():
            raise ConfigurationError("is not a number")
        return int(contents[0])

    files = Reloaded(read, judge)

    def look(content: bytes | str) -> tuple[bool, int, str | None]:
        disk[0] = content
        return files.look(), files.value, files.fault

    assert look(b"1") == (False, 1, None)
    assert look(b"2") == (False, 1, None)
    assert look(b"23") == (False, 1, None)
    assert look(b"23") == (True, 23, None)
    assert look(b"23") == (False, 23, None)
    assert look(b"half") == (False, 23, None)
    assert look("gone") == (False, 23, None)
    assert look("gone") == (False, 23, "gone")
    assert look(b"half") == (False, 23, "gone")
    assert look(b"half") == (False, 23, "is not a number")
    assert look(b"23") == (False, 23, "is not a number")
    assert look(b"23") == (False, 23, None)
    disk[0] = "none"
    with pytest.raises(ConfigurationError):
        Reloaded(read, judge)
