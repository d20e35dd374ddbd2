"""Whatever id is accepted, every reader of the path must see the same one; readers are simulated here."""

from __future__ import annotations

import itertools
import posixpath
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.identity import Places, Unidentified, identify, is_nameable, is_prefix
from tests.plugins.authorizer import rows

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES = Places()

_STEPS: tuple[Callable[[str], str], ...] = (
    lambda path: unquote(path, errors="surrogateescape"),
    lambda path: path.replace("\\", "/"),
    lambda path: re.sub(r"/+", "/", path),
    lambda path: re.sub(r";[^/]*", "", path),
    lambda path: re.sub(r"[\x00-\x20]+(?=/|$)", "", path),
    lambda path: re.sub(r"^//[^/]*", "", path),
    lambda path: posixpath.normpath(path) if path else path,
    lambda path: path.partition("?")[0].partition("#")[0],
)
"""What proxies, routers and servers do to a path, in any order and more than once."""


def readings(path: str) -> set[str]:
    """Return every path that some reader may see; all agree that a query begins at a question mark."""
    path = path.partition("?")[0]
    seen, waiting = {path}, [path]
    for _ in range(4):  # each step may be done again on what another one has made
        waiting = [step(each) for each in waiting for step in _STEPS]
        waiting = [each for each in set(waiting) if each not in seen]
        seen.update(waiting)
    return seen


def seen_in(path: str) -> str | None:
    """Return the id that a reader takes from the path, who does not care for case in what routes."""
    match = re.match(r"/v1/([^/?#]+)", path, re.IGNORECASE)
    return None if match is None else match[1]


_PARTS = st.sampled_from(
    (
        *("/", "//", "/v1/", "/V1/", "v1", "app", "other", ".", "..", ";", ";x=1", "\\", "?", "#", "%", "*"),
        *(
            "%2f",
            "%2F",
            "%5c",
            "%2e",
            "%2E%2e",
            "%252e",
            "%25",
            "%76",
            "%31",
            "%00",
            "%20",
            "%c0%ae",
            "%3b",
            "%3f",
        ),
        *("a", "2e", " ", "é"),
    )
)


@settings(max_examples=2000, deadline=None)
@given(st.lists(_PARTS, max_size=9).map("".join), st.sampled_from((None, "app", "other")))
def test_no_reader_sees_another_endpoint(tail: str, header: str | None) -> None:
    for path in (tail, f"/v1/app{tail}", f"/{tail}"):
        found = identify(path, [] if header is None else [header], PLACES)
        if isinstance(found, Unidentified):
            continue
        others = {seen_in(each) for each in readings(path)} - {None, found}
        assert not others, (path, found)


def test_simulated_readers_are_misled_by_what_is_refused() -> None:
    """The simulation is worth something: without the rules the table's paths reach other endpoints."""
    misled = {
        row.what
        for row in rows()
        if row.code == 400 and len({seen_in(each) for each in readings(row.path)} - {None}) > 1
    }
    assert len(misled) >= 15, misled


@pytest.mark.parametrize(
    ("places", "path", "named", "found"),
    [
        (Places(header=None), "/", ["app"], Unidentified.MISSING),
        (Places(header=None), "/v1/app", ["other"], "app"),
        (Places(prefix=None), "/v1/other/../x", ["app"], "app"),
        (Places(prefix=None), "/v1/app", [], Unidentified.MISSING),
        (Places(prefix="/"), "/app/x", [], "app"),
        (Places(prefix="/"), "/", [], Unidentified.MISSING),
        (Places(prefix="/"), "//app", [], Unidentified.UNCLEAR),
        (Places(prefix="/a/b/"), "/a/b/app", [], "app"),
        (Places(prefix="/a/b/"), "/a/app", ["app"], "app"),
        (Places(prefix="/a/b/"), "/a//b/app", ["x"], Unidentified.UNCLEAR),
        (Places(prefix="/a/b/"), "/A/b;x/other", ["app"], Unidentified.UNCLEAR),
    ],
)
def test_settings(places: Places, path: str, named: list[str], found: object) -> None:
    assert identify(path, named, places) == found


def test_a_long_path_that_is_encoded_without_end_is_refused_at_once() -> None:
    assert identify("/v1/app/%" + "25" * 30_000 + "2e", [], PLACES) is Unidentified.UNCLEAR


@pytest.mark.parametrize(
    "part", [";", "%20", "/", "/;", ";x", "a;", "/.", "%2f", "%", "%25", "..", "\\", "/%20"]
)
@pytest.mark.parametrize("head", ["/", "/v1/", "/v1/app/", "/V1", "/v2/"])
def test_no_path_takes_more_than_a_pass_or_two(head: str, part: str) -> None:
    """Envoy lets 60 kB through. With a rule that looks at each rest of a path anew, that is a minute."""
    began = time.process_time()
    identify(head + part * (60_000 // len(part)), [], PLACES)
    assert time.process_time() - began < 1


def test_what_is_nameable() -> None:
    for character in map(chr, itertools.chain(range(256), (0x130, 0x212A, 0xFF0E))):
        unreserved = character.isascii() and (character.isalnum() or character in "-._~")
        assert is_nameable(f"a{character}") == unreserved, character
    assert not is_nameable("app\n")
    assert is_nameable("a" * 255)


def test_prefixes() -> None:
    assert all(is_prefix(each) for each in ("/", "/v1/", "/a/b.c/"))
    assert not any(
        is_prefix(each) for each in ("", "v1/", "/v1", "//", "/a//b/", "/../", "/%76/", "/a b/", "/a/./")
    )
