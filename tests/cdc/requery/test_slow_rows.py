"""A reconcile or a ripple whose first row takes long holds up nobody on the applier's thread."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from cdc.mapping.affected import Affected
from cdc.postgres.gate import Gate
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import Desk, transaction
from tests.plugins.server import fill
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

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
    own = tmp_path / "own"
    shutil.copytree(ROOT / "sql/grove", own)
    shutil.copytree(ROOT / "sql/shared", tmp_path / "shared")
    queries = (own / "queries.sql").read_text()
    column = "    settings.secret_key,\n"
    assert column in queries
    busy = f"CASE WHEN applications.id = 'app_1' THEN {WORK}::TEXT ELSE '' END"
    (own / "queries.sql").write_text(
        queries.replace(column, f"    settings.secret_key || {busy} AS secret_key,\n", 1)
    )
    fill(database, 20, plans=1)
    return Desk(database, tmp_path, str(own))


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
    requery.step()
    if what != "mixed":
        requery.take([transaction(200, KEY)], 100)
        requery.step()
    assert b"new" in slow.map["app_2"]
    assert all(one.read.waiting for one in requery._reads), "a row of the other one is there already"
    assert requery.busy, "the other one is done already"
    slow.finish()
    requery.abandon()
    slow.server.close()
