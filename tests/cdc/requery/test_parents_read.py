"""The memory of parents is read beside the stream: what is delivered, abandoned or invisible in the meantime."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from cdc.mapping.affected import Affected, Move
from cdc.postgres.gate import Gate
from cdc.requery import task as task_module
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import Desk
from tests.plugins.server import expected, fill

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from cdc.mapping.mapping import Rule
    from tests.plugins.postgres import Database

KIND = "EndpointsOfApplications"


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Iterator[Desk]:
    fill(database, 20, plans=1)
    desk = Desk(database, tmp_path)
    yield desk
    desk.requery.abandon()
    desk.server.close()


@pytest.fixture
def rule(desk: Desk) -> Rule:
    [rule] = desk.server.mapping.rules["portal_application_settings"]
    return rule


def moved(desk: Desk, rule: Rule, parent: str | None, end: int) -> Affected:
    """Deliver a transaction that moves the settings row 1. Its old parent is not in the WAL."""
    affected = Affected({}, [Move(rule, "1", parent, known=False)])
    desk.requery._parents.resolve(affected, end)
    return affected


def test_moves_during_an_abandoned_read_are_not_applied_to_a_peers_memory(desk: Desk, rule: Rule) -> None:
    """The peer may have led for days since then."""
    desk.requery.add(Task.reconcile("test", Gate(), 0))
    desk.requery.step()
    assert desk.requery._parents_read.waiting
    moved(desk, rule, "app_5", 100)
    desk.requery.abandon()
    desk.requery._parents.load({rule: [("1", "app_7")]}, 200)
    assert moved(desk, rule, None, 300).keys == {KIND: {"app_7"}}


def test_a_task_that_becomes_a_reconcile_does_not_wait_for_the_parents_on_the_spot(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of several tasks may together be so many that everything is read instead."""
    requery, parents = desk.requery, desk.server.parents
    go_on, over = threading.Event(), threading.Event()

    def slow(rules: Collection[Rule]) -> Mapping[Rule, Any]:
        found = parents(rules)
        go_on.wait(30)
        over.set()
        return found

    monkeypatch.setattr(desk.server, "parents", slow)
    requery.add(Task.reconcile("test", Gate(), 0))
    requery.step()
    monkeypatch.setattr(task_module, "LIMIT", 1)
    for plan in ("plan_0", "plan_1"):
        requery.add(Task(Affected(keys={"EndpointsOfPlans": {plan}}), Gate(), 0, 100))
    requery.step()
    assert not over.is_set(), "a revocation would have to wait until the parents have been read"
    go_on.set()
    desk.finish()
    assert desk.map == expected(desk.database)
