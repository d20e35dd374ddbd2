"""Where it is deployed: the slot and the re-queries on a physical standby, the writes on its primary."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc import lsn
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from server.payload import encode
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.feed import FeedFactory
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated
    from tests.plugins.server import GatewayFactory, ServerFactory


@contextmanager
def nudged(primary: Database) -> Iterator[None]:
    """Log the running transactions again and again: a slot on a standby is made once they arrive there."""
    enough = threading.Event()

    def snapshot_request() -> None:
        with primary.connect().cursor() as cursor:
            while not enough.wait(0.2):
                cursor.execute("SELECT pg_log_standby_snapshot()")

    nudging = threading.Thread(target=snapshot_request)
    nudging.start()
    try:
        yield
    finally:
        enough.set()
        nudging.join(30)


def test_what_a_standby_has_received_bounds_what_it_may_show(
    replicated: Replicated, database_factory: DatabaseFactory
) -> None:
    primary = database_factory(cluster=replicated.primary)
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = QueryServer(Address(standby.url, "TEST"), load("grove"), "public", encode)
    standby.rows("SELECT pg_wal_replay_pause()")
    wait_until(
        lambda: standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused", "replay is paused"
    )
    primary.execute("INSERT INTO portal_applications VALUES ('app', NULL)")
    end = lsn.parse(primary.value("SELECT pg_current_wal_flush_lsn()::text"))
    wait_until(lambda: server.evidence().bound >= end, "received")
    assert server.evidence().seen < end
    standby.rows("SELECT pg_wal_replay_resume()")
    wait_until(lambda: server.evidence().seen >= end, "replayed")
    server.close()


@pytest.mark.both_plugins
def test_a_standby_is_followed(
    standby17: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 300)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    assert standby.value("SELECT pg_is_in_recovery()")

    server = serve(standby)
    with nudged(primary):
        clients = [gateway(server), gateway(server, refetch=True)]
        wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    wait_equal(clients[0], primary)
    assert (
        standby.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pads_cdc' AND active")
        == 1
    )
    assert primary.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pads_cdc'") == 0

    for number in range(1, 31):
        primary.execute(
            "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
            " WHERE application_id = %s",
            (f"rotated_{number}", f"app_{number}"),
        )
        primary.execute(
            "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = 'plan_3'"
        )
    primary.execute("UPDATE accounts SET plan_type = 'plan_7' WHERE id IN ('acc_1', 'acc_2')")
    primary.execute(
        "UPDATE portal_application_settings SET application_id = 'app_7' WHERE application_id = 'app_8'"
    )
    primary.execute("DELETE FROM portal_applications WHERE id IN ('app_9', 'app_10')")
    primary.execute("UPDATE portal_applications SET id = 'renamed' WHERE id = 'app_14'")
    primary.execute(
        "INSERT INTO portal_applications SELECT 'new_' || g, 'acc_' || g FROM generate_series(1, 9) g"
    )
    for client in clients:
        wait_equal(client, primary)
        assert client.key("app_1") == "rotated_1"
    assert server.metric("pads_cdc_decode_errors_total") == 0
    wait_until(
        lambda: server.metric("pads_cdc_replication_lag_bytes", stage="confirmed") == 0, "all confirmed"
    )
    assert server.metric("pads_cdc_replication_lag_seconds") < 5
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "and all is well")

    primary.execute("TRUNCATE portal_application_settings")
    for client in clients:
        wait_equal(client, primary)
    assert server.stop() == 0


def test_what_happened_while_we_were_down_is_there_after_the_restart(
    standby17: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """The standby restarts meanwhile too, and forgets what was confirmed: it delivers again."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 50)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    server = serve(standby)
    with nudged(primary):
        client = gateway(server)
        wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    primary.execute(
        "UPDATE portal_application_settings SET secret_key = 'old' WHERE application_id = 'app_1'"
    )
    client.wait(lambda one: one.key("app_1") == "old", "the old key")
    assert server.stop() == 0

    standby17.standby.restart()
    primary.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'"
    )
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    again = serve(standby, PORT=str(server.grpc))
    client.wait(lambda one: one.key("app_1") == "new", "the new key")
    wait_equal(client, primary)
    seen = [b"new" in (payload or b"") for endpoint_id, payload in client.updates if endpoint_id == "app_1"]
    assert seen == sorted(seen), "it went back to the old key"
    assert again.stop() == 0


