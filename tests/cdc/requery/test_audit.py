"""The audit beside the daily work, step by step on a real database: what is drift, and what is only not there
yet.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cdc import lsn
from cdc.mapping.affected import Affected
from cdc.postgres.gate import Gate
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import KEY, Desk
from tests.plugins.server import expected, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import Database


class AuditedDesk(Desk):
    """Positions are real ones here: an audit compares them with what it has seen."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder)
        self._coming: list[tuple[int, Affected]] = []

    def hear(self, statement: str, kind: str, *keys: str) -> None:
        """Commit a transaction that the stream has yet to bring: `bring` lets it come."""
        self.database.execute(statement)
        self._coming.append((self._end(), Affected(keys={kind: set(keys)})))

    def bring(self) -> None:
        """Let the stream bring the next transaction, and do what follows from it."""
        end, affected = self._coming.pop(0)
        self.requery.add(Task(affected, Gate(), self.requery.reached, end))
        self.requery.restart_at(end)
        self.finish()
        for _ in range(3):
            self.step()

    def catch_up(self) -> None:
        """Let the stream say that nothing else has happened."""
        self.requery.restart_at(self._end())
        for _ in range(30):
            self.step()

    def audit(self) -> None:
        """Begin an audit and compare everything; what differs still waits."""
        assert self.auditor.start()
        for _ in range(30):
            self.step()

    def drift(self) -> int | None:
        """Return what the audit has found, None while it runs."""
        found = [one for one in self.told.reconciles if one.reason == "audit"]
        return found[-1].upserts + found[-1].deletes if found else None

    def _end(self) -> int:
        return lsn.parse(self.database.value("SELECT pg_current_wal_insert_lsn()::text"))


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Iterator[AuditedDesk]:
    fill(database, 40, plans=4)
    desk = AuditedDesk(database, tmp_path)
    yield desk
    desk.close()


PLAN = "UPDATE pay_plans SET throughput_limit = throughput_limit + 100 WHERE plan_type = 'plan_1'"
ACCOUNT = "UPDATE accounts SET plan_type = 'plan_2' WHERE id = 'acc_1'"
APPLICATION = "UPDATE portal_applications SET account_id = 'acc_3' WHERE account_id = 'acc_1'"


def test_what_nobody_told_of_is_repaired_and_counted(desk: AuditedDesk) -> None:
    desk.database.execute("DELETE FROM portal_applications WHERE id IN ('app_1', 'app_2')")
    desk.database.execute(
        "UPDATE portal_application_settings SET secret_key = 'x' WHERE application_id = 'app_4'"
    )
    desk.audit()
    assert desk.drift() is None, "the stream may still bring it"
    desk.catch_up()
    assert desk.drift() == 3
    assert desk.map == expected(desk.database)


def test_while_a_difference_waits_nothing_is_kept_of_what_is_read(desk: AuditedDesk) -> None:
    """A commit that hangs can make it wait for hours, in which every endpoint is read again."""
    desk.database.execute("DELETE FROM portal_applications WHERE id IN ('app_1', 'app_2')")
    desk.audit()
    audit = desk.requery.audit
    assert audit is not None
    for number in range(2, 40):
        desk.commit(f"{KEY}'app_{number}'", EndpointsOfApplications=f"app_{number}")
    desk.finish()
    assert audit._differing.keys() == {"app_1"}
    assert not audit._overtaken
    desk.catch_up()
    assert desk.drift() == 1
    assert desk.map == expected(desk.database)


def test_what_the_stream_brings_later_is_no_drift(desk: AuditedDesk) -> None:
    desk.hear(PLAN, "EndpointsOfPlans", "plan_1")
    desk.audit()
    assert desk.drift() is None
    desk.bring()
    desk.catch_up()
    assert desk.drift() == 0


