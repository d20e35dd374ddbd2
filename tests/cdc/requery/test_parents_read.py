"""The memory of parents is read beside the stream, which delivers and ends as it likes in the meantime."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.errors import SourceError
from cdc.lsn import Lsn
from cdc.mapping.affected import Affected, Move
from cdc.postgres.gate import Gate
from cdc.requery import parents_read as parents_read_module
from cdc.requery import task as task_module
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import Desk
from tests.plugins.server import expected, fill

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from cdc.mapping.mapping import Rule
    from cdc.postgres.database import ParentRows
    from cdc.postgres.gate import Evidence
    from tests.plugins.postgres import Database

KIND = "EndpointsOfApplications"


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Iterator[Desk]:
    fill(database, 20, plans=1)
    desk = Desk(database, tmp_path)
    yield desk
    desk.close()


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

    def slow(rules: Collection[Rule]) -> Mapping[Rule, ParentRows]:
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


def test_the_parents_are_read_once_what_was_delivered_before_is_visible(
    desk: Desk, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the memory would lack it, and each change of an unknown parent would read everything again:
    for ever, where commits follow each other and the query server is a little behind the slot.
    """
    evidence, asked = desk.server.evidence, threading.Event()

    def noted() -> Evidence:
        found = evidence()
        if threading.current_thread().name == "parents":
            asked.set()
        return found

    monkeypatch.setattr(desk.server, "evidence", noted)
    with closing(psycopg2.connect(desk.database.url())) as session, session.cursor() as cursor:
        cursor.execute("UPDATE portal_application_settings SET secret_key = 'new' WHERE id = 2")
        cursor.execute("SELECT pg_current_xact_id()::text")
        [(xid,)] = cursor.fetchall()
        gate = Gate(frozenset({int(xid)}))
        desk.requery.add(Task(Affected(keys={KIND: {"app_2"}}), gate, 0, 100))
        desk.requery.add(Task.reconcile("test", Gate(), 0))
        desk.requery.step()
        assert asked.wait(60)
        session.commit()
    desk.finish()
    deleted = moved(desk, rule, None, 2**62)
    assert deleted.reconcile is None
    assert len(deleted.keys[KIND]) == 1


@pytest.mark.parametrize(
    "patience", [0.1, pytest.param(parents_read_module._PATIENCE, marks=pytest.mark.soak)]
)
def test_the_parents_are_not_waited_for_ever_while_a_commit_is_invisible(
    desk: Desk, rule: Rule, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """The memory counts as unknown then, since its rows lack that commit."""
    monkeypatch.setattr(parents_read_module, "_PATIENCE", patience)
    began = time.monotonic()
    xmax = int(desk.database.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    gate = Gate(frozenset({xmax + 1_000_000}))
    desk.requery.add(Task(Affected(keys={KIND: {"app_2"}}), gate, 0, 100))
    desk.requery.add(Task.reconcile("test", Gate(), 0))
    while desk.requery.reconciling:
        desk.step()
    assert patience <= time.monotonic() - began < patience + 60
    assert moved(desk, rule, None, 2**62).reconcile == "unknown_row"


def test_parents_of_a_server_that_is_behind_are_not_used(
    desk: Desk, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may lead to several standbys: rows of a later one lack moves that were done already."""
    parents, tried = desk.server.parents, []

    def behind(rules: Collection[Rule]) -> Mapping[Rule, ParentRows]:
        found = parents(rules)
        tried.append(found)
        if len(tried) > 1:
            return found
        return {
            one: replace(rows, before=replace(rows.before, replayed=Lsn(1))) for one, rows in found.items()
        }

    monkeypatch.setattr(desk.server, "parents", behind)
    desk.requery.add(Task.reconcile("test", Gate(), 0))
    with pytest.raises(SourceError, match="has not replayed the WAL"):
        desk.finish()
    assert [one.reason for one in desk.told.reconciles] == ["start"]
    desk.finish()
    assert [one.reason for one in desk.told.reconciles] == ["start", "test"]
    assert moved(desk, rule, None, 2**62).reconcile is None


def test_the_mapping_is_read_where_all_is_shown_that_the_parents_showed(
    desk: Desk, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that the parents lack may be gone; its endpoint must not come from an older state."""
    parents = desk.server.parents

    def newer(rules: Collection[Rule]) -> Mapping[Rule, ParentRows]:
        found = parents(rules)
        return {one: replace(rows, after=replace(rows.after, seen=Lsn(2**61))) for one, rows in found.items()}

    monkeypatch.setattr(desk.server, "parents", newer)
    desk.requery.add(Task.reconcile("test", Gate(), 0))
    desk.finish()
    assert desk.requery.read_up_to == 2**61
    assert moved(desk, rule, None, 2**61).reconcile is None
    assert moved(desk, rule, None, 2**61 + 1).reconcile == "unknown_row"


def test_reconciles_that_come_during_a_read_are_merged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs time at every step: a job that deletes rows one by one may cause thousands."""
    requery, parents, go_on = desk.requery, desk.server.parents, threading.Event()

    def slow(rules: Collection[Rule]) -> Mapping[Rule, ParentRows]:
        found = parents(rules)
        go_on.wait(60)
        return found

    monkeypatch.setattr(desk.server, "parents", slow)
    for _ in range(200):
        requery.add(Task.reconcile("unknown_row", Gate(), 0))
        requery.step()
        assert len(requery._waiting) <= 65
    go_on.set()
    desk.finish()
    assert [one.reason for one in desk.told.reconciles] == ["start", "unknown_row"]
