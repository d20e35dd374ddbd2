"""Every recorded message, held against wal2json's of the same transaction; and every one that never comes."""

from __future__ import annotations

import string
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.changes import (
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    MessagePlace,
    Note,
    Truncate,
    Update,
    Value,
)
from cdc.errors import MessageError
from cdc.postgres.encoding import Encoding
from cdc.replication import pgoutput, wal2json
from tests.plugins.samples import PAIRS, SAMPLES, Pair, name_of

SECRET = "s3cr3t-api-key"
SHOWN = "pgoutput "


def decoded(*stream: bytes, decoder: pgoutput.PgoutputDecoder | None = None) -> list[Message]:
    """Return what a stream says from its beginning on."""
    decoder = decoder or pgoutput.PgoutputDecoder()
    return [message for raw in stream for message in decoder.decode(raw)]


def rows_of(label: str) -> list[Message]:
    """Return the messages of a recorded case that are about rows."""
    return [one for one in decoded(*PAIRS[label].pgoutput) if not isinstance(one, Begin | Commit)]


def columns(**values: str | float | None) -> tuple[Column, ...]:
    return tuple(Column(name, value) for name, value in values.items())


# --- messages as the protocol has them, for what nobody can record


def begin(xid: int = 7, commit: int = 0x10) -> bytes:
    return pack(">cQqI", b"B", commit, 0, xid)


def commit(end: int = 0x20) -> bytes:
    return pack(">cBQQq", b"C", 0, end - 0x10, end, 0)


def relation(
    oid: int, table: str, *names: str, keys: int = 1, types: int = 25, identity: bytes = b"d"
) -> bytes:
    described = b"".join(
        pack(">B", position < keys) + name.encode() + pack(">xIi", types, -1)
        for position, name in enumerate(names)
    )
    header = b"R" + pack(">I", oid) + b"public\0" + table.encode() + b"\0" + identity
    return header + pack(">H", len(names)) + described


def row(*values: str | bytes | None) -> bytes:
    """Write a tuple: text, NULL, or bytes as they are (``b"u"`` is a value that has not changed)."""
    written = (
        value if isinstance(value, bytes) else b"n" if value is None else text(value) for value in values
    )
    return pack(">H", len(values)) + b"".join(written)


def text(value: str, encoding: str = "utf-8") -> bytes:
    return pack(">cI", b"t", len(value.encode(encoding))) + value.encode(encoding)


def insert(oid: int, new: bytes) -> bytes:
    return b"I" + pack(">I", oid) + b"N" + new


def update(oid: int, new: bytes, old: bytes = b"") -> bytes:
    return b"U" + pack(">I", oid) + old + b"N" + new


def delete(oid: int, old: bytes) -> bytes:
    return b"D" + pack(">I", oid) + old


def truncate(*oids: int, options: int = 0) -> bytes:
    return b"T" + pack(f">IB{len(oids)}I", len(oids), options, *oids)


# --- recorded


