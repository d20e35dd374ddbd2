"""Every message that was recorded, and every one that should never come."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.changes import Begin, Column, Commit, Delete, Insert, Message, Note, Truncate, Update
from cdc.errors import MessageError
from cdc.postgres.encoding import Encoding
from cdc.replication import wal2json
from tests.plugins.samples import BEGIN, COMMIT, FORMAT_2, SAMPLES, Sample, name_of

TYPES = {"B": Begin, "C": Commit, "I": Insert, "U": Update, "D": Delete, "T": Truncate, "M": Note}
SECRET = "s3cr3t-api-key"
SHOWN = "wal2json sent"


def rows_of(label: str) -> list[Message]:
    """Return the messages of a recorded case that are about rows."""
    messages = map(wal2json.parse, SAMPLES[label].stream())
    return [message for message in messages if not isinstance(message, Begin | Commit)]


def columns(**values: str | float | None) -> tuple[Column, ...]:
    return tuple(Column(name, value) for name, value in values.items())


@pytest.mark.parametrize(
    "sample",
    [one for one in FORMAT_2 if one.options.get("include-schemas") != "0"],
    ids=name_of,
)
def test_every_recorded_message_is_read_as_it_is(sample: Sample) -> None:
    """The standard library's reader is the judge."""
    for raw in sample.stream():
        said, read = json.loads(raw, parse_float=str), wal2json.parse(raw)
        assert type(read) is TYPES[said["action"]]
        for field in ("schema", "table"):
            assert getattr(read, field, None) == said.get(field)
        for field in ("columns", "identity"):
            found = {column.name: column.value for column in getattr(read, field, ())}
            assert found == {column["name"]: column["value"] for column in said.get(field, ())}


def test_the_old_row_is_known_by_the_replica_identity() -> None:
    moved, *_ = rows_of("update default identity, PK column changed")
    assert isinstance(moved, Update)
    assert moved.columns[0] == Column("id", 100)
    assert moved.identity == columns(id=1)
    *_, renamed, deleted = rows_of("USING INDEX: insert/update non-key/update key/delete")
    assert isinstance(renamed, Update)
    assert (renamed.columns[1], renamed.identity) == (Column("k", "k2"), columns(k="k1"))
    assert deleted == Delete("public", "ui", columns(k="k2"))
    _, _, changed, _ = rows_of("FULL: insert/update/delete")
    assert isinstance(changed, Update)
    assert changed.identity == columns(id=1, a="b", n=None)


@pytest.mark.parametrize(
    "label", ["NOTHING: insert/update/delete", "no PK, default identity: insert/update/delete"]
)
def test_without_an_identity_only_inserts_come(label: str) -> None:
    assert [type(row) for row in rows_of(label)] == [Insert]


def test_unchanged_toasted_values_are_missing() -> None:
    [row] = rows_of("TOAST unchanged in update, default identity")
    assert isinstance(row, Update)
    assert [column.name for column in row.columns] == ["id", "x"]


def test_text_comes_as_it_was_written() -> None:
    [row] = rows_of("types: text with control characters and unicode")
    assert isinstance(row, Insert)
    [text] = [column.value for column in row.columns if column.name == "a"]
    assert isinstance(text, str)
    assert {"\t", "\n", "\r", "\b", "\f", "\u2028"} <= set(text)


def test_types_are_not_needed() -> None:
    [row] = rows_of("include-types=0")
    assert isinstance(row, Insert)
    assert row.columns[0].value == json.loads(SAMPLES["include-types=0"].lines[1])["columns"][0]["value"]


@pytest.mark.parametrize("line", ['{"action":"B"}', '{"action":"C"}', '{"action":"B","xid":888}'])
def test_a_transaction_without_what_we_ask_for_is_refused(line: str) -> None:
    with pytest.raises(MessageError) as refused:
        wal2json.parse(line.encode())
    assert refused.value.reason == "undecodable"


