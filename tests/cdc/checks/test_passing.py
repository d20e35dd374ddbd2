"""A trouble that passes is no finding: a locked table or an ended session says nothing about the mapping.

And a check causes no trouble that passes.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdc.checks import NECESSARY, Site, Verdict, preflight, run
from cdc.checks.trial import try_plugin
from cdc.errors import SourceError, gives_way
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.errors import is_lasting
from server.commands.mapping.trial import examine
from tests.plugins.postgres import site_of
from tests.plugins.server import fill, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from cdc.checks import Check, Finding
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory

MAPPING = "grove"


NOTES = tuple(f"ALTER TABLE {table} ADD COLUMN note TEXT" for table in load(MAPPING).tables)


@contextmanager
def locked(database: Database, *statements: str) -> Iterator[None]:
    """Hold the strongest lock on each of the mapping's tables, as a migration does, then run it."""
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE " + ", ".join(load(MAPPING).tables))
        yield
        cursor.execute("; ".join((*statements, "COMMIT")))


def asked(site: Site, check: Check[Site]) -> list[Finding]:
    """Ask; nothing is found where it has to be asked again."""
    try:
        return list(check.ask(site))
    except SourceError as error:
        if gives_way(error):
            return []
        raise


def test_a_lock_is_no_fault_of_the_mapping(database: Database) -> None:
    """Each check meets the lock as if it had come right before it."""
    with site_of(database.url()) as site:
        for check in NECESSARY:
            with locked(database):
                findings = asked(site, check)
            failures = [finding.text for finding in findings if finding.verdict is Verdict.FAIL]
            assert not failures, check.name
            list(check.ask(site))


class Counted:
    """The check of the statements, and how often it was asked."""

    def __init__(self) -> None:
        [check] = (check for check in NECESSARY if check.name == "statements")
        self._ask = check.ask
        self.attempts = 0
        self.checks = [replace(check, ask=self.ask)]

    def ask(self, site: Site) -> Iterable[Finding]:
        self.attempts += 1
        return self._ask(site)

    def again(self) -> bool:
        return self.attempts > 2


def test_a_check_waits_for_a_lock(database: Database) -> None:
    counted = Counted()
    with site_of(database.url()) as site, ThreadPoolExecutor(1) as other:
        with locked(database):
            found = other.submit(lambda: list(run(counted.checks, site)))
            wait_until(counted.again, "it is asked again")
        assert [finding.verdict for _, finding in found.result(20)] == [Verdict.PASS]


def test_mapping_test_waits_for_a_lock(database: Database) -> None:
    """Its first question is asked before there is a mapping, each time on a connection of its own."""
    fill(database, 3)
    sessions: set[object] = set()
    begun = "SELECT backend_start FROM pg_stat_activity WHERE application_name = 'pads-cdc'"

    def again() -> bool:
        sessions.update(database.rows(begun))
        return len(sessions) > 1

    address = Address(database.url, "TEST")
    with ThreadPoolExecutor(1) as other:
        with locked(database):
            found = other.submit(lambda: list(examine(load(MAPPING).folder, address, "public")))
            wait_until(again, "it is asked again")
        findings = found.result(30)
    assert [one.text for _, one in findings if one.verdict is Verdict.FAIL] == []


def test_what_a_check_has_waited_for_may_have_changed_the_tables(database: Database) -> None:
    """Nothing that was known before is true afterwards."""
    counted = Counted()
    with site_of(database.url()) as site, ThreadPoolExecutor(1) as other:
        list(run(counted.checks, site))
        assert "note" not in site.tables[0].columns
        with locked(database, "ALTER TABLE pay_plans RENAME plan_type TO plan", *NOTES):
            found = other.submit(lambda: list(run(counted.checks, site)))
            wait_until(counted.again, "it is asked again")
        findings = [finding for _, finding in found.result(20)]
        assert {finding.verdict for finding in findings} == {Verdict.FAIL}
        assert all("plan_type" in finding.text for finding in findings)
        assert all("note" in table.columns for table in site.tables if table.top)


@pytest.mark.soak
def test_a_check_does_not_wait_for_ever(database: Database) -> None:
    with site_of(database.url()) as site, locked(database):
        began = time.monotonic()
        [(_, finding)] = run(Counted().checks, site)
        assert 10 <= time.monotonic() - began < 15
    assert finding.verdict is Verdict.FAIL
    assert "lock" in finding.text
    assert "again" in finding.remedy


def test_a_start_waits_for_a_lock(database: Database) -> None:
    """A migration that ends within the half minute of patience does not end the start."""
    sites = 0
    with locked(database):
        let_go = threading.Event()

        def new_site() -> Site:
            nonlocal sites
            sites += 1
            if sites == 3:
                let_go.set()
            return site

        with site_of(database.url()) as site:
            failures: list[BaseException] = []

            def start() -> None:
                try:
                    preflight.check(new_site)
                except BaseException as error:  # noqa: BLE001 - the test says what it was
                    failures.append(error)

            starting = threading.Thread(target=start)
            starting.start()
            assert let_go.wait(20), f"the start gave up: {failures}"
    starting.join(30)
    assert not starting.is_alive()
    assert not failures


def test_a_trial_that_is_cut_off_says_nothing_of_the_plugin(database: Database) -> None:
    """Else a server would be taken for one that does not load wal2json, and be read by another plugin."""
    running = "SELECT active_pid FROM pg_replication_slots WHERE database = current_database() AND active"
    ended: list[bool] = []

    def end() -> None:
        [(pid,)] = wait_until(lambda: database.rows(running), "the trial runs")
        ended.append(database.value("SELECT pg_terminate_backend(%s)", (pid,)))

    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("BEGIN; SELECT pg_current_xact_id()")  # which the slot waits for
        ending = threading.Thread(target=end)
        ending.start()
        address = Address(database.url, "POSTGRES_CONNECTION_STRING")
        with pytest.raises(SourceError) as caught:
            try_plugin(address, server_queries()["TryPlugin"], "wal2json")
        ending.join()
    assert ended == [True]
    assert not is_lasting(caught.value)


class _KeepsOpen(Proxy):
    """Keeps a client's last word from the server, as the network may for a moment."""

    def __init__(self, target: int) -> None:
        self.let_go = threading.Event()
        super().__init__(target)

    def passed(self, _source: socket.socket, _sink: socket.socket, content: bytes) -> None:
        if content.startswith(b"X\0\0\0\4"):
            self.let_go.wait(30)


def test_a_trial_takes_no_slot_from_who_comes_next(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """A session ends later than its client. The server's own slot may need the only place that is free."""
    database = database_factory(cluster=cluster_factory({"max_replication_slots": "1"}))
    with _KeepsOpen(database.cluster.port) as proxy:
        url = database.url().replace(f":{database.cluster.port}/", f":{proxy.port}/")
        address = Address(lambda: url, "POSTGRES_CONNECTION_STRING")
        try:
            assert try_plugin(address, server_queries()["TryPlugin"], "wal2json").loads
            database.execute("SELECT pg_create_logical_replication_slot('ours', 'wal2json')")
        finally:
            proxy.let_go.set()