def same(one: Value, other: Value) -> bool:
    """Tell whether wal2json's value and pgoutput's, which is text as a rule, are the same value."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and other is not None:
        return float(one) == float(other)
    if other in ("NaN", "Infinity", "-Infinity") and one is None:
        return True  # JSON has no such numbers
    # wal2json takes the \x from a bytea.
    return other in (one, f"\\x{one}")


def all_same(one: tuple[Column, ...], other: tuple[Column, ...]) -> bool:
    return [column.name for column in one] == [column.name for column in other] and all(
        same(left.value, right.value) for left, right in zip(one, other, strict=True)
    )


def with_rows(messages: list[Message]) -> list[Message]:
    """Leave out transactions that say nothing: pgoutput does not send them."""
    kept: list[Message] = []
    for message in messages:
        if isinstance(message, Commit) and kept and isinstance(kept[-1], Begin):
            kept.pop()
        else:
            kept.append(message)
    return kept


@pytest.mark.parametrize("pair", PAIRS.values(), ids=name_of)
def test_both_plugins_say_the_same(pair: Pair) -> None:
    ours = decoded(*pair.pgoutput)
    theirs = with_rows([wal2json.parse(raw) for raw in pair.wal2json])
    # wal2json names the partitioned table beside its partitions, which has no rows of its own.
    theirs = [one for one in theirs if one != Truncate("public", "pt")]
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    for one, other in zip(theirs, ours, strict=True):
        match one, other:
            case Begin(), Begin():
                assert one.xid == other.xid
                assert one.committed_at == pytest.approx(other.committed_at)
                assert other.end < one.end, "it lies within the record"
            case Commit(), Commit():
                assert one.end == other.end
                assert one.committed_at == pytest.approx(other.committed_at)
            case ((Insert() | Update() | Delete() | Truncate()), _):
                assert (one.schema, one.table) == (other.schema, other.table)  # type: ignore[union-attr]
                for field in ("columns", "identity"):
                    assert all_same(getattr(one, field, ()), getattr(other, field, ())), (one, other)
            case _:
                assert one == other == Note()


def test_every_case_of_wal2json_is_recorded() -> None:
    assert PAIRS.keys() >= SAMPLES.keys()
    kinds = {raw[:1] for pair in PAIRS.values() for raw in pair.pgoutput}
    assert kinds == {b"B", b"C", b"R", b"Y", b"I", b"U", b"D", b"T", b"O", b"M"}, "every kind of message"
    assert sum(len(decoded(*pair.pgoutput)) > 2 for pair in PAIRS.values()) > 90


def test_the_old_row_is_known_by_the_replica_identity() -> None:
    [moved] = rows_of("update default identity, PK column changed")
    assert isinstance(moved, Update)
    assert moved.columns[0] == Column("id", "100")
    assert moved.identity == columns(id="1")
    *_, renamed, deleted = rows_of("USING INDEX: insert/update non-key/update key/delete")
    assert isinstance(renamed, Update)
    assert (renamed.columns[1], renamed.identity) == (Column("k", "k2"), columns(k="k1"))
    assert deleted == Delete("public", "ui", columns(k="k2"))
    _, changed, _, _ = rows_of("FULL: insert/update/delete")
    assert isinstance(changed, Update)
    assert changed.identity == columns(id="1", a="a", n=None)


def test_unchanged_toasted_values_are_missing() -> None:
    [found] = rows_of("TOAST unchanged in update, default identity")
    assert isinstance(found, Update)
    assert [column.name for column in found.columns] == ["id", "x"]


def test_text_comes_as_it_was_written() -> None:
    [found] = rows_of("types: text with control characters and unicode")
    assert isinstance(found, Insert)
    [written] = [column.value for column in found.columns if column.name == "a"]
    assert isinstance(written, str)
    assert {"\t", "\n", "\r", "\b", "\f", "\u2028", "\x01"} <= set(written)


# --- relations


def test_a_table_s_columns_are_those_of_its_newest_description() -> None:
    """A column is renamed, one is dropped, and the identity becomes another one, while rows come."""
    stream = (
        relation(1, "t", "id", "key", "x"),
        insert(1, row("1", "a", "x")),
        relation(1, "t", "id", "renamed", "x"),
        insert(1, row("2", "b", "x")),
        relation(1, "t", "renamed", "id", keys=1),
        update(1, row("c", "2"), b"K" + row("b", None)),
    )
    first, second, third = decoded(*stream)
    assert first == Insert("public", "t", columns(id="1", key="a", x="x"))
    assert second == Insert("public", "t", columns(id="2", renamed="b", x="x"))
    assert third == Update("public", "t", columns(renamed="c", id="2"), columns(renamed="b"))


def test_a_table_that_is_made_anew_is_another_one() -> None:
    one, other = decoded(
        relation(1, "t", "id"), insert(1, row("1")), relation(2, "t", "key"), insert(2, row("2"))
    )
    assert one == Insert("public", "t", columns(id="1"))
    assert other == Insert("public", "t", columns(key="2"))


@pytest.mark.parametrize("raw", [insert(2, row("1")), delete(2, b"K" + row("1")), truncate(1, 2)])
def test_a_table_that_was_not_described_is_an_error(raw: bytes) -> None:
    with pytest.raises(MessageError) as refused:
        decoded(relation(1, "t", "id"), raw)
    assert refused.value.reason == "undecodable"


def test_rows_after_a_description_that_cannot_be_read_are_not_read_by_the_old_one() -> None:
    decoder = pgoutput.PgoutputDecoder()
    decoded(relation(1, "t", "id", "key"), decoder=decoder)
    with pytest.raises(MessageError):
        decoder.decode(relation(1, "t", "key", "id")[:-1])
    with pytest.raises(MessageError):
        decoder.decode(insert(1, row("1", "a")))


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2", "3")])
def test_a_row_has_as_many_columns_as_its_table(values: tuple[str, ...]) -> None:
    with pytest.raises(MessageError):
        decoded(relation(1, "t", "id", "key"), insert(1, row(*values)))


def test_pg_catalog_has_no_name() -> None:
    described = relation(1, "t", "id").replace(b"public", b"")
    assert decoded(described, insert(1, row("1"))) == [Insert("pg_catalog", "t", columns(id="1"))]


# --- values


def test_every_kind_of_value() -> None:
    described = relation(1, "t", "id", "key", "big")
    [found] = decoded(described, update(1, row("1", None, b"u")))
    assert found == Update("public", "t", columns(id="1", key=None), columns(id="1"))
    for kind in (b"b" + pack(">I", 1) + b"1", b"x"):  # binary was not asked for; nobody knows the other one
        with pytest.raises(MessageError):
            decoded(described, insert(1, row("1", None, kind)))


def test_a_null_in_an_old_key_is_no_value() -> None:
    """It stands for a column that is not in the key: a parent must not be taken for having been NULL."""
    described = relation(1, "t", "id", "key", keys=2)
    [found] = decoded(described, delete(1, b"K" + row("1", None)))
    assert found == Delete("public", "t", columns(id="1"))
    [found] = decoded(described, delete(1, b"O" + row("1", None)))
    assert found == Delete("public", "t", columns(id="1", key=None))


@pytest.mark.parametrize(
    ("type_oid", "written", "value"),
    [
        (16, "t", True),
        (16, "f", False),
        (1700, "1.50", "1.50"),
        (23, "5", "5"),
        (25, "t", "t"),
        (2950, "6f", "6f"),
    ],
)
def test_what_is_no_key_is_no_text(type_oid: int, written: str, value: Value) -> None:
    """So that it is refused as a key, as wal2json's are, in place of finding nothing."""
    stream = (relation(1, "t", "id", types=type_oid), insert(1, row(written)), insert(1, row(None)))
    assert decoded(*stream) == [
        Insert("public", "t", columns(id=value)),
        Insert("public", "t", columns(id=None)),
    ]