@pytest.mark.parametrize("sample", [s for s in SAMPLES.values() if s not in FORMAT_2], ids=name_of)
def test_format_1_is_an_unknown_shape(sample: Sample) -> None:
    for line in sample.lines:
        with pytest.raises(MessageError) as refused:
            wal2json.parse(line.encode())
        assert refused.value.reason == "undecodable"


def test_rows_without_their_schema_are_an_unknown_shape() -> None:
    with pytest.raises(MessageError, match="unexpected shape"):
        wal2json.parse(SAMPLES["include-schemas=0"].lines[1].encode())


@pytest.mark.parametrize("action", ['"X"', '"i"', '""', '"BB"', "1", "null", "[]", "{}"])
def test_an_unknown_action_is_an_error_and_not_a_shrug(action: str) -> None:
    raw = f'{{"action":{action},"schema":"public","table":"{SECRET}","columns":[]}}'.encode()
    with pytest.raises(MessageError) as refused:
        wal2json.parse(raw)
    assert refused.value.reason in ("unknown_action", "undecodable")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"action":"I","x":' + b"[" * 100_000,
        b'{"action":"I","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"a","value":"\xff"}]}',
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"a","value":"\\ud800"}]}',
        b'{"action":"I","schema":"s","table":"t","columns":{"a":1}}',
        b'{"action":"D","schema":"s","table":"t"}',
        BEGIN[:-1],
        BEGIN + COMMIT,
        BEGIN.replace(b"7", b'"7"', 1),
    ],
    ids=lambda raw: raw[:40].decode(errors="replace"),
)
def test_what_cannot_be_read_is_one_error(raw: bytes) -> None:
    with pytest.raises(MessageError) as refused:
        wal2json.parse(raw)
    assert refused.value.reason == "undecodable"
    assert refused.value.__suppress_context__, "the decoder's own error may quote the row"


def test_a_note_in_any_encoding_is_a_note() -> None:
    """Another application's binary message is none of our business."""
    assert wal2json.parse(b'{"action":"M","transactional":false,"content":"\xff\xfe"}') == Note()


SECRETS = st.text(string.ascii_letters, min_size=12)
PLACES = st.sampled_from([*(line for sample in FORMAT_2 for line in sample.stream()), b"", b"\xff"])


def refusal(raw: bytes) -> MessageError | None:
    """Return the error that a message is answered with, None if it can be read."""
    try:
        assert isinstance(wal2json.parse(raw), tuple(TYPES.values()))
    except MessageError as error:
        return error
    return None


@given(PLACES, SECRETS, st.integers(0, 2000), st.integers(0, 30))
@example(b'{"action":"I","schema":"public","table":"d"}', SECRET, 10, 0)
def test_no_error_shows_what_came(raw: bytes, secret: str, at: int, lost: int) -> None:
    """Recorded messages with a secret in a random place and some bytes lost."""
    error = refusal(raw[:at] + secret.encode() + raw[at + lost :])
    if error is not None:
        assert secret not in str(error)
        assert secret not in repr(error)
        assert str(error).startswith(SHOWN)


@given(st.binary())
def test_any_bytes_are_a_message_or_a_message_error(raw: bytes) -> None:
    error = refusal(raw)
    assert error is None or error.reason in ("undecodable", "unknown_action")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_value_is_a_message_or_a_message_error(value: object) -> None:
    row = {"action": "I", "schema": "s", "table": "t", "columns": [{"name": "a", "value": value}]}
    error = refusal(json.dumps(row).encode())
    if isinstance(value, str | bool | None):
        assert error is None or "\\ud" in json.dumps(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22 06:37:51.19021+00", 1795329471.19021),
        ("2026-11-22 12:07:51+05:30", 1795329471.0),
        ("1970-01-01 00:00:00+00", 0.0),
        ("infinity", 0.0),
        ("02.01.2024 06:34:05 IST", 0.0),
        ("0044-03-15 00:00:00+00 BC", 0.0),
        ("", 0.0),
    ],
)
def test_commit_times(text: str, seconds: float) -> None:
    begin = wal2json.parse(BEGIN.replace(b"2026-11-22 06:37:51.19021+00", text.encode()))
    assert isinstance(begin, Begin)
    assert begin.committed_at == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "G/1", "1/", "/", "1/2/3", "0/"])
