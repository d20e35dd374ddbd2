"""Reads that overtake each other, step by step on a real database: an older read never undoes a younger
one.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cdc.errors import Refusal, SourceError
from cdc.lsn import Lsn
from cdc.mapping.affected import Affected
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.mapping.parents import Parents
from cdc.postgres import database as database_module
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from cdc.postgres.gate import Gate
from cdc.postgres.read import Read
from cdc.replication.assembler import Transaction
from cdc.replication.catalog import Catalog
from cdc.requery import requery as requery_module
from cdc.requery import task as task_module
from cdc.requery.auditor import Auditor
from cdc.requery.requery import Requery
from cdc.requery.task import Task
from cdc.state.ledger import Ledger
from cdc.state.origin import CurrentOrigin
from cdc.store.store import Store
from server.observe.fanout import Listener
from server.payload import encode
from tests.plugins.server import expected, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cdc.observer import ReconcileSeen
    from cdc.store.store import Batch
    from tests.plugins.postgres import Database


class Told(Listener):
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.reconciles: list[ReconcileSeen] = []
        self.troubles: dict[str, str | None] = {}

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        self.reconciles.append(reconcile)

    def trouble(self, key: str, message: str | None) -> None:
        self.troubles[key] = message


class Desk:
    """A `Requery` with its store, told of transactions by hand; reads come two rows at a time."""

    def __init__(self, database: Database, folder: Path, mapping_folder: str = "grove") -> None:
        self.database = database
        self.store = Store()
        self.told = Told()
        queries = server_queries()
        mapping = load(mapping_folder)
        self.ledger = ledger = Ledger(folder / "state", "", self.told)
        self._news = threading.Event()
        self.server = QueryServer(Address(database.url, "TEST"), mapping, "public", encode, self._news.set)
        self.requery = Requery(
            database=self.server,
            catalog=Catalog(queries, mapping, "public"),
            parents=Parents(),
            store=self.store,
            ledger=ledger,
            origin=CurrentOrigin(ledger),
            observer=self.told,
        )
        self.auditor = Auditor(
            requery=self.requery,
            database=self.server,
            store=self.store,
            ledger=ledger,
            observer=self.told,
            interval=300.0,
        )
        self.requery.add(Task.reconcile("start", Gate(), 0))
        self.finish()

    def commit(self, statement: str, *, wait: bool = False, **keys: str) -> None:
        """Commit, and have the endpoints of these keys (by kind) read again; not a step of it is done yet."""
        before = self.requery.reached
        self.database.execute(statement)
        self.requery.advance(self.requery.reached + 100)
        affected = Affected(keys={kind: {key} for kind, key in keys.items()})
        self.requery.add(Task(affected, Gate(), before, self.requery.reached))
        if not wait:
            self.step()

    def take(self, since: int, end: int, **keys: str) -> None:
        """Take a transaction that was committed before: it is still to be read."""
        self.requery.restart_at(end)
        affected = Affected(keys={kind: {key} for kind, key in keys.items()})
        self.requery.add(Task(affected, Gate(), since, end))

    def step(self) -> None:
        """Do one step of everything that is open, once rows that are on their way have come."""
        requery = self.requery
        while (requery.audit is not None and requery.audit.waiting) or any(
            read.read.waiting for read in requery._reads
        ):
            assert self._news.wait(60)
            self._news.clear()
        requery.step()
        while requery._parents_read.waiting:
            if requery._parents_read.running:
                assert self._news.wait(60)
                self._news.clear()
            requery.step()
        self.auditor.step(may_start=False)

    def patience(self, idle: float) -> float:
        """Say how long there is nothing to do."""
        return self.auditor.patience(self.requery.patience(idle))

    def finish(self) -> None:
        """Do everything that is open."""
        while self.requery.busy:
            self.step()

    def close(self) -> None:
        """Close the reads, the connections and the state file."""
        self.requery.abandon()
        self.server.close()
        self.ledger.close()

    @property
    def map(self) -> dict[str, bytes]:
        return {entry.id: entry.payload for entry in self.store.live() if entry.payload is not None}


@pytest.fixture
def desk(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(database_module, "FIRST_CHUNK", 2)
    monkeypatch.setattr(Read.chunks, "__defaults__", (2,))
    monkeypatch.setattr(task_module, "_RIPPLE_CHUNK", 2)
    fill(database, 20, plans=1)
    desk = Desk(database, tmp_path)
    yield desk
    desk.close()


RIPPLE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
KEY = "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = "


def test_a_ripple_does_not_undo_the_rotations_that_overtake_it(desk: Desk) -> None:
    desk.commit(RIPPLE, EndpointsOfPlans="plan_0")
    [ripple] = desk.requery._reads
    assert desk.store.consistent or ripple.rows, "nothing of it is there yet, unless rows came at once"
    desk.step()
    assert desk.requery.busy, "the ripple is longer than one step"
    assert not desk.store.consistent
    for number in range(1, 21):
        desk.commit(f"{KEY}'app_{number}'", EndpointsOfApplications=f"app_{number}")
        if number == 3:
            assert desk.requery.done_up_to == 0, "nothing may be confirmed while the ripple is not done"
    desk.finish()
    assert desk.requery.done_up_to == 2_100
    assert desk.map == expected(desk.database)
    assert not desk.store.consistent, "the slot has not been followed up to where the reads were made"
    desk.requery.restart_at(1 << 62)
    desk.requery.mark_consistent()
    assert desk.store.consistent


@pytest.mark.parametrize("together", ["one run", "one transaction", "tasks that were shut"])
def test_what_is_named_by_id_is_read_before_a_ripple_that_came_with_it(desk: Desk, together: str) -> None:
    by_id, by_plan = {"EndpointsOfApplications": {"app_1"}}, {"EndpointsOfPlans": {"plan_0"}}
    desk.database.execute(f"{RIPPLE}; {KEY}'app_1'")
    began, wanted = desk.store.head, expected(desk.database)
    match together:
        case "one run":
            run = [transaction(100, by_plan), transaction(200, by_id)]
        case "one transaction":
            run = [transaction(200, by_plan | by_id)]
        case _:
            run = []
            desk.requery.add(Task(Affected(keys=by_plan), Gate(), 0, 100))
            desk.requery.add(Task(Affected(keys=by_id), Gate(), 100, 200))
    desk.requery.restart_at(200)
    desk.requery.take(run, 0)
    desk.requery.step()
    news = [entry for entry in desk.store.entries.values() if entry.revision > began]
    assert min(news, key=lambda entry: entry.revision).id == "app_1", "before the ripple"
    assert desk.map["app_1"] == wanted["app_1"]
    assert desk.requery.done_up_to == 0, "half of it is done"
    assert not desk.store.consistent
    desk.finish()
    assert desk.map == wanted
    assert desk.requery.done_up_to == 200


def test_a_ripple_that_cannot_be_seen_yet_does_not_hold_up_a_key_that_came_with_it(desk: Desk) -> None:
    desk.database.execute(f"{KEY}'app_1'")
    xmax = int(desk.database.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    hanging = transaction(100, {"EndpointsOfPlans": {"plan_0"}}, xid=xmax + 1_000_000)
    desk.requery.restart_at(200)
    desk.requery.take([hanging, transaction(200, {"EndpointsOfApplications": {"app_1"}})], 0)
    desk.requery.step()
    assert desk.map == expected(desk.database)
    assert desk.requery.busy
    assert desk.requery.done_up_to == 0


def transaction(end: int, keys: dict[str, set[str]], xid: int = 3) -> Transaction:
    """Make one that ended there; transaction 3 is over for every snapshot."""
    return Transaction(xid=xid, end=end, committed_at=0.0, affected=Affected(keys={**keys}))


def test_a_ripple_does_not_bring_back_what_came_and_went(desk: Desk) -> None:
    """The id was never in the store: there is no entry whose revision could say that it has been read
    since.
    """
    desk.database.execute("INSERT INTO portal_applications VALUES ('flash', 'acc_0')")
    desk.commit(RIPPLE, EndpointsOfPlans="plan_0")
    desk.commit("DELETE FROM portal_applications WHERE id = 'flash'", EndpointsOfApplications="flash")
    desk.finish()
    assert desk.map == expected(desk.database)


def test_a_ripple_does_not_undo_a_change_that_left_the_bytes_as_they_were(desk: Desk) -> None:
    """The younger read found the bytes of before the ripple, so no revision moved."""
    desk.database.execute(
        "INSERT INTO pay_plans SELECT 'same', monthly_relay_limit, throughput_limit FROM pay_plans"
    )
    before = dict(desk.map)
    desk.commit(RIPPLE, EndpointsOfPlans="plan_0")
    desk.commit(
        "UPDATE pay_plans SET throughput_limit = throughput_limit - 1 WHERE plan_type = 'plan_0'",
        EndpointsOfApplications="app_20",
        EndpointsOfPlans="plan_0",
    )
    desk.finish()
    assert desk.map == expected(desk.database) == before


def test_a_whole_read_ends_the_older_ones(desk: Desk) -> None:
    """What the whole read does not find, an older and longer read must not bring back afterwards."""
    desk.database.execute(
        "INSERT INTO portal_applications SELECT 'flash_' || g FROM generate_series(1, 50) g"
    )
    wanted = {f"flash_{number}" for number in range(1, 51)} | {f"ghost_{number}" for number in range(200)}
    long = Task(Affected(keys={"EndpointsOfApplications": wanted}), Gate(), 0, 100)
    desk.requery.add(long)
    desk.step()
    desk.database.execute("DELETE FROM portal_applications WHERE starts_with(id, 'flash')")
    desk.requery.add(Task.reconcile("truncate", Gate(), desk.requery.reached))
    desk.finish()
    assert desk.map == expected(desk.database)
    assert [one.reason for one in desk.told.reconciles] == ["start", "truncate"]


def test_a_whole_read_does_not_delete_what_was_born_meanwhile(desk: Desk) -> None:
    desk.requery.add(Task.reconcile("truncate", Gate(), desk.requery.reached))
    desk.step()
    assert desk.requery.busy
    desk.commit("INSERT INTO portal_applications VALUES ('born', 'acc_0')", EndpointsOfApplications="born")
    assert "born" in desk.map
    desk.finish()
    assert desk.map == expected(desk.database)


def test_a_read_that_fails_half_way_is_done_again(desk: Desk) -> None:
    desk.commit(RIPPLE, EndpointsOfPlans="plan_0")
    desk.database.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    desk.step()  # what was fetched ahead before the end still counts
    with pytest.raises(SourceError):
        desk.step()
    assert desk.requery.busy
    assert desk.requery.done_up_to == 0
    assert desk.told.troubles["query"]
    desk.finish()
    assert desk.map == expected(desk.database)
    assert desk.told.troubles["query"] is None


def test_a_read_that_fails_at_once_is_done_again(desk: Desk) -> None:
    """It was taken off the list already: forgotten, it would be confirmed without ever having been read."""
    change = f"{KEY}'app_1'; ALTER TABLE accounts RENAME TO away"
    with pytest.raises(Refusal):
        desk.commit(change, EndpointsOfApplications="app_1")
    assert desk.requery.busy
    assert desk.requery.done_up_to == 0
    desk.database.execute("ALTER TABLE away RENAME TO accounts")
    desk.finish()
    assert desk.requery.done_up_to == 100
    assert desk.map == expected(desk.database)


def test_an_audit_finds_what_nobody_told_us_and_nothing_else(desk: Desk) -> None:
    desk.database.execute(f"{KEY}'app_1'; DELETE FROM portal_applications WHERE id = 'app_2'")  # not told
    desk.database.execute("INSERT INTO portal_applications VALUES ('untold', NULL)")
    assert desk.auditor.start()
    for number in range(10, 15):  # overtaken by what is told: no drift
        desk.commit(f"{KEY}'app_{number}'", EndpointsOfApplications=f"app_{number}")
    for _ in range(50):
        desk.step()
    assert len(desk.told.reconciles) == 1, "not before everything that it saw is applied"
    assert desk.map != expected(desk.database)
    desk.requery.restart_at(1 << 62)
    desk.step()
    audit = desk.told.reconciles[-1]
    assert (audit.reason, audit.upserts, audit.deletes) == ("audit", 2, 1)
    assert desk.map == expected(desk.database)


def test_an_audit_that_is_slow_to_open_holds_up_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read meanwhile may be older or newer than what the audit sees: it is left to those reads."""
    ready, read = threading.Event(), desk.server.read

    def slow(keys: Any = None, **how: bool) -> Any:
        found = read(keys, **how)
        assert keys is not None or ready.wait(60)
        return found

    monkeypatch.setattr(desk.server, "read", slow)
    assert desk.auditor.start()
    desk.database.execute(f"{KEY}'app_2'")  # nobody tells of it, and the audit may see it or not
    desk.commit(f"{KEY}'app_1'", EndpointsOfApplications="app_1", wait=True)
    desk.requery.step()
    assert desk.map["app_1"] == expected(desk.database)["app_1"]
    assert desk.patience(9.0) > 0.1, "there is nothing to do but to wait for the audit's rows"
    desk.take(desk.requery.reached, desk.requery.reached + 1, EndpointsOfApplications="app_2")
    desk.requery.step()
    ready.set()
    desk.requery.restart_at(1 << 62)
    while desk.told.reconciles[-1].reason != "audit":
        desk.step()
    assert desk.told.reconciles[-1].upserts + desk.told.reconciles[-1].deletes == 0
    assert desk.map == expected(desk.database)


