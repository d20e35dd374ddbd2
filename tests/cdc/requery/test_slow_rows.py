"""A reconcile or a ripple whose first row takes long holds up nobody on the applier's thread, nor does the
read of the parents before a reconcile.
"""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from cdc.mapping.affected import Affected, Move
from cdc.postgres.gate import Gate
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import Desk, transaction
from tests.plugins.server import expected, fill
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cdc.mapping.mapping import Rule
    from cdc.postgres.database import ParentRows
    from tests.plugins.postgres import Database

WORK = "(SELECT count(*) FROM (SELECT generate_series(1, 10000000)) AS numbers)"
"""What the database is busy with for a second, once a read; nothing in it is volatile, so that
reads by id are planned as ever.
"""
PLAN = {"EndpointsOfPlans": {"plan_0"}}
KEY = {"EndpointsOfApplications": {"app_2"}}


@pytest.fixture
def slow(database: Database, tmp_path: Path) -> Desk:
    """A mapping of one's own, in which the endpoint app_1 takes long, whatever reads it."""
    busy = f"CASE WHEN applications.id = 'app_1' THEN {WORK}::TEXT ELSE '' END"
    column, slower = "    settings.secret_key,\n", f"    settings.secret_key || {busy} AS secret_key,\n"
    fill(database, 20, plans=1)
    return Desk(database, tmp_path, own_mapping(tmp_path, "grove/queries.sql", column, slower))


def own_mapping(folder: Path, file: str, text: str, other: str) -> str:
    """Copy the mapping ``grove``, with another text in one of its files. Returns its folder."""
    for name in ("grove", "shared"):
        shutil.copytree(ROOT / "sql" / name, folder / name)
    before = (folder / file).read_text()
    assert text in before
    (folder / file).write_text(before.replace(text, other, 1))
    return str(folder / "grove")


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("reconcile", marks=pytest.mark.soak),
        pytest.param("ripple", marks=pytest.mark.soak),
        "mixed",
    ],
)
def test_a_revocation_does_not_wait_for_the_first_row_of_another_read(slow: Desk, what: str) -> None:
    requery = slow.requery
    slow.database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_2'"
    )
    requery.restart_at(300)
    match what:
        case "reconcile":
            requery.add(Task.reconcile("test", Gate(), 0))
        case "ripple":
            requery.add(Task(Affected(keys=PLAN), Gate(), 0, 100))
        case _:
            requery.take([transaction(100, PLAN | KEY)], 0)
    slow.step()
    if what != "mixed":
        requery.take([transaction(200, KEY)], 100)
        requery.step()
    assert b"new" in slow.map["app_2"]
    assert all(one.read.waiting for one in requery._reads), "a row of the other one is there already"
    assert requery.busy, "the other one is done already"
    slow.finish()
    slow.close()


def test_a_revocation_does_not_wait_for_the_parents(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the changes that are delivered during the read get lost in the memory that it makes."""
    fill(database, 20, plans=1)
    desk = Desk(database, tmp_path)
    requery, parents, ready = desk.requery, desk.server.parents, threading.Event()

    def slow(rules: Collection[Rule]) -> dict[Rule, ParentRows]:
        found = parents(rules)
        assert ready.wait(60)
        return found

    monkeypatch.setattr(desk.server, "parents", slow)
    requery.add(Task.reconcile("test", Gate(), 0))
    requery.step()
    assert desk.patience(9.0) > 0.1, "there is nothing to do but to wait for the parents"
    [rule] = desk.server.mapping.rules["portal_application_settings"]
    row = str(database.value("SELECT id FROM portal_application_settings WHERE application_id = 'app_2'"))
    database.execute(
        "DELETE FROM portal_application_settings WHERE application_id = 'app_3';"
        "UPDATE portal_application_settings SET application_id = 'app_3', secret_key = 'new'"
        f" WHERE id = {row}"
    )
    moved = Affected({rule.query: {"app_3"}}, [Move(rule, row, "app_3", known=False)])
    requery._parents.resolve(moved, 2**62)
    assert moved.keys == {rule.query: {"app_2", "app_3"}}
    requery.add(Task(moved, Gate(), 0, 100))
    requery.step()
    assert b"new" in desk.map["app_3"]
    ready.set()
    desk.finish()
    assert [one.reason for one in desk.told.reconciles] == ["start", "test"]
    assert desk.map == expected(database)
    gone = Affected({}, [Move(rule, row, None, known=False)])
    requery._parents.resolve(gone, 2**62 + 1)
    assert gone.keys == {rule.query: {"app_3"}}, "the rows that were read name app_2"
    desk.close()