def test_a_position_that_is_none(text: str) -> None:
    for raw in (BEGIN, COMMIT):
        with pytest.raises(MessageError) as refused:
            wal2json.parse(raw.replace(b"0/20", text.encode()))
        assert refused.value.reason == "undecodable"
        assert str(refused.value) == f"{SHOWN} a commit without a readable LSN"
        assert wal2json.parse(raw.replace(b"0/20", b"1/F")).end == (1 << 32) + 15  # type: ignore[union-attr]


LATIN1, LATIN2 = Encoding.named("LATIN1"), Encoding.named("LATIN2")


def in_latin2(**said: object) -> Message:
    """Return what a database in LATIN2 sends: its letters are not those of LATIN1 (ISO 8859-1)."""
    raw = json.dumps(said, ensure_ascii=False).encode("iso8859-2")
    [message] = wal2json.Wal2JsonDecoder(LATIN2).decode(raw)
    return message


def said_columns(**values: str | None) -> list[dict[str, str | None]]:
    return [{"name": name, "type": "text", "value": value} for name, value in values.items()]


def test_each_kind_of_message_is_decoded_in_the_database_s_encoding() -> None:
    """In names as well as in values, of the new row as of the old one."""
    row, old = said_columns(č="ů", plain="x", none=None), said_columns(ő="ř")
    new, before = columns(č="ů", plain="x", none=None), columns(ő="ř")
    where = {"schema": "Schéma č", "table": "Tabuľka"}
    named = ("Schéma č", "Tabuľka")
    assert in_latin2(action="I", **where, columns=row) == Insert(*named, new)
    assert in_latin2(action="U", **where, columns=row, identity=old) == Update(*named, new, before)
    assert in_latin2(action="D", **where, identity=old) == Delete(*named, before)
    assert in_latin2(action="T", **where) == Truncate(*named)
    assert isinstance(in_latin2(action="M", transactional=False, prefix="č", content="č"), Note)
    place = {"xid": 7, "timestamp": "úterý", "lsn": "0/10", "nextlsn": "0/20"}
    assert in_latin2(action="B", **place) == Begin(7, 0x20, 0.0)
    assert in_latin2(action="C", **place) == Commit(7, 0x20, 0.0)


def test_utf8_needs_no_decoding_and_ascii_none_in_any_encoding() -> None:
    raw = json.dumps(
        {"action": "D", "schema": "s", "table": "é", "identity": said_columns(é="ü")}, ensure_ascii=False
    ).encode()
    for decoder in (wal2json.Wal2JsonDecoder(), wal2json.Wal2JsonDecoder(Encoding.named("UTF8"))):
        assert decoder.decode(raw) == (Delete("s", "é", columns(é="ü")),)
    assert wal2json.Wal2JsonDecoder(LATIN1).decode(raw) != (Delete("s", "é", columns(é="ü")),)
    [message] = wal2json.Wal2JsonDecoder(LATIN1).decode(b'{"action": "T", "schema": "s", "table": "t"}')
    assert message == Truncate("s", "t")


def test_the_options_name_the_tables_escaped_and_a_prefix_that_nobody_guesses() -> None:
    tables = [("public", "plans"), ("XX", "MAX"), ("Odd, schema", "a.b*'c\\")]
    options = wal2json.options(tables)
    assert options["add-tables"] == r"public.plans,XX.MAX,Odd\,\ schema.a\.b\*\'c" + "\\\\"
    assert {**options, **wal2json.OPTIONS} == options
    prefix = options["add-msg-prefixes"]
    assert prefix.startswith("pads_cdc_")
    assert len(prefix) >= 40
    assert prefix != wal2json.options(tables)["add-msg-prefixes"]