def test_rows_that_are_still_to_come_hold_up_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, fetch = threading.Event(), Read._fetch

    def slow(read: Read, statement: str, parameters: Any = None) -> Any:
        assert not statement.startswith("FETCH") or ready.wait(60)
        return fetch(read, statement, parameters)

    monkeypatch.setattr(Read, "_fetch", slow)
    desk.commit(RIPPLE, EndpointsOfPlans="plan_0", wait=True)
    desk.requery.step()
    desk.commit(f"{KEY}'app_1'", EndpointsOfApplications="app_1", wait=True)
    desk.requery.step()
    assert desk.map["app_1"] == expected(desk.database)["app_1"]
    assert desk.patience(9.0) > 0.1
    assert not desk.store.consistent
    ready.set()
    desk.finish()
    assert desk.map == expected(desk.database)


def test_reads_that_all_wait_for_rows_neither_spin_nor_hold_up_a_revocation(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, fetch = threading.Event(), Read._fetch

    def slow(read: Read, statement: str, parameters: Any = None) -> Any:
        assert not statement.startswith("FETCH") or ready.wait(60)
        return fetch(read, statement, parameters)

    monkeypatch.setattr(Read, "_fetch", slow)
    for _ in range(4):  # one more than are read at a time
        desk.commit(RIPPLE, EndpointsOfPlans="plan_0", wait=True)
        desk.requery.step()
    assert len(desk.requery._reads) == 3
    assert desk.patience(9.0) > 0.1
    desk.commit(f"{KEY}'app_1'", EndpointsOfApplications="app_1", wait=True)
    desk.requery.step()
    assert desk.map["app_1"] == expected(desk.database)["app_1"], "a revocation does not wait with them"
    ready.set()
    desk.finish()
    assert desk.map == expected(desk.database)


def test_an_audit_that_cannot_be_opened_is_said_and_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.database.execute("ALTER TABLE accounts RENAME TO away")
    assert desk.auditor.start()
    with pytest.raises(Refusal):
        desk.step()
    assert "accounts" in (desk.told.troubles["audit"] or "")
    assert not desk.requery._attempts.failing, (
        "changes may still come: the re-queries find out for themselves"
    )
    desk.database.execute("ALTER TABLE away RENAME TO accounts")
    desk.requery.restart_at(1 << 62)
    desk.auditor.step(may_start=True)
    assert desk.requery.audit is None, "not at once"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    desk.auditor.step(may_start=True)
    monkeypatch.undo()
    while desk.told.reconciles[-1].reason != "audit":
        desk.step()
    assert desk.told.troubles["audit"] is None


@pytest.mark.parametrize("rows", [2, 100])
def test_ids_that_an_audit_meets_twice_are_no_drift_before_a_read_by_id_has_decided(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The ripple of the transaction that doubled them skips them then, and its transaction is not done."""
    monkeypatch.setattr(database_module, "FIRST_CHUNK", rows)
    monkeypatch.setattr(task_module, "_RIPPLE_CHUNK", rows)
    desk.database.execute("CREATE TABLE twins () INHERITS (pay_plans)")
    desk.database.execute("INSERT INTO twins SELECT * FROM ONLY pay_plans")
    desk.database.execute("UPDATE twins SET throughput_limit = 9")
    assert desk.auditor.start()
    audit = desk.requery.audit
    assert audit is not None
    while audit.reading:
        desk.step()
    assert len(desk.requery.odd_rows.doubtful) == 20
    desk.take(0, 1 << 62, EndpointsOfPlans="plan_0")
    while len(desk.map) > 0:
        assert desk.requery.done_up_to == 0, "a transaction is done once its endpoints are right"
        assert desk.store.position < 1 << 62, "and only then is its position that of the map"
        desk.step()
    desk.finish()
    while desk.requery.audit is not None:
        desk.step()
    found = desk.told.reconciles[-1]
    assert (found.reason, found.upserts, found.deletes) == ("audit", 0, 0)
    assert desk.requery.done_up_to == 1 << 62


def test_an_audit_under_writes_finds_nothing(desk: Desk) -> None:
    """What the audit saw too early or too late was told, and so it is no drift."""
    for _ in range(5):
        assert desk.auditor.start()
        for number in range(1, 21):
            desk.commit(f"{KEY}'app_{number}'", EndpointsOfApplications=f"app_{number}")
            desk.commit(RIPPLE, EndpointsOfPlans="plan_0", wait=True)
        desk.finish()
        for _ in range(50):
            desk.step()
        desk.requery.advance(desk.requery.reached + (1 << 40))
        desk.step()
        assert desk.told.reconciles[-1].reason == "audit"
        assert desk.told.reconciles[-1].upserts + desk.told.reconciles[-1].deletes == 0
    assert desk.map == expected(desk.database)


def test_whatever_is_published_is_in_the_state_file_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in between would otherwise count the same revision twice, for two different maps."""
    written: list[Batch] = []
    publish = desk.store.publish

    def append(batch: Batch, **_: int) -> None:
        written.append(batch)

    def check(batch: Batch, **more: Any) -> None:
        assert any(one is batch for one in written)
        publish(batch, **more)

    monkeypatch.setattr(desk.ledger, "append", append)
    monkeypatch.setattr(desk.store, "publish", check)
    desk.commit(f"{KEY}'app_1'", EndpointsOfApplications="app_1")
    desk.commit("UPDATE pay_plans SET throughput_limit = 77", EndpointsOfPlans="plan_0")
    desk.finish()
    desk.database.execute("DELETE FROM portal_applications WHERE id = 'app_5'")
    desk.requery.add(Task.reconcile("truncate", Gate(), desk.requery.reached))
    desk.finish()
    desk.database.execute("UPDATE portal_application_settings SET secret_key = 'untold' WHERE id = 4")
    assert desk.auditor.start()
    desk.requery.restart_at(1 << 62)
    while desk.told.reconciles[-1].reason != "audit":
        desk.step()
    assert desk.map == expected(desk.database)
    assert sum(bool(batch.changed) for batch in written) >= 5


def test_confirmation_waits_for_the_oldest_task(desk: Desk) -> None:
    """A task that waits for its gate keeps its place; later ones are done meanwhile."""
    affected = Affected(keys={"EndpointsOfApplications": {"app_1"}})
    desk.database.execute(f"{KEY}'app_1'")
    desk.requery.restart_at(100)
    xmax = int(desk.database.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    hanging = Task(affected, Gate(frozenset({xmax + 1_000_000})), 0, 100)
    desk.requery.add(hanging)
    desk.step()
    desk.commit(f"{KEY}'app_2'", EndpointsOfApplications="app_2")
    for _ in range(20):
        desk.step()
    held = desk.map
    assert held["app_2"] == expected(desk.database)["app_2"]
    assert held["app_1"] != expected(desk.database)["app_1"]
    assert desk.requery.done_up_to == 0
    assert not desk.store.consistent
    hanging.gate = Gate()
    desk.finish()
    assert desk.requery.done_up_to == 200
    assert desk.map == expected(desk.database)


def test_a_read_that_is_newer_than_the_stream_makes_no_map_that_existed(desk: Desk) -> None:
    """Two transactions share an endpoint: the first one's read brings half of the second one."""
    desk.requery.restart_at(int(desk.database.value("SELECT pg_current_wal_flush_lsn() - '0/0'")))
    desk.requery.mark_consistent()
    assert desk.store.consistent
    desk.database.execute(f"{KEY}'app_1'")
    first = int(desk.database.value("SELECT pg_current_wal_flush_lsn() - '0/0'"))
    desk.database.execute(f"{KEY}'app_1'; {KEY}'app_2'")
    second = int(desk.database.value("SELECT pg_current_wal_flush_lsn() - '0/0'"))
    for end, keys in ((first, {"app_1"}), (second, {"app_1", "app_2"})):
        before = desk.requery.reached
        desk.requery.restart_at(end)
        desk.requery.add(Task(Affected(keys={"EndpointsOfApplications": set(keys)}), Gate(), before, end))
        desk.finish()
        desk.requery.mark_consistent()
        assert desk.store.consistent == (end == second)
    assert desk.map == expected(desk.database)


def test_a_read_that_is_newer_than_the_stream_does_not_tear_what_nobody_shares(desk: Desk) -> None:
    """While one transaction follows the other, the map between two of them is known for one that existed."""
    flushed = "SELECT pg_current_wal_flush_lsn() - '0/0'"
    desk.requery.restart_at(int(desk.database.value(flushed)))
    desk.requery.mark_consistent()
    before = desk.requery.reached
    ends = []
    for number in (1, 2, 3):
        desk.database.execute(f"{KEY}'app_{number}'")
        ends.append(int(desk.database.value(flushed)))
    desk.take(before, ends[0], EndpointsOfApplications="app_1")
    desk.finish()
    held = desk.map
    assert not desk.store.consistent, "what the read has seen beside it is not known yet"
    desk.take(ends[0], ends[2], EndpointsOfApplications="app_2")  # and app_3, say
    desk.requery.mark_consistent()
    assert desk.store.consistent
    assert (desk.store.position, desk.map) == (ends[0], held)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("EndpointsOfApplications", "app_1"), ("EndpointsOfAccounts", "acc_1"), ("EndpointsOfPlans", "plan_0")],
)
def test_what_comes_next_may_be_in_the_map_already(desk: Desk, kind: str, key: str) -> None:
    """It names an endpoint that was brought, or it can: only the read for it will tell."""
    flushed = "SELECT pg_current_wal_flush_lsn() - '0/0'"
    before = int(desk.database.value(flushed))
    desk.requery.restart_at(before)
    desk.database.execute(f"{KEY}'app_1'")
    first = int(desk.database.value(flushed))
    desk.database.execute(f"{RIPPLE}; {KEY}'app_1'; {KEY}'app_2'")
    desk.take(before, first, EndpointsOfApplications="app_1")
    desk.finish()
    desk.take(first, int(desk.database.value(flushed)), **{kind: key})
    desk.requery.mark_consistent()
    assert not desk.store.consistent


def test_a_reconcile_that_waits_is_for_what_nobody_named(desk: Desk) -> None:
    flushed = int(desk.database.value("SELECT pg_current_wal_flush_lsn() - '0/0'"))
    desk.requery.restart_at(flushed)
    desk.requery.mark_consistent()
    desk.commit(f"{KEY}'app_1'", wait=True, EndpointsOfApplications="app_1")
    desk.finish()
    desk.requery.restart_at(1 << 61)
    desk.requery.add(Task.reconcile("truncate", Gate(), desk.requery.reached))
    desk.requery.mark_consistent()
    assert not desk.store.consistent


def hang(desk: Desk) -> Task:
    """Take a transaction that nobody sees, and have another one done that came after it."""
    xmax = int(desk.database.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    desk.database.execute(f"{KEY}'app_1'")
    desk.requery.restart_at(1 << 61)
    affected = Affected(keys={"EndpointsOfApplications": {"app_1"}})
    desk.requery.add(Task(affected, Gate(frozenset({xmax + 1_000_000})), 0, desk.requery.reached))
    desk.step()
    return desk.requery._waiting[0]


def test_what_the_slot_has_let_go_is_not_in_the_map_for_that(desk: Desk) -> None:
    """A token that names the position would have its client miss the transaction at every other server."""
    hang(desk)
    assert desk.requery.busy
    desk.requery.let_go()
    desk.requery.mark_consistent()
    assert desk.store.position == 0


def test_what_is_abandoned_is_not_in_the_map_for_that(desk: Desk) -> None:
    hang(desk)
    assert desk.requery.busy
    desk.requery.abandon()
    desk.requery.mark_consistent()
    assert desk.store.position == 0


@pytest.mark.parametrize("away", [False, True])
def test_what_must_be_delivered_before_a_read_counts_finds_room(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    """A standby was read that is ahead of the slot; now the queries are at its primary. If that was ``away``,
    the room was full before it answered, and nothing more was taken.
    """
    monkeypatch.setattr(requery_module, "_ROOM", 50_000)
    requery, ahead = desk.requery, Lsn(1 << 61)
    evidence = desk.server.evidence()
    requery._positions.read(
        replace(evidence, timeline=None, instance="a standby", replayed=Lsn(1), shown=ahead)
    )
    desk.database.execute(RIPPLE)
    for number in range(20):
        affected = Affected()
        affected.name("EndpointsOfPlans", f"{number}{'s' * 10_000}")
        requery.add(Task(affected, Gate(), Lsn(0), Lsn(number)))
        if away and requery.full:
            break
        if not away and not requery._attempts.failing:
            with pytest.raises(SourceError, match="has not delivered yet"):
                requery.step()
        assert not requery.full
    if away:
        with pytest.raises(SourceError, match="has not delivered yet"):
            requery.step()
        assert not requery.full
    assert requery.done_up_to == requery.confirmable == 0, "nothing of it has been read"
    requery.advance(ahead)
    desk.finish()
    assert desk.map == expected(desk.database)
    assert [one.reason for one in desk.told.reconciles] == ["start", "large"]
