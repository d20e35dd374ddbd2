"""A signal table is there for whoever wants to ask for a recompute: nothing rests on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.check import Check
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory

SIGNAL = "INSERT INTO portal_application_changes (portal_app_id) VALUES ('app_3')"
AGAIN = "CREATE TABLE portal_application_changes (id SERIAL PRIMARY KEY, portal_app_id VARCHAR(24) NOT NULL)"


def test_it_may_go_and_come_back(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    check: Check,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """As a page of ours tells people to drop it: while the server runs, before a restart, before `setup`."""
    fill(database, 20)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    database.execute("DROP TABLE portal_application_changes")
    database.execute("UPDATE pay_plans SET throughput_limit = 2")
    wait_equal(client, database)
    assert check(database).the("tables", "pass")
    assert server.stop() == 0

    role, file = f"{database.name}_role_service", tmp_path / "service.dsn"
    given = {"ADMIN_CONNECTION_STRING": database.url()}
    for command in ("setup", "teardown", "setup"):
        more = ("--role-file", str(file)) if command == "setup" else ("--slot-name", "none")
        file.unlink(missing_ok=True)
        done = pads_cdc(command, "--role", role, *more, **given)
        assert done.returncode == 0, done.stderr

    server = serve(file.read_text().strip())
    client = gateway(server.wait_ready())
    database.execute("UPDATE pay_plans SET throughput_limit = 3")
    wait_equal(client, database)
    before = server.metric("pads_cdc_requery_seconds_count")
    database.execute(AGAIN)
    database.publish()

    def asked() -> bool:
        database.execute(SIGNAL)
        return server.metric("pads_cdc_requery_seconds_count") > before

    wait_until(asked, "it is heard again")
    wait_equal(client, database)
    assert server.stop() == 0


@pytest.mark.parametrize(
    "instead",
    [
        AGAIN,
        pytest.param(
            "CREATE UNLOGGED TABLE portal_application_changes (portal_app_id INT[])", marks=pytest.mark.soak
        ),
        pytest.param(
            "CREATE VIEW portal_application_changes AS SELECT 1 AS portal_app_id", marks=pytest.mark.soak
        ),
    ],
)
def test_nobody_else_brings_one_in(
    instead: str, database: Database, serve: ServerFactory, gateway: GatewayFactory, check: Check
) -> None:
    """Who may create objects and nothing else could have everything read again as often as he likes."""
    fill(database, 20)
    database.execute("DROP TABLE portal_application_changes; GRANT CREATE ON SCHEMA public TO PUBLIC")
    mallory = database.create_role()
    session = database.connect(*mallory)
    with session.cursor() as cursor:
        cursor.execute(instead)
    assert "portal_application_changes" in check(database).the("tables", "pass").text
    server = serve(database)
    client = gateway(server.wait_ready())
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "it streams")
    before = server.metric("pads_cdc_requery_seconds_count"), server.metric("pads_cdc_decode_errors_total")
    if instead == AGAIN:
        with session.cursor() as cursor:
            cursor.execute(SIGNAL)
    database.execute("UPDATE pay_plans SET throughput_limit = 3 WHERE plan_type = 'plan_1'")
    wait_equal(client, database)
    after = server.metric("pads_cdc_requery_seconds_count"), server.metric("pads_cdc_decode_errors_total")
    assert after == (before[0] + 1, before[1]), "only the plan's change was answered"