def test_values_in_the_encoding_of_the_database() -> None:
    described = relation(1, "t", "id")
    raw = insert(1, pack(">H", 1) + text("Größe", "latin-1"))
    assert decoded(described, raw, decoder=pgoutput.PgoutputDecoder(encoding=Encoding.named("LATIN1"))) == [
        Insert("public", "t", columns(id="Größe"))
    ]
    with pytest.raises(MessageError):
        decoded(described, raw)


@pytest.mark.parametrize("name", ["SQL_ASCII", "EUC_JP", "WIN1252"])
def test_a_key_that_is_no_text_is_its_bytes(name: str) -> None:
    """Such a row is odd, and no fault of the stream: it must not cost a read of everything."""
    encoding, key = Encoding.named(name), b"no \x81"
    raw = insert(1, pack(">HcI", 1, b"t", len(key)) + key)
    [row_of_key] = decoded(relation(1, "t", "id"), raw, decoder=pgoutput.PgoutputDecoder(encoding=encoding))
    assert isinstance(row_of_key, Insert)
    [column] = row_of_key.columns
    assert encoding.raw(str(column.value)) == key


def test_only_what_is_wanted_is_looked_at() -> None:
    """A value that is no text, in a column or a table that nobody reads, is nobody's trouble."""
    odd = pack(">cI", b"t", 1) + b"\xff"
    decoder = pgoutput.PgoutputDecoder({("public", "t"): {"key"}})
    stream = (
        relation(1, "t", "id", "key", "name", keys=2),
        relation(2, "other", "id"),
        insert(2, row(odd)),
        update(1, row("1", "a", odd), b"K" + row("2", "b", None)),
        truncate(1, 2),
        truncate(2),
    )
    assert decoded(*stream, decoder=decoder) == [
        Update("public", "t", columns(key="a"), columns(key="b")),
        Truncate("public", "t"),
    ]


def test_a_truncate_of_several_is_one_for_each() -> None:
    described = (relation(1, "t", "id"), relation(2, "u", "id"))
    for options in range(4):
        found = decoded(*described, truncate(1, 2, options=options))
        assert found == [Truncate("public", "t"), Truncate("public", "u")]


def test_the_name_of_a_publication_is_quoted() -> None:
    """Any text can be one. The plugin splits the list at commas and folds names that have no quotes."""
    asked = pgoutput.options('My, "own"')
    assert asked["publication_names"] == '"My, ""own"""'
    assert asked["proto_version"] == "1"
    assert "messages" not in asked


