"""Several hosts in the connection string, and slots that a standby keeps for its promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg2.extensions import make_dsn

from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated
    from tests.plugins.server import GatewayFactory, ServerFactory


def either(database: Database, pair: Replicated, attributes: str) -> str:
    """Return a connection string that names both servers."""
    return make_dsn(
        host="127.0.0.1,127.0.0.1",
        port=f"{pair.primary.port},{pair.standby.port}",
        dbname=database.name,
        user="postgres",
        password=pair.primary.password,
        target_session_attrs=attributes,
    )


def sync_slots(standby: Database) -> None:
    """Have the standby keep its primary's failover slots."""
    source = standby.value("SHOW primary_conninfo")
    standby.execute("ALTER SYSTEM SET primary_conninfo = %s", (f"{source} dbname=postgres",))
    standby.execute("ALTER SYSTEM SET sync_replication_slots = on")
    standby.cluster.reload()


@pytest.mark.parametrize("replicated", ["17"], indirect=True)
def test_a_failover_slot_is_taken_over_by_the_standby_that_is_promoted(
    replicated: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    check: Check,
) -> None:
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 50)
    replicated.wait_replayed()
    standby, both = primary.on(replicated.standby), either(primary, replicated, "primary")

    found = check(both, SLOT_FAILOVER="true").of("failover")
    told = " ".join(one.text for one in found)
    for setting in ("synchronized_standby_slots", "sync_replication_slots", "primary_conninfo"):
        assert setting in told
    [to_type] = [one.remedy for one in found if one.text.startswith("synchronized_standby_slots")]
    for statement in to_type.removeprefix("on the primary: ").split(";"):
        if statement.strip():
            primary.execute(statement)
    assert primary.value("SHOW synchronized_standby_slots") == "phys1"
    sync_slots(standby)
    wait_until(lambda: standby.value("SHOW sync_replication_slots") == "on", "the reload")
    assert check(both, SLOT_FAILOVER="true").the("failover", "pass")

    assert serve(primary).wait_ready().stop() == 0  # its slot is not yet one for failover
    server = serve(both, SLOT_FAILOVER="true")
    client = gateway(server)
    wait_equal(client, primary)
    assert primary.value("SELECT failover FROM pg_replication_slots WHERE slot_name = 'pads_cdc'")

    def kept() -> bool:
        primary.rows("SELECT pg_log_standby_snapshot()")
        ours = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
        return standby.rows(ours) == [(True,)]

    wait_until(kept, "the standby keeps the slot", 60)
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, primary)
    replicated.wait_replayed()
    replicated.primary.crash()
    standby.cluster.promote()
    standby.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_equal(client, standby)
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")
    assert server.metric("pads_cdc_reconcile_total", reason="slot_created") == 0, "the slot was there"


@pytest.mark.parametrize("replicated", ["18"], indirect=True)
def test_of_several_hosts_the_one_that_fits_is_followed(
    replicated: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Whichever is the primary, for the slot; a standby as long as there is one, for the queries."""
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 50)
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = serve(
        either(primary, replicated, "primary"),
        QUERY_CONNECTION_STRING=either(primary, replicated, "prefer-standby"),
    )
    client = gateway(server)
    wait_equal(client, primary)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pads-cdc' AND backend_type = %s"
    assert primary.value(ours, ("walsender",)) == 1
    assert standby.value(ours, ("client backend",)) > 0

    replicated.wait_replayed()
    replicated.primary.stop()
    replicated.standby.promote()
    standby.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, standby)
    wait_until(lambda: standby.value(ours, ("walsender",)) == 1, "the new primary's slot is read")
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")


def test_failover_slots_where_there_can_be_none(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """PostgreSQL 15 has none."""
    database = database_factory(cluster=cluster_factory(programs=fetched("15")))
    done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=database.url(), SLOT_FAILOVER="true")
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line == (
        "pads-cdc: SLOT_FAILOVER needs PostgreSQL 17, and the slot's server is 15; SLOT_FAILOVER=false, or"
        " upgrade the server to 17 or later"
    )
