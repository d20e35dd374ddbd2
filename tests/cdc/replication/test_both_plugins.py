"""Both plugins on one server: whatever is done to the tables, their decoders yield the same changes."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.changes import Begin, Column, Commit, Delete, Insert, Message, Truncate, Update
from cdc.replication import pgoutput, wal2json
from tests.cdc.replication.test_pgoutput import all_same, with_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.changes import Row
    from tests.plugins.postgres import Database

_numbers = itertools.count(1)

SCHEMA = """
CREATE SCHEMA {0}; SET search_path = {0};
CREATE TABLE d (id INT PRIMARY KEY, a TEXT, b INT UNIQUE NOT NULL, c TEXT);
CREATE TABLE ui (id INT, a TEXT, b INT NOT NULL UNIQUE, c TEXT);
ALTER TABLE ui REPLICA IDENTITY USING INDEX ui_b_key;
CREATE TABLE f (id INT PRIMARY KEY, a TEXT, b INT UNIQUE NOT NULL, c TEXT);
ALTER TABLE f REPLICA IDENTITY FULL;
ALTER TABLE f ALTER c SET STORAGE EXTERNAL;
CREATE TABLE p (id INT PRIMARY KEY, a TEXT, b INT NOT NULL, c TEXT) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (4);
CREATE TABLE p2 (c TEXT, b INT NOT NULL, dropped INT, id INT PRIMARY KEY, a TEXT);
ALTER TABLE p2 DROP dropped;
ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (4) TO (100);
CREATE TABLE child (id INT PRIMARY KEY, a TEXT, b INT UNIQUE NOT NULL, c INT REFERENCES d ON DELETE CASCADE);
ALTER PUBLICATION lists ADD TABLE d (id, a), ui (b), child (id, c);
INSERT INTO d SELECT g, 'x', g, 'y' FROM generate_series(0, 5) g;
INSERT INTO ui SELECT * FROM d; INSERT INTO f SELECT * FROM d; INSERT INTO p SELECT * FROM d;
INSERT INTO child SELECT id, a, b, id FROM d;
"""
EVERYTHING = pgoutput.options("everything") | {"messages": "true"}
LISTS = pgoutput.options("lists")
LISTED = {"d": {"id", "a"}, "ui": {"b"}, "child": {"id", "c"}}

TABLES = st.sampled_from(["d", "ui", "f", "p", "child"])
IDS = st.integers(0, 7)
TEXTS = st.sampled_from(["NULL", "'x'", "''", "'ü\u2028'", "repeat('long', 2000)"])


def _insert(table: str, row: int, text: str) -> str:
    last = str(row % 5) if table == "child" else text
    return f"INSERT INTO {table} (id, b, c) VALUES ({row}, {row + 100}, {last}) ON CONFLICT DO NOTHING"


DML = st.one_of(
    st.builds(_insert, TABLES, IDS, TEXTS),
    st.builds("UPDATE {0} SET a = {2} WHERE id = {1}".format, TABLES, IDS, TEXTS),
    st.builds("UPDATE {0} SET a = a".format, TABLES),
    st.builds("UPDATE {0} SET id = id + {2} WHERE id = {1}".format, TABLES, IDS, st.integers(1, 8)),
    st.builds("UPDATE {0} SET b = b + 1000 WHERE id = {1}".format, TABLES, IDS),
    st.builds("DELETE FROM {0} WHERE id <= {1}".format, TABLES, IDS),
    st.builds("TRUNCATE {0} CASCADE".format, st.sampled_from(["d", "d, ui", "f", "p", "p1", "child"])),
    st.just("SAVEPOINT s; INSERT INTO d (id, b) VALUES (50, 50); ROLLBACK TO s"),
    st.just("SELECT pg_logical_emit_message(true, 'x', 'y')"),
    st.just("SELECT pg_logical_emit_message(false, 'x', 'y')"),
)
DDL = st.one_of(
    st.builds("ALTER TABLE {0} ADD IF NOT EXISTS more INT DEFAULT 5".format, TABLES),
    st.builds("ALTER TABLE {0} DROP IF EXISTS more".format, TABLES),
    st.builds("ALTER TABLE {0} RENAME a TO renamed".format, TABLES),
    st.builds("ALTER TABLE {0} RENAME renamed TO a".format, TABLES),
    st.builds("ALTER TABLE {0} RENAME TO {0}_".format, st.sampled_from(["d", "f", "p1"])),
    st.builds("ALTER TABLE {0}_ RENAME TO {0}".format, st.sampled_from(["d", "f", "p1"])),
    st.just("ALTER TABLE f ALTER b TYPE BIGINT"),
    st.just("ALTER TABLE f ALTER a TYPE VARCHAR(9000)"),
    st.just("ALTER TABLE f REPLICA IDENTITY DEFAULT"),
    st.just("ALTER TABLE f REPLICA IDENTITY USING INDEX f_b_key"),
    st.just("ALTER TABLE f REPLICA IDENTITY FULL"),
    st.just("ALTER TABLE p DETACH PARTITION p2"),
    st.just("ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (4) TO (100)"),
    st.just("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (100) TO (200)"),
    st.just("DROP TABLE p3"),
    st.just("CREATE TABLE fresh (id INT PRIMARY KEY, a TEXT); INSERT INTO fresh VALUES (1, 'x')"),
    st.just("UPDATE fresh SET a = 'y'; DROP TABLE fresh"),
    st.just("VACUUM FULL ui"),
)
TRANSACTIONS = st.lists(
    st.tuples(
        st.lists(st.one_of(DML, DML, DML, DDL), min_size=3, max_size=8),
        st.sampled_from(["COMMIT", "COMMIT", "COMMIT", "PREPARE", "ROLLBACK"]),
    ),
    min_size=3,
    max_size=12,
)


@pytest.fixture
def slots(database: Database) -> Iterator[Cursor]:
    """A session in a database with a slot of either plugin, and one of pgoutput with lists of columns."""
    database.execute("CREATE PUBLICATION everything FOR ALL TABLES; CREATE PUBLICATION lists")
    for slot, plugin in (("theirs", "wal2json"), ("ours", "pgoutput"), ("listed", "pgoutput")):
        database.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
    with closing(database.connect()) as session, session.cursor() as cursor:
        yield cursor


def run(cursor: Cursor, statements: list[str], end: str) -> None:
    """Run a transaction; of a statement that is refused, and those after it in one string, nothing stays."""
    if any(statement.startswith("VACUUM") for statement in statements):
        statements, end = [], "ROLLBACK"
        cursor.execute("VACUUM FULL ui")
    cursor.execute("BEGIN")
    for statement in statements:
        cursor.execute("SAVEPOINT before")
        try:
            cursor.execute(statement.replace("%", "%%"), ())
        except psycopg2.Error:
            cursor.execute("ROLLBACK TO before")
    if end == "PREPARE":
        name = f"both_{next(_numbers)}"
        try:
            cursor.execute(f"PREPARE TRANSACTION '{name}'")
            cursor.execute(f"COMMIT PREPARED '{name}'")
        except psycopg2.errors.FeatureNotSupported:
            cursor.execute("ROLLBACK")
    else:
        cursor.execute(end)


def said(cursor: Cursor, slot: str, options: dict[str, str]) -> Iterator[bytes]:
    binary = "" if slot == "theirs" else "binary_"
    cursor.execute(
        f"SELECT data FROM pg_logical_slot_get_{binary}changes(%s, NULL, NULL, VARIADIC %s)",
        (slot, [text for option in options.items() for text in option]),
    )
    for (data,) in cursor.fetchall():
        yield data.encode() if isinstance(data, str) else bytes(data)


def decoded(decoder: pgoutput.PgoutputDecoder, stream: Iterable[bytes]) -> list[Message]:
    return [message for raw in stream for message in decoder.decode(raw)]


def rows(messages: list[Message], schema: str, tables: dict[str, set[str]] | None = None) -> list[Message]:
    """Return the rows of a schema, within their transactions; of some tables, with some columns."""
    kept: list[Message] = []
    for message in messages:
        if isinstance(message, Begin | Commit):
            kept.append(message)
        elif isinstance(message, Insert | Update | Delete | Truncate) and message.schema == schema:
            if tables is None:
                kept.append(message)
            elif message.table in tables:
                kept.append(_only(message, tables[message.table]))
    return with_rows(kept)


def _only(row: Row, names: set[str]) -> Row:
    def some(columns: tuple[Column, ...]) -> tuple[Column, ...]:
        return tuple(column for column in columns if column.name in names)

    match row:
        case Insert():
            return Insert(row.schema, row.table, some(row.columns))
        case Update():
            return Update(row.schema, row.table, some(row.columns), some(row.identity))
        case Delete():
            return Delete(row.schema, row.table, some(row.identity))
        case Truncate():
            return row


def check_equal(theirs: list[Message], ours: list[Message]) -> None:
    assert [_name(one) for one in theirs] == [_name(one) for one in ours]
    for one, other in zip(theirs, ours, strict=True):
        if isinstance(one, Begin) and isinstance(other, Begin):
            assert one.xid == other.xid
            assert other.end < one.end
        elif isinstance(one, Commit) and isinstance(other, Commit):
            assert one.end == other.end
        for field in ("columns", "identity"):
            assert all_same(getattr(one, field, ()), getattr(other, field, ())), (one, other)


def _name(message: Message) -> tuple[Any, ...]:
    return type(message), getattr(message, "schema", None), getattr(message, "table", None)


@pytest.mark.parametrize("examples", [25, pytest.param(150, marks=pytest.mark.soak)])
def test_both_plugins_say_the_same_of_whatever_is_done(slots: Cursor, examples: int) -> None:
    kinds: Counter[type] = Counter()

    @settings(deadline=None, max_examples=examples)
    @given(transactions=TRANSACTIONS)
    def judge(transactions: list[tuple[list[str], str]]) -> None:
        schema = f"example_{next(_numbers)}"
        slots.execute(SCHEMA.format(schema))
        try:
            for statements, end in transactions:
                run(slots, statements, end)
            theirs = [wal2json.parse(raw) for raw in said(slots, "theirs", wal2json.OPTIONS)]
            # A partitioned table has no rows of its own; wal2json names it beside its truncated partitions.
            theirs = [one for one in theirs if one != Truncate(schema, "p")]
            ours = decoded(pgoutput.PgoutputDecoder(), said(slots, "ours", EVERYTHING))
            check_equal(rows(theirs, schema), rows(ours, schema))
            kinds.update(map(type, rows(ours, schema)))
            wanted = {(schema, table): columns for table, columns in LISTED.items()}
            listed = decoded(pgoutput.PgoutputDecoder(wanted), said(slots, "listed", LISTS))
            # What is renamed stays in its publication, and is not what was wanted any more.
            if not any(" RENAME " in statement for statements, _ in transactions for statement in statements):
                check_equal(rows(theirs, schema, LISTED), rows(listed, schema))
        finally:
            slots.execute(f"DROP SCHEMA {schema} CASCADE; RESET search_path")
            for slot, options in (("theirs", wal2json.OPTIONS), ("ours", EVERYTHING), ("listed", LISTS)):
                for _ in said(slots, slot, options):
                    pass

    judge()
    assert all(kinds[kind] > 5 for kind in (Insert, Update, Delete, Truncate)), kinds
