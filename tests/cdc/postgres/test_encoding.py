"""Decoding agrees with Postgres' own conversion, in every encoding of a server, and loses nothing."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import Refusal
from cdc.postgres.encoding import Encoding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.postgres import Database

CLIENT_ONLY = {"SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"}
"""Encodings that no server can have, by the manual."""
REFUSED = {"EUC_TW", "MULE_INTERNAL"}
HIGH = range(0xA1, 0xFF)


def server_encodings(database: Database) -> dict[str, int]:
    """Return every encoding that a database can be in, with the bytes of its longest character."""
    rows = database.rows(
        "SELECT pg_encoding_to_char(number), pg_encoding_max_length(number)"
        " FROM generate_series(0, 100) number WHERE pg_encoding_to_char(number) <> ''"
    )
    return {name: longest for name, longest in rows if name not in CLIENT_ONLY}


def sequences(longest: int) -> Iterator[bytes]:
    """Yield what may be a character: each byte, and for encodings with longer characters all of those."""
    yield from (bytes([byte]) for byte in range(1, 256))
    if longest > 1:
        for lead in (b"", b"\x8f"):
            yield from (lead + bytes(pair) for pair in product(HIGH, HIGH))
        yield from (bytes([0x8E, byte]) for byte in HIGH)


def decoded(encoding: Encoding, raw: bytes) -> str | None:
    with suppress(UnicodeDecodeError):
        return encoding.text(raw)
    return None


@pytest.fixture
def converted(database: Database) -> Database:
    """A database that says what it converts bytes to, and NULL where there is no such character."""
    database.execute(
        "CREATE FUNCTION converted(raw BYTEA, encoding NAME) RETURNS BYTEA LANGUAGE plpgsql AS $$"
        " BEGIN RETURN convert(raw, encoding, 'UTF8'); EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$"
    )
    return database


def test_every_character_is_the_one_that_postgres_has(converted: Database) -> None:
    found = server_encodings(converted)
    assert len(found) >= 35
    for name, longest in found.items():
        if name in {*REFUSED, "SQL_ASCII", "UTF8"}:
            continue
        encoding = Encoding.named(name)
        everything = list(sequences(longest))
        rows = converted.rows("SELECT raw, converted(raw, %s) FROM unnest(%s) raw", (name, everything))
        for raw, utf8 in rows:
            ours, theirs = decoded(encoding, bytes(raw)), None if utf8 is None else bytes(utf8).decode()
            # Of rare characters in long encodings, one of the two knows more.
            if longest == 1 or (ours is not None and theirs is not None):
                assert ours == theirs, f"{name} {bytes(raw).hex()}"


def test_what_cannot_be_decoded_is_refused_by_its_name(database: Database) -> None:
    for name in server_encodings(database):
        if name in REFUSED:
            with pytest.raises(Refusal, match=f"the encoding {name}, .*UTF8"):
                Encoding.named(name)
        else:
            assert Encoding.named(name).name == name


@pytest.mark.parametrize(
    "name", ["UTF8", "SQL_ASCII", "LATIN1", "WIN1252", "WIN874", "KOI8U", "EUC_JP", "EUC_KR", "EUC_JIS_2004"]
)
@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from([b"\x8f", b"\xa2", b"\xb7", b"a", b"\xc3\xa9"])).map(b"".join)
)
def test_a_key_is_the_same_bytes_again_whatever_they_are(name: str, raw: bytes) -> None:
    encoding = Encoding.named(name)
    assert encoding.raw(encoding.key(raw)) == raw


@pytest.mark.parametrize("name", ["UTF8", "SQL_ASCII", "EUC_JP", "EUC_CN", "EUC_KR", "EUC_JIS_2004"])
def test_no_two_values_are_the_same_text(name: str) -> None:
    encoding, known = Encoding.named(name), dict[str, bytes]()
    for raw in sequences(3):
        assert known.setdefault(encoding.key(raw), raw) == raw


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_in_sql_ascii_text_is_utf8_where_it_can_be(text: str) -> None:
    assert Encoding.named("SQL_ASCII").text(text.encode()) == text


def test_a_key_that_the_encoding_does_not_have_is_nobodys() -> None:
    with pytest.raises(UnicodeEncodeError):
        Encoding.named("LATIN1").raw("ж")


def test_a_database_says_what_it_is_in(database: Database) -> None:
    assert Encoding.of(database.connect()).utf8
