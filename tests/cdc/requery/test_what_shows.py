"""Reads that show a commit which no position of the server counts yet: their map is none that existed."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cdc import lsn
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from tests.cdc.requery.test_requery import Desk
from tests.plugins.server import fill, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cdc.postgres.gate import Evidence
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated

ROTATE = "UPDATE portal_application_settings SET secret_key = '{}' WHERE application_id IN ({})"
APP_1, BOTH = "'app_1'", "'app_1', 'app_2'"
UNFLUSHED = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()"


def flushed(database: Database) -> int:
    return int(lsn.parse(database.value("SELECT pg_current_wal_flush_lsn()::text")))


def test_a_commit_that_is_shown_before_it_is_flushed(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    """With ``synchronous_commit = off`` half of a later transaction is in the map."""
    database = database_factory(cluster=cluster_factory({"wal_writer_delay": "10s"}))
    fill(database, 20)
    desk = Desk(database, tmp_path)
    start = desk.requery.reached
    database.execute(ROTATE.format("first", APP_1))
    first = flushed(database)
    database.execute(f"SET synchronous_commit = off; {ROTATE.format('second', BOTH)}")
    desk.take(start, first, EndpointsOfApplications="app_1")
    desk.finish()
    assert b"second" in desk.map["app_1"]
    assert b"second" not in desk.map["app_2"], "it is torn"
    assert not desk.requery.consistent
    database.execute("CREATE TABLE another ()")  # whose commit flushes the other one, too
    second = flushed(database)
    desk.take(first, second, EndpointsOfApplications="app_2")
    desk.finish()
    desk.step()
    assert b"second" in desk.map["app_2"]
    assert desk.requery.consistent
    desk.requery.abandon()
    desk.server.close()


def test_what_a_transaction_that_runs_has_written_is_not_waited_for(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    """It is not flushed for minutes, perhaps; but whatever shows is flushed after a time that is known."""
    database = database_factory(cluster=cluster_factory({"wal_writer_delay": "200ms"}))
    fill(database, 20)
    desk = Desk(database, tmp_path)
    start = desk.requery.reached
    running = database.connect()
    running.autocommit = False
    running.cursor().execute("CREATE TEMP TABLE t (); INSERT INTO pay_plans VALUES ('running', 1, 1)")
    database.execute(ROTATE.format("first", APP_1))
    first = flushed(database)
    running.cursor().execute("INSERT INTO pay_plans VALUES ('more', 1, 1)")
    assert database.value(UNFLUSHED)
    desk.take(start, first, EndpointsOfApplications="app_1")
    desk.finish()
    began = time.monotonic()
    assert not desk.requery.consistent
    assert desk.patience(60.0) < 1
    while not desk.requery.consistent:
        assert time.monotonic() < began + 10
        time.sleep(desk.patience(0.5))
        desk.step()
    assert time.monotonic() - began < 5
    assert desk.patience(60.0) > 1, "it is asked once"
    desk.requery.abandon()
    desk.server.close()


@pytest.mark.soak
def test_a_commit_that_a_standby_shows_before_it_counts_it(
    standby17: Replicated, database_factory: DatabaseFactory
) -> None:
    """One that drops many tables is shown before their files are gone, and counted only then."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 20)
    tables = [f"dropped_{number}" for number in range(1_000)]
    caught = 0
    for turn in range(5):
        primary.execute("; ".join(f"CREATE TABLE {table} (id INT PRIMARY KEY)" for table in tables))
        standby17.wait_replayed()
        with looking(primary.on(standby17.standby)) as looks, primary.connect().cursor() as cursor:
            new = f"new {turn}"
            cursor.execute(f"BEGIN; {ROTATE.format(new, APP_1)}; DROP TABLE {', '.join(tables)}")
            cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
            [[at]] = cursor.fetchall()
            cursor.execute("COMMIT")
            # Something more is on its way, as where others write.
            cursor.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 9000))")
            wait_until(partial(_is_among, looks, new), "it is shown")
            standby17.wait_replayed()
        before = lsn.parse(at)
        showing = [evidence for key, evidence in looks if key == new]
        assert all(evidence.shown > before for evidence in showing)
        caught += sum(evidence.seen <= before for evidence in showing)
    assert caught, "the moment was never met"


def _is_among(looks: list[tuple[str, Evidence]], wanted: str) -> bool:
    return any(key == wanted for key, _ in tuple(looks))


@contextmanager
def looking(standby: Database) -> Iterator[list[tuple[str, Evidence]]]:
    """Read the key of one endpoint again and again, with the read's evidence."""
    looks: list[tuple[str, Evidence]] = []
    ending = threading.Event()

    def look() -> None:
        address = Address(standby.url, "TEST")
        with closing(QueryServer(address, load("grove"), "public", lambda row: row[1])) as server:
            while not ending.is_set():
                with server.read({"EndpointsOfApplications": ["app_1"]}) as read:
                    [(_, key)] = [row for chunk in read.chunks() for row in chunk]
                    looks.append(((key or b"").decode(), read.evidence))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        ending.set()
        thread.join(30)
