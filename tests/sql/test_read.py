"""The header row of a read: of the same snapshot as the rows, and first, whatever the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load

if TYPE_CHECKING:
    from tests.plugins.postgres import Database

KEYS = {"EndpointsOfApplications": ["app1", "gone"]}


def test_the_snapshot_is_that_of_the_rows_also_in_a_cursor(database: Database) -> None:
    mapping = load("grove")
    with database.connect().cursor() as cursor, database.connect().cursor() as writer:
        cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        cursor.execute(f"DECLARE one NO SCROLL CURSOR FOR {mapping.compose(KEYS)}", KEYS)
        writer.execute("INSERT INTO portal_applications VALUES ('app1') RETURNING pg_current_xact_id()::text")
        [[xid]] = writer.fetchall()
        cursor.execute("FETCH FORWARD ALL FROM one")
        header, *rows = cursor.fetchall()
        assert not sees(database, xid, header[0])
        assert {(row[2], row[3]) for row in rows} == {("app1", False), ("gone", False)}

        cursor.execute(f"DECLARE two NO SCROLL CURSOR FOR {mapping.compose(KEYS)}", KEYS)
        cursor.execute("FETCH FORWARD ALL FROM two")
        header, *rows = cursor.fetchall()
        assert sees(database, xid, header[0])
        assert {(row[2], row[3]) for row in rows} == {("app1", True), ("gone", False)}


def test_seen_is_no_earlier_than_what_was_read(database: Database) -> None:
    mapping = load("grove")
    with database.connect().cursor() as cursor:
        cursor.execute("INSERT INTO portal_applications VALUES ('app1')")
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        [[written]] = cursor.fetchall()
        cursor.execute(mapping.header, {})
        [header] = cursor.fetchall()
    assert len(header) == 12
    seen, flushed, bound, shown, within = header[1].split(" ")
    assert shown == bound
    assert float(within) == 0.6, "three times wal_writer_delay"
    assert database.value("SELECT %s::pg_lsn >= %s::pg_lsn", (bound, seen))
    assert database.value("SELECT %s::pg_lsn >= %s::pg_lsn", (seen, written))
    assert database.value("SELECT %s::pg_lsn BETWEEN %s::pg_lsn AND %s::pg_lsn", (flushed, written, seen))


def test_what_the_session_knew_before_comes_with_it(database: Database) -> None:
    with database.connect().cursor() as cursor:
        cursor.execute("SELECT set_config('pads_cdc.before', 'known', false)")
        cursor.execute(load("grove").header, {})
        [header] = cursor.fetchall()
    assert header[2:] == ("known", *[None] * 9)


@pytest.mark.parametrize("rows", [0, 5000])
def test_the_header_comes_first_when_everything_is_parallel(database: Database, rows: int) -> None:
    mapping = load("grove")
    database.execute(
        "INSERT INTO portal_applications SELECT 'app' || i FROM generate_series(1, %s) AS i", (rows,)
    )
    database.execute("ANALYZE")
    with database.connect().cursor() as cursor:
        cursor.execute(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;"
            "SET max_parallel_workers_per_gather = 4"
        )
        reads: list[tuple[str, dict[str, list[str]]]] = [(mapping.full(), {}), (mapping.compose(KEYS), KEYS)]
        for statement, parameters in reads:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            [top, *_] = cursor.fetchall()
            assert top[0].startswith("Append ")
            for _ in range(5):
                cursor.execute(statement, parameters)
                header, *others = cursor.fetchall()
                assert header[0] is not None
                assert all(row[0] is None for row in others)


def sees(database: Database, xid: str, snapshot: str) -> bool:
    """Ask whether a snapshot sees a transaction."""
    visible: bool = database.value(
        "SELECT pg_visible_in_snapshot(%s::xid8, %s::pg_snapshot)", (xid, snapshot)
    )
    return visible


def test_no_statement_of_ours_has_a_backslash() -> None:
    """Whether it escapes anything is a setting, which may not be ours yet when the statement is read."""
    mappings = [load(name) for name in ("grove", "grove_jwt", "grove_soft_delete")]
    ours = [*server_queries().values(), *(mapping.full() for mapping in mappings)]
    ours += [query for mapping in mappings for query in mapping.queries.values()]
    assert not [statement for statement in ours if "\\" in statement]