def test_what_later_transactions_have_taken_from_an_earlier_one_is_no_drift(desk: AuditedDesk) -> None:
    """Whoever reads the plan's endpoints finds none on it any more; what took them away is yet to come."""
    desk.hear(PLAN, "EndpointsOfPlans", "plan_1")
    desk.audit()
    desk.hear(ACCOUNT, "EndpointsOfAccounts", "acc_1")
    moved = [
        row[0] for row in desk.database.rows("SELECT id FROM portal_applications WHERE account_id = 'acc_1'")
    ]
    desk.hear(APPLICATION, "EndpointsOfApplications", *moved)
    desk.bring()
    assert desk.drift() is None, "the account's move is still to come"
    desk.bring()
    assert desk.drift() is None, "the applications' move is still to come"
    desk.bring()
    desk.catch_up()
    assert desk.drift() == 0
    assert desk.map == expected(desk.database)


def test_what_a_ripple_has_left_out_is_no_map_that_existed(desk: AuditedDesk) -> None:
    """The plan's read does not bring an endpoint that has gone by then: here it is as it was before."""
    desk.hear(PLAN, "EndpointsOfPlans", "plan_1")
    desk.hear("DELETE FROM portal_applications WHERE id = 'app_1'", "EndpointsOfApplications", "app_1")
    before = desk.map["app_1"]
    desk.bring()
    end, affected = desk._coming.pop(0)
    xid = int(desk.database.value("SELECT txid_current() + 1000000"))
    waits = Task(affected, Gate(frozenset({xid})), desk.requery.reached, end)
    desk.requery.add(waits)
    desk.requery.restart_at(max(end, desk.requery.read_up_to))
    for _ in range(3):
        desk.step()
        assert not desk.store.consistent
    assert desk.map["app_1"] == before
    waits.gate = Gate()
    desk.finish()
    desk.catch_up()
    assert desk.store.consistent
    assert desk.map == expected(desk.database)


def test_a_ripple_that_finds_nothing_any_more_has_torn_as_well(desk: AuditedDesk) -> None:
    """The first one's read shows the second one early; a third one has taken all endpoints from that."""
    desk.hear(f"{KEY}'app_1'", "EndpointsOfApplications", "app_1")
    desk.hear(PLAN, "EndpointsOfPlans", "plan_1")
    [first, second] = desk._coming
    desk._coming.clear()
    desk.requery.add(Task(first[1], Gate(), desk.requery.reached, first[0]))
    desk.requery.restart_at(first[0])
    desk.finish()
    desk.database.execute("UPDATE accounts SET plan_type = 'plan_2' WHERE plan_type = 'plan_1'")
    desk.requery.add(Task(second[1], Gate(), desk.requery.reached, second[0]))
    desk.requery.restart_at(second[0])
    desk.finish()
    assert not desk.store.consistent
    desk.requery.add(Task(Affected({"EndpointsOfPlans": {"plan_2"}}), Gate(), second[0], desk._end()))
    desk.catch_up()
    desk.finish()
    desk.step()
    assert desk.store.consistent
    assert desk.map == expected(desk.database)


def test_what_a_standby_may_show_before_it_says_so_is_no_drift(
    desk: AuditedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows a commit, and wakes who has waited for its locks, a moment before it counts it as replayed."""
    desk.catch_up()
    before = desk.requery.reached
    desk.hear(PLAN, "EndpointsOfPlans", "plan_1")
    read = desk.server.read

    def early(keys: Any = None, **how: bool) -> Any:
        found = read(keys, **how)
        if keys is None:
            found.evidence = replace(found.evidence, seen=before, flushed=before)
        return found

    monkeypatch.setattr(desk.server, "read", early)
    desk.audit()
    assert desk.drift() is None, "the slot has brought all that it has seen, and not what it may have shown"
    desk.bring()
    desk.catch_up()
    assert desk.drift() == 0


def test_an_audit_does_not_wait_for_ever_for_a_replay_that_is_paused(
    desk: AuditedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = desk.server.read

    def ahead(keys: Any = None, **how: bool) -> Any:
        found = read(keys, **how)
        found.evidence = replace(found.evidence, bound=1 << 62)
        return found

    monkeypatch.setattr(desk.server, "read", ahead)
    desk.database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    desk.audit()
    desk.catch_up()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 9)
    desk.step()
    assert desk.drift() is None, "it may still be replayed"
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    desk.step()
    assert desk.drift() == 1
