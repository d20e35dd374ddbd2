"""kill -9 at every step between reading a transaction and letting the slot forget it: nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.failpoints import POINTS
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory


@pytest.mark.parametrize("hit", [2, 5])
@pytest.mark.parametrize("point", [point for point in POINTS if point != "noted"])
def test_killed_at(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, point: str, hit: int
) -> None:
    """The client never fetches again: what it missed comes on its next stream, deletes too."""
    fill(database, 100)
    first = serve(database)
    client = gateway(first)
    wait_equal(client, database)
    assert first.stop() == 0

    doomed = serve(database, PORT=str(first.grpc), PADS_CDC_FAILPOINT=f"{point}:{hit}")
    number = 0

    def killed() -> bool:
        nonlocal number
        number += 1
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %(key)s WHERE application_id = 'app_1';"
            "INSERT INTO portal_applications VALUES (%(key)s, 'acc_1');"
            "DELETE FROM portal_applications WHERE id = %(old)s",
            {"key": f"v{number}", "old": f"v{number - 1}"},
        )
        return doomed.process.poll() is not None

    wait_until(killed, f"killed at {point}")
    doomed.join()
    final = serve(database, PORT=str(first.grpc)).wait_ready()
    wait_equal(client, database)
    assert client.key("app_1") == f"v{number}"
    assert [endpoint_id for endpoint_id in client.map if endpoint_id.startswith("v")] == [f"v{number}"]
    assert final.metric("pads_cdc_audit_drift_total") == 0


@pytest.mark.own_cluster
def test_killed_between_the_note_and_the_letting_go(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    fill(database, 100)
    doomed = serve(database, MAX_RETAINED_WAL="4MB", PADS_CDC_FAILPOINT="noted")
    client = gateway(doomed)
    wait_equal(client, database)
    database.execute("ALTER TABLE pay_plans RENAME COLUMN throughput_limit TO renamed")
    database.execute("CREATE TABLE bulk (content text)")

    def killed() -> bool:
        database.execute("UPDATE portal_application_settings SET secret_key = md5(random()::text)")
        database.execute("INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        return doomed.process.poll() is not None

    wait_until(killed, "killed after the note", deadline=60)
    doomed.join()
    database.execute("ALTER TABLE pay_plans RENAME COLUMN renamed TO throughput_limit")
    final = serve(database, PORT=str(doomed.grpc)).wait_ready()
    wait_equal(client, database)
    assert final.metric("pads_cdc_reconcile_total", reason="owed") == 1
    final.kill()
    again = serve(database, PORT=str(doomed.grpc)).wait_ready()
    wait_equal(client, database)
    assert again.metric("pads_cdc_reconcile_total", reason="owed") == 0, "what was paid is owed no more"


def test_a_batch_that_was_written_but_never_seen_is_told_when_it_is_undone(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Killed after the state file, before a cursor; then the database goes back to the old value."""
    fill(database, 20)
    doomed = serve(database, PADS_CDC_FAILPOINT="written:2")
    client = gateway(doomed)
    wait_equal(client, database)
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'"
    )
    assert doomed.process.wait(30) != 0
    doomed.join()
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'key_1' WHERE application_id = 'app_1'"
    )
    serve(database, PORT=str(doomed.grpc))
    client.wait(lambda one: one.ends, "its stream ended")
    wait_equal(client, database)
    assert client.key("app_1") == "key_1"
