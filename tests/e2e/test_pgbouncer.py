"""A pooler between us and the database: the re-queries go through it, the slot does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.plugins.pgbouncer import passes_replication
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.cluster import ephemeral_standby
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, ServerFactory


def test_re_queries_through_a_pooler_before_two_servers(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    pooler: PoolerFactory,
) -> None:
    """In transaction mode, where each transaction may meet another server: the primary, or a standby whose
    replay is late. Nothing goes back, and nothing is read too early.
    """
    primary = database_factory(cluster=cluster_factory())
    fill(primary, 3_000, plans=1)
    late = {"recovery_min_apply_delay": "200ms"}
    with (
        ephemeral_standby(primary.cluster, late) as standby,
        Proxy(primary.cluster.port, standby.port) as proxy,
    ):
        url = pooler(primary, proxy.port)
        server = serve(primary, QUERY_CONNECTION_STRING=url)
        client = gateway(server)
        for number in range(1, 41):
            primary.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
            primary.execute(
                "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = 'app_1'",
                (f"v{number}",),
            )
        wait_equal(client, primary)
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pads-cdc' AND query <> ''"
        for one in (primary, primary.on(standby)):
            assert one.value(asked) > 0, "both servers were asked"
        payloads = [payload for key, payload in client.updates if key == "app_1" and payload]
        found = [re.search(rb"v(\d+)", payload) for payload in payloads]
        versions = [int(one[1]) for one in found if one]
        assert versions == sorted(versions), "it went back"
        assert server.metric("pads_cdc_audit_drift_total") == 0
        assert server.stop() == 0


@pytest.mark.own_cluster
def test_a_pooler_that_passes_no_replication_on_is_refused(
    database: Database, pooler: PoolerFactory, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if passes_replication():
        pytest.skip("this system's PgBouncer is no older than 1.23")
    refused = pads_cdc("serve", POSTGRES_CONNECTION_STRING=pooler(database, database.cluster.port))
    assert refused.returncode == 1
    [line] = refused.stderr.strip().splitlines()
    assert "PgBouncer before 1.23" in line
    assert "QUERY_CONNECTION_STRING" in line


@pytest.mark.own_cluster
def test_everything_through_a_pooler_that_passes_replication_on(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    pooler: PoolerFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """PgBouncer 1.23 and later, in transaction mode: the slot, the queries, and a restart."""
    fill(database, 300)
    url = pooler(database, database.cluster.port, replication=True)
    checked = pads_cdc("check", POSTGRES_CONNECTION_STRING=url)
    assert checked.returncode == 0, checked.stdout
    server = serve(database, POSTGRES_CONNECTION_STRING=url)
    client = gateway(server)
    for number in range(20):
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = 'app_1'",
            (f"v{number}",),
        )
    wait_equal(client, database)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is read")
    assert server.stop() == 0
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    server = serve(database, POSTGRES_CONNECTION_STRING=url, PORT=str(server.grpc)).wait_ready()
    wait_equal(client, database)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is read again")