# --- what never comes


@pytest.mark.parametrize(
    "raw",
    [
        insert(1, row("1")).replace(b"N", b"X"),
        update(1, row("1")).replace(b"N", b"X"),
        update(1, row("1"), b"K" + row("2")).replace(b"N", b"X"),
        delete(1, b"X" + row("1")),
        delete(1, b"N" + row("1")),
        insert(1, row("2")).replace(b"N", b"K" + row("1") + b"N"),
    ],
)
def test_a_row_consists_of_the_parts_that_its_kind_has(raw: bytes) -> None:
    """A new row in an insert, an old one in a delete, both or only the new one in an update."""
    with pytest.raises(MessageError) as refused:
        decoded(relation(1, "t", "id"), raw)
    assert refused.value.reason == "undecodable"


@pytest.mark.parametrize("kind", b"SEcAbPKrpXbicu\x00\xff")
def test_an_unknown_kind_is_an_error_and_not_a_shrug(kind: int) -> None:
    """Those of streamed and prepared transactions too: neither was asked for."""
    with pytest.raises(MessageError) as refused:
        decoded(bytes([kind]) + SECRET.encode())
    assert refused.value.reason == "unknown_action"
    assert SECRET not in str(refused.value)


def test_where_messages_stand() -> None:
    place = pgoutput.PgoutputDecoder().place
    assert place(commit()) is MessagePlace.END
    assert {place(bytes([kind])) for kind in b"BIUDTRYO"} == {MessagePlace.WITHIN}
    assert {place(raw) for raw in (b"", b"M", b"X", b"\xff", b"S")} == {MessagePlace.ANYWHERE}


SECRETS = st.text(string.ascii_letters, min_size=12)
RECORDED = [(pair, number) for pair in PAIRS.values() for number in range(len(pair.pgoutput))]


def refusal(pair: Pair, number: int, raw: bytes) -> MessageError | None:
    """Return the error that a message in a recorded message's place is answered with; None if it is read."""
    decoder = pgoutput.PgoutputDecoder()
    for before in pair.pgoutput[:number]:
        decoder.decode(before)
    try:
        assert all(isinstance(message, Message) for message in decoder.decode(raw))
    except MessageError as error:
        return error
    return None


def test_a_message_that_is_cut_off_is_an_error_wherever_it_is() -> None:
    for pair, number in RECORDED:
        whole = pair.pgoutput[number]
        if whole[:1] in b"MYO":  # of which nothing is read
            continue
        for length in range(len(whole)):
            assert refusal(pair, number, whole[:length]), (pair.label, whole[:length])
        assert refusal(pair, number, whole + b"\0"), "too long is as bad"


@given(st.sampled_from(RECORDED), SECRETS, st.integers(0, 2000), st.integers(0, 30))
@example((PAIRS["types"], 2), SECRET, 10, 0)
def test_no_error_shows_what_came(which: tuple[Pair, int], secret: str, at: int, lost: int) -> None:
    """Recorded messages with a secret in a random place and some bytes lost."""
    pair, number = which
    raw = pair.pgoutput[number]
    at %= len(raw) + 1
    error = refusal(pair, number, raw[:at] + secret.encode() + raw[at + lost :])
    if error is not None:
        assert secret not in str(error)
        assert secret not in repr(error)
        assert str(error).startswith(SHOWN)
        assert error.__suppress_context__ or error.__context__ is None, "that may quote the row"


@given(st.sampled_from(RECORDED), st.data())
def test_mangled_messages_are_messages_or_a_message_error(
    which: tuple[Pair, int], data: st.DataObject
) -> None:
    pair, number = which
    raw = bytearray(pair.pgoutput[number])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    error = refusal(pair, number, bytes(raw))
    assert error is None or error.reason in ("undecodable", "unknown_action")


@given(st.binary())
def test_any_bytes_are_messages_or_a_message_error(raw: bytes) -> None:
    error = refusal(PAIRS["types"], 2, raw)
    assert error is None or error.reason in ("undecodable", "unknown_action")


@given(st.integers(0x10, 2**63 - 1), st.integers(0, 2**32 - 1))
def test_a_transaction_s_numbers(position: int, xid: int) -> None:
    started, ended = decoded(begin(xid, position), commit(position))
    assert started == Begin(xid, position + 1, 946_684_800.0)
    assert ended == Commit(0, position, 946_684_800.0)
