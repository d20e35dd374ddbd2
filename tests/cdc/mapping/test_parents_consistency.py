"""A move that was followed while its commit still hangs: memory that is loaded then names the parent it has
left.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from cdc.mapping.affected import Affected, Move
from cdc.postgres.gate import Gate
from cdc.requery.task import Task
from tests.cdc.requery.test_requery import Desk
from tests.plugins.server import expected, fill

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database


def test_memory_that_was_loaded_before_a_followed_move_was_visible(
    database: Database, tmp_path: Path
) -> None:
    fill(database, 20)
    desk = Desk(database, tmp_path)
    requery = desk.requery
    parents = requery._parents
    [rule] = desk.server.mapping.rules["portal_application_settings"]
    row = str(database.value("SELECT id FROM portal_application_settings WHERE application_id = 'app_1'"))
    with closing(database.connect()) as hanging, hanging.cursor() as cursor:
        cursor.execute(
            "BEGIN; UPDATE portal_application_settings SET application_id = 'app_7' WHERE application_id"
            " = 'app_1';"
            "SELECT pg_current_xact_id()::text::bigint"
        )
        [(xid,)] = cursor.fetchall()
        # The stream brings it, as while the commit waits for a standby; then comes a reconcile.
        move = Affected({rule.query: {"app_7"}}, [Move(rule, row, "app_7", known=False)])
        end = 2**62
        parents.resolve(move, end)
        assert move.keys == {rule.query: {"app_1", "app_7"}}
        requery.add(Task(move, Gate(frozenset({xid % 2**32})), requery.reached, end))
        requery.add(Task.reconcile("test", Gate(), requery.reached))
        while [one.reason for one in desk.told.reconciles][-1] != "test":
            requery.step()
        cursor.execute("COMMIT")
    database.execute("DELETE FROM portal_application_settings WHERE application_id = 'app_7'")
    gone = Affected({}, [Move(rule, row, None, known=False)])
    parents.resolve(gone, end + 1)
    requery.add(Task(gone, Gate(), requery.reached, end + 1))
    desk.finish()
    assert "app_7" in gone.keys.get(rule.query, ()) or gone.reconcile == "unknown_row"
    assert desk.map == expected(database)
    requery.abandon()
    desk.server.close()
