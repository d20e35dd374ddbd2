"""Slot on one server, re-queries on another: a standby that lags counts only once it has replayed the
batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import confirmed, fill, wait_confirmed, wait_equal, wait_until
from tests.support.cluster import ephemeral_standby

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, ServerFactory


@pytest.fixture
def pair(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> Iterator[tuple[Database, Database]]:
    """The database on a primary, and the same on a hot standby that cannot decode (PostgreSQL 15)."""
    primary = cluster_factory()
    database = database_factory(cluster=primary)
    fill(database, 200)
    with ephemeral_standby(primary) as standby:
        wait_until(
            lambda: database.value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1,
            "the standby streams",
        )
        yield database, database.on(standby)


def test_a_standby_whose_replay_is_paused_is_waited_for(
    pair: tuple[Database, Database], serve: ServerFactory, gateway: GatewayFactory
) -> None:
    primary, standby = pair
    server = serve(primary, QUERY_CONNECTION_STRING=standby.url())
    client = gateway(server)
    wait_equal(client, primary)
    standby.rows("SELECT pg_wal_replay_pause()")
    wait_until(
        lambda: standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused", "replay is paused"
    )
    client.wait(lambda one: len(one.updates) == 200, "its replay")
    primary.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'"
    )
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    end = primary.value("SELECT pg_current_wal_flush_lsn()")
    wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") > 2, "staleness grows")
    assert server.metric("pads_cdc_query_server_replay_lag_bytes") > 0, "and by what"
    assert client.key("app_1") == "key_1", "what the standby has not replayed was never read"
    assert len(client.updates) == 200
    assert not confirmed(primary, end), "and so it is not confirmed"
    standby.rows("SELECT pg_wal_replay_resume()")
    client.wait(lambda one: one.key("app_1") == "new", "the new key")
    wait_equal(client, primary)
    wait_confirmed(primary, end)
    wait_until(lambda: "replay_lag_bytes 0.0" in server.get("/metrics")[1], "nothing is left to replay")


def test_a_recovery_conflict_is_retried_and_no_delete(
    pair: tuple[Database, Database], serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """A vacuum or a lock replayed on the standby cancels what reads there."""
    primary, standby = pair
    standby.cluster.configure({"max_standby_streaming_delay": "0", "hot_standby_feedback": "off"})
    standby.cluster.reload()
    server = serve(primary, QUERY_CONNECTION_STRING=standby.url())
    client = gateway(server)
    wait_equal(client, primary)
    for number in range(20):
        primary.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        # Takes an exclusive lock that is replayed on the standby, in the middle of the ripple's re-query.
        primary.execute("BEGIN; LOCK TABLE portal_applications IN ACCESS EXCLUSIVE MODE; COMMIT")
        primary.execute(f"INSERT INTO portal_applications VALUES ('more_{number}', 'acc_1')")
    wait_equal(client, primary)
    assert not [endpoint_id for endpoint_id, payload in client.updates if payload is None]


def test_the_query_server_is_promoted_and_no_longer_of_our_history(
    pair: tuple[Database, Database], serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Its rows are not read any more: they are another database's now. What is held is held, and said."""
    primary, standby = pair
    server = serve(primary, QUERY_CONNECTION_STRING=standby.url())
    client = gateway(server)
    wait_equal(client, primary)
    standby.cluster.promote()
    standby.execute("DELETE FROM portal_applications")
    primary.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_until(lambda: "timeline" in server.get("/healthz")[1], "it says so")
    assert len(client.map) == 200
    assert server.get("/readyz") == (200, "ok")
