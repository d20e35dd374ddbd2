"""The mapping `portal_db` as it is run: a role made by `pads-cdc setup`, and row-level security."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pads_cdc_client.pb import gateway_endpoint_pb2 as pb

from tests.server.commands.test_setup import Admin

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, ServerFactory
    from tests.server.commands.test_setup import Command

ROWS = """
INSERT INTO portal_plans VALUES ('plan', 100, 'month', 10);
INSERT INTO portal_accounts SELECT 'account' || i, 'plan' FROM generate_series(1, 3) AS i;
INSERT INTO portal_applications (portal_application_id, portal_account_id, secret_key_hash)
SELECT 'app' || i, 'account' || i, 'key' FROM generate_series(1, 3) AS i
"""


def test_limits_of_three_levels_and_marks_of_deleted_rows(
    database_factory: DatabaseFactory,
    pads_cdc: Command,
    serve: ServerFactory,
    gateway: GatewayFactory,
    tmp_path: Path,
) -> None:
    database = database_factory("portal_db")
    database.execute(ROWS)
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    admin.setup(MAPPING="portal_db")
    server = serve(admin.role_file.read_text().strip(), MAPPING="portal_db", SLOT_NAME=admin.slot)
    client = gateway(server)

    def limits(one: Gateway, endpoint_id: str) -> tuple[int, int, int] | None:
        found = one.endpoint(endpoint_id)
        if found is None:
            return None
        limiting = found.rate_limiting
        return limiting.throughput_limit, limiting.capacity_limit, limiting.capacity_limit_period

    def wait(endpoint_id: str, wanted: tuple[int, int, int] | None) -> None:
        client.wait(lambda one: limits(one, endpoint_id) == wanted, f"{endpoint_id} with {wanted}")

    of_plan = (10, 100, pb.CAPACITY_LIMIT_PERIOD_MONTHLY)
    for endpoint_id in ("app1", "app2", "app3"):
        wait(endpoint_id, of_plan)
    database.execute(
        "UPDATE portal_accounts SET portal_account_user_limit = 5000000000,"
        " portal_account_user_limit_interval = 'year' WHERE portal_account_id = 'account1'"
    )
    wait("app1", (10, 2**31 - 1, pb.CAPACITY_LIMIT_PERIOD_YEARLY))
    database.execute(
        "UPDATE portal_applications SET portal_application_user_limit = 7,"
        " portal_application_user_limit_interval = 'day', portal_application_user_limit_rps = 3"
        " WHERE portal_application_id = 'app1'"
    )
    wait("app1", (3, 7, pb.CAPACITY_LIMIT_PERIOD_DAILY))
    database.execute("UPDATE portal_plans SET plan_usage_limit = 200")
    wait("app2", (10, 200, pb.CAPACITY_LIMIT_PERIOD_MONTHLY))
    database.execute("UPDATE portal_accounts SET deleted_at = now() WHERE portal_account_id = 'account2'")
    wait("app2", None)
    database.execute("UPDATE portal_applications SET deleted_at = now() WHERE portal_application_id = 'app3'")
    wait("app3", None)
    database.execute("UPDATE portal_accounts SET deleted_at = NULL WHERE portal_account_id = 'account2'")
    wait("app2", (10, 200, pb.CAPACITY_LIMIT_PERIOD_MONTHLY))
    assert limits(client, "app1") == (3, 7, pb.CAPACITY_LIMIT_PERIOD_DAILY)
    assert server.metric("pads_cdc_audit_drift_total") == 0
    client.stop()
    assert server.stop() == 0
    database.execute("SELECT pg_drop_replication_slot(%s)", (admin.slot,))
    admin.teardown(MAPPING="portal_db")
