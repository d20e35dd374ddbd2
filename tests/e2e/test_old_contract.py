"""The legacy contract end to end: real Postgres, the real server in its own process, clients of all
generations.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import psycopg2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest, AuthDataUpdatesRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from tests.plugins.server import confirmed, expected, fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory


def test_two_clients_both_get_everything(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Defects 1 and 2 of the predecessor: one channel for all clients."""
    fill(database, 200)
    server = serve(database)
    clients = [gateway(server), gateway(server, refetch=True)]
    for number in range(1, 51):
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
            " WHERE application_id = %s",
            (f"rotated_{number}", f"app_{number}"),
        )
    for client in clients:
        wait_equal(client, database)
        assert client.key("app_1") == "rotated_1"


def test_everything_that_can_happen_to_the_tables(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(database, 100)
    server = serve(database)
    client = gateway(server)
    for statement in (
        "INSERT INTO portal_applications VALUES ('new_1', 'acc_1'), ('new_2', NULL)",
        "INSERT INTO portal_application_settings (application_id, secret_key_required) SELECT 'new_1', true",
        "UPDATE portal_application_settings SET application_id = 'new_2' WHERE application_id = 'new_1'",
        "DELETE FROM portal_application_settings WHERE application_id = 'app_1'",
        """UPDATE accounts SET plan_type = 'plan_7' WHERE id = 'acc_2';
        UPDATE pay_plans SET throughput_limit = 77 WHERE plan_type IN ('plan_2', 'plan_7')""",
        "UPDATE portal_applications SET account_id = 'acc_3' WHERE id = 'app_4'",
        "UPDATE portal_applications SET id = 'renamed' WHERE id = 'app_7'",
        "DELETE FROM portal_applications WHERE id IN ('app_5', 'app_6')",
        """INSERT INTO portal_applications VALUES ('flash', NULL);
        DELETE FROM portal_applications WHERE id = 'flash'""",
        "TRUNCATE portal_application_settings",
        "TRUNCATE portal_applications CASCADE",
        "INSERT INTO portal_applications SELECT 'again_' || g, 'acc_1' FROM generate_series(1, 50) g",
    ):
        database.execute(statement)
        wait_equal(client, database)
    assert server.metric("pads_cdc_decode_errors_total") == 0


def test_a_client_that_never_fetches_again_hears_of_what_it_missed(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Defect 3, across a restart of the server: deletes too, though it was down when they happened."""
    fill(database, 50)
    first = serve(database)
    client = gateway(first)
    wait_equal(client, database)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, database)
    assert first.stop() == 0
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_4'"
    )
    second = serve(database, PORT=str(first.grpc)).wait_ready()
    wait_equal(client, database)
    late = gateway(second, fetch=False)
    wait_equal(late, database)
    deletes = [endpoint_id for endpoint_id, payload in late.updates if payload is None]
    assert sorted(deletes) == ["app_1", "app_2"]
    first_upsert = next(index for index, (_, payload) in enumerate(late.updates) if payload is not None)
    assert late.updates[first_upsert:][0][1] is not None
    assert all(payload is None for _, payload in late.updates[:first_upsert]), "deletes come first"
    assert client.ends
    assert client.ends[0] is grpc.StatusCode.OK, "so ends the stream of a server that shuts down"
    assert set(client.ends[1:]) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, "no other one"


def test_a_stalled_subscriber_costs_nobody_anything(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Defect 4: with nobody reading, the 1,001st update blocked the store."""
    fill(database, 2_000)
    server = serve(database)
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
    stalled = GatewayEndpointsStub(channel).StreamAuthDataUpdates(AuthDataUpdatesRequest())
    next(stalled)  # and never again
    client = gateway(server)
    for round_ in range(5):
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        wait_equal(client, database)
        assert GatewayEndpointsStub(channel).FetchAuthDataSync(AuthDataRequest()).endpoints, round_
    assert server.metric("pads_cdc_subscribers", protocol="gateway_endpoints") == 2
    stalled.cancel()
    channel.close()
    wait_until(
        lambda: server.metric("pads_cdc_subscribers", protocol="gateway_endpoints") == 1,
        "the stalled one is gone",
    )


def test_a_plan_over_20_000_applications_ripples_completely(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(database, 20_000, plans=1, per_account=100)
    client = gateway(serve(database))
    wait_equal(client, database)
    database.execute("UPDATE pay_plans SET throughput_limit = 4242, monthly_relay_limit = 0")
    wait_equal(client, database)
    changed = client.endpoint("app_1")
    assert changed is not None
    assert changed.rate_limiting.throughput_limit == 4242


def test_health_and_reflection_answer(database: Database, serve: ServerFactory) -> None:
    fill(database, 5)
    server = serve(database)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        # Called by path, as any client in any language does it.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        for service in ("", "proto.GatewayEndpoints"):
            request = HealthCheckRequest(service=service)
            serving = partial(_serves, check, request)
            wait_until(serving, f"serving {service!r}", 5)
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        [answer] = reflect(iter([ServerReflectionRequest(list_services="")]))
        names = {service.name for service in answer.list_services_response.service}
    assert "proto.GatewayEndpoints" in names
    assert server.get("/livez")[0] == 200
    assert server.get("/readyz") == (200, "ok")
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "healthy")


def _serves(check: Any, request: HealthCheckRequest) -> bool:
    return bool(check(request).status == HealthCheckResponse.SERVING)


def test_calls_wait_for_the_first_map(database: Database, serve: ServerFactory) -> None:
    """An empty map from the fetch crashes the oldest clients at their first update."""
    fill(database, 10)
    blocker = psycopg2.connect(database.url())
    with blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
    answers: list[int] = []
    # The lock is taken away while the server is still trying: its start-up checks would fail otherwise.
    released = threading.Timer(1.5, blocker.close)
    released.start()
    server = serve(database)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        answers.append(
            len(GatewayEndpointsStub(channel).FetchAuthDataSync(AuthDataRequest(), timeout=20).endpoints)
        )
    released.join()
    assert answers == [10]


@pytest.mark.own_cluster
def test_the_visibility_trap(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """A commit that waits for a standby is decoded while re-queries still see the old row."""
    fill(database, 20)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    wait_until(
        lambda: server.metric("pads_cdc_replication_lag_bytes", stage="confirmed") == 0, "all confirmed"
    )
    database.cluster.configure({"synchronous_standby_names": "nobody"})
    database.cluster.reload()
    wait_until(lambda: database.value("SHOW synchronous_standby_names") == "nobody", "the reload")

    writer = database.connect()
    waiting = threading.Thread(
        target=writer.cursor().execute,
        args=("UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'",),
    )
    waiting.start()
    try:
        wait_until(
            lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == 1,
            "the commit hangs",
        )
        # It is decoded: the stream is past it. But nobody can see it, so it counts for nothing yet.
        [(commit_end,)] = database.rows("SELECT pg_current_wal_flush_lsn()")
        received = (
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pads-cdc' AND sent_lsn >= %s"
        )
        wait_until(lambda: database.value(received, (commit_end,)) == 1, "the commit is sent to us")
        wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") > 1.5, "staleness grows")
        assert client.key("app_1") == "key_1"
        confirmed = "SELECT confirmed_flush_lsn < %s FROM pg_replication_slots"
        assert database.value(confirmed, (commit_end,)), (
            "confirmed before it was visible: lost if we crash now"
        )
    finally:  # a commit that hangs would hang the end of the test as well
        database.cluster.configure({"synchronous_standby_names": ""})
        database.cluster.reload()
        waiting.join(30)
    client.wait(lambda one: one.key("app_1") == "new", "the new key")
    wait_until(lambda: not database.value(confirmed, (commit_end,)), "confirmed at last")
    assert expected(database) == client.map


@pytest.mark.parametrize("number", [1, 200])
def test_sigterm_ends_within_five_seconds_and_confirms(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, number: int
) -> None:
    fill(database, 50)
    server = serve(database)
    client = gateway(server)
    for _ in range(number):
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    end = database.value("SELECT pg_current_wal_flush_lsn()")  # before a SELECT prunes pages and adds to it
    wait_equal(client, database)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 5
    assert confirmed(database, end)
    client.wait(lambda one: grpc.StatusCode.OK in one.ends, "the end of its stream")