def test_a_standby_that_replays_again_is_waited_for(
    standby17: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    feed: FeedFactory,
) -> None:
    """After a crash it is what it was long ago, and has lost nothing: no token is given up for that."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 50)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    server = serve(standby)
    with nudged(primary):
        wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    client, held = gateway(server), feed(server)
    rotate = "UPDATE portal_application_settings SET secret_key_required = true, secret_key = %s WHERE id = 1"
    primary.execute("CHECKPOINT")
    standby17.wait_replayed()
    standby.execute("CHECKPOINT")  # what comes now has to be replayed again after a crash
    for number in range(2, 7):
        primary.execute(rotate, (f"key_{number}",))
        wait_equal(client, primary)
    wait_until(lambda: held.ready and held.endpoints == client.map, "the feed has it too")

    standby.cluster.stop("immediate")
    standby.cluster.configure({"recovery_min_apply_delay": "1h"})  # no commit is replayed
    standby.cluster.start()
    primary.execute(rotate, ("key_7",))
    server.wait_log("source lost, reconnecting", reason="standby_behind")
    wait_until(lambda: "standby" in server.get("/healthz")[1], "it says so")
    assert server.get("/readyz") == (200, "ok"), "and serves what it holds"
    server.kill()
    again = serve(standby, PORT=str(server.grpc))  # which knows it from its state file alone
    again.wait_log("source lost, reconnecting", reason="standby_behind")
    wait_until(
        lambda: "has not replayed" in again.get("/healthz")[1], "nothing older is read to fill the map"
    )

    standby.cluster.configure({"recovery_min_apply_delay": "0"})
    standby.cluster.reload()
    client.wait(lambda one: one.key("app_1") == "key_7", "the newest key")
    wait_equal(client, primary)
    wait_until(lambda: held.endpoints == client.map, "the feed goes on")
    keys = [GatewayEndpoint.FromString(payload or b"") for key, payload in client.updates if key == "app_1"]
    seen = [one.auth.static_api_key.api_key for one in keys]
    assert seen == sorted(seen), "it went back"
    assert held.resets == 1, "the tokens stayed good"


@pytest.mark.parametrize("replicated", ["18"], indirect=True)
def test_a_slot_waits_for_an_idle_primary_and_says_so(
    replicated: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Polled meanwhile; then the primary goes for a while, and nothing is lost by it."""
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 20)
    replicated.wait_replayed()
    server = serve(primary.on(replicated.standby))
    client = gateway(server)
    wait_equal(client, primary)
    wait_until(lambda: "SELECT pg_log_standby_snapshot()" in server.get("/healthz")[1], "what to type")
    assert server.stop() == 0
    role = primary.create_role()
    by_role = primary.url(role.name, role.password)
    server = serve(primary.on(replicated.standby), PRIMARY_CONNECTION_STRING=by_role, PORT=str(server.grpc))
    wait_until(lambda: "GRANT EXECUTE ON FUNCTION" in server.get("/healthz")[1], "what it lacks")
    with nudged(primary):
        wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")

    replicated.primary.stop()
    wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") == 0, "exact, as the standby has it")
    assert server.get("/healthz") == (200, "ok")
    replicated.primary.start()
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, primary)
    assert server.metric("pads_cdc_source_reconnects_total") == 0


@pytest.mark.parametrize("replicated", ["17"], indirect=True)
def test_a_slot_on_a_standby_that_is_invalidated(
    replicated: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """First by a vacuum of the primary's catalog, without feedback; then by its wal_level. Polled while there
    can be no slot, and made anew as soon as there can.
    """
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 20)
    standby = primary.on(replicated.standby)
    standby.cluster.configure({"hot_standby_feedback": "off", "max_standby_streaming_delay": "1s"})
    standby.cluster.reload()
    replicated.wait_replayed()
    server = serve(standby, PRIMARY_CONNECTION_STRING=primary.url())
    client = gateway(server)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")

    held = "SELECT count(*) FROM pg_replication_slots WHERE coalesce(xmin, catalog_xmin) IS NOT NULL"
    wait_until(lambda: primary.value(held) == 0, "the primary no longer waits for the standby")
    primary.execute("CREATE TABLE churn (content text)")
    primary.execute("DROP TABLE churn")
    primary.execute("VACUUM FULL pg_class")
    primary.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    server.wait_metric(1, "pads_cdc_source_reconnects_total", reason="slot_lost")
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made anew")
    wait_equal(client, primary)

    primary.cluster.configure({"wal_level": "replica"})
    primary.cluster.restart()
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="polling") == 1, "polled")
    wait_equal(client, primary)
    wait_until(lambda: "wal_level" in server.get("/healthz")[1], "it says why")
    primary.cluster.configure({"wal_level": "logical"})
    primary.cluster.restart()
    primary.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "streaming again")
    wait_equal(client, primary)
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")
