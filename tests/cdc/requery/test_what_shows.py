"""Reads that show a commit which no position of the server counts yet: their map is none that existed."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cdc import lsn
from cdc.lsn import Lsn
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from cdc.postgres.gate import Gate
from cdc.postgres.timeline import Timeline
from cdc.requery.task import Task
from cdc.state.origin import CurrentOrigin, Origin
from cdc.state.token import Behind, Here, Reset, Token, judge
from cdc.store.catchup import Catchup
from cdc.units import Revision
from server.rpc.feed import FeedStream
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
    """With ``synchronous_commit = off`` half of a later transaction is in the map.

    A client that comes from another server, and has only what is flushed, is sent this half: once the
    transaction is delivered, nothing about the endpoint changes any more.
    """
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
    assert flushed(database) == first
    assert "app_1" in {entry.id for entry in Catchup(desk.store, first).read(100).entries}
    database.execute("CREATE TABLE another ()")  # whose commit flushes the other one, too
    second = flushed(database)
    desk.take(first, second, EndpointsOfApplications="app_2")
    desk.finish()
    desk.step()
    assert b"second" in desk.map["app_2"]
    assert desk.requery.consistent
    desk.close()


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
    desk.close()


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


@pytest.mark.soak
def test_what_a_standby_shows_too_early_is_missed_by_no_client_that_goes_elsewhere(
    standby17: Replicated, database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    """The standby is held at the moment between showing a commit and counting it, and everything is read.

    A token may name the replay position as the newest that the map shows. Then another server, which has
    followed to that very position, would go on from there, and send the endpoint as it was before the commit;
    after a promotion at that position, it would never send it at all.
    """
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 20)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    desk = Desk(standby, tmp_path)
    system = str(primary.value("SELECT system_identifier FROM pg_control_system()"))
    history = Timeline(system, 1, end=Lsn(1 << 62))
    desk.store.follow_timeline(history)
    with held_within_a_commit(standby17, primary, standby) as counted:
        desk.requery.restart_at(counted)
        desk.requery.add(Task.reconcile("test", Gate(), counted))
        desk.finish()
        assert b"too early" in desk.map["app_1"]
        token = Token.parse(newest_token(desk))
        assert token is not None
        assert token.position <= counted
        there = Here(Origin("f" * 32, Lsn(1)), history, Revision(1), counted, time.time(), 3600.0)
        assert judge(token.encode(), there, opened=time.monotonic()) == Behind(token.seen)
        promoted = Timeline(system, 2, Lsn(1 << 62), ((1, Lsn(counted)),))
        later = replace(there, history=promoted, position=Lsn(counted + 1000))
        assert judge(token.encode(), later, opened=time.monotonic()) == Reset("timeline")
        sent = Catchup(desk.store, counted).read(100).entries
        assert "app_1" in {entry.id for entry in sent}, "a client of a server that lacks the commit needs it"
    standby17.wait_replayed()
    assert lsn.parse(standby.value("SELECT pg_last_wal_replay_lsn()::text")) > token.seen
    desk.close()


def newest_token(desk: Desk) -> bytes:
    """Return the token that a client has after it was sent everything."""
    origin = CurrentOrigin(desk.ledger)
    stream = FeedStream(desk.store, origin.now, lambda: 0.0, 1.0)
    stream.open(Reset("no_token"))
    token = b""
    while stream.more or stream.catching_up:
        for message in stream.take():
            token = message.batch.token
    stream.close()
    return token


@contextmanager
def held_within_a_commit(servers: Replicated, primary: Database, standby: Database) -> Iterator[int]:
    """Rotate a key, and stop the standby's replay when it shows the new one but does not count it yet: it is
    removing the files of many tables. Yields the position that it counts.
    """
    replaying = standby.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'")
    key = "SELECT secret_key FROM portal_application_settings WHERE application_id = 'app_1'"
    tables = [f"dropped_{number}" for number in range(1_000)]
    with standby.connect().cursor() as looking, primary.connect().cursor() as writing:
        for _ in range(20):
            primary.execute("; ".join(f"CREATE TABLE {table} (id INT PRIMARY KEY)" for table in tables))
            primary.execute(ROTATE.format("before", APP_1))
            servers.wait_replayed()
            writing.execute(f"BEGIN; {ROTATE.format('too early', APP_1)}; DROP TABLE {', '.join(tables)}")
            writing.execute("SELECT pg_current_wal_insert_lsn()::text")
            [(before,)] = writing.fetchall()
            committing = threading.Thread(target=writing.execute, args=("COMMIT",))
            committing.start()
            shown = ""
            while shown != "too early":
                looking.execute(key)
                [(shown,)] = looking.fetchall()
            os.kill(replaying, signal.SIGSTOP)
            try:
                committing.join(30)
                counted = lsn.parse(standby.value("SELECT pg_last_wal_replay_lsn()::text"))
                if counted <= lsn.parse(before):
                    yield counted
                    return
            finally:
                os.kill(replaying, signal.SIGCONT)
    raise AssertionError("the moment was never met")


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
