"""A standby takes its primary's place: in mid-stream, with what was lost, and for those that come from it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

import psycopg2
import pytest
from pads_cdc_client import Replica
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.state.token import Token
from tests.e2e.test_gate import local, standby_away
from tests.plugins.feed import opening
from tests.plugins.server import expected, fill, wait_confirmed, wait_equal, wait_until
from tests.support.cluster import ephemeral_standby
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.feed import FeedFactory, StreamFactory
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory

SET_KEY = (
    "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
    " WHERE application_id = 'app_1'"
)


@contextmanager
def writing(database: Database, first: int) -> Iterator[None]:
    """Count the key of app_1 up, without a pause, until the context ends or the server does."""
    ended = threading.Event()

    def write() -> None:
        with suppress(psycopg2.Error), database.connect().cursor() as cursor:
            for number in count(first):
                if ended.is_set():
                    return
                cursor.execute(SET_KEY, (f"v{number}",))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join(30)


def numbers(client: Gateway) -> list[int]:
    """Return the numbers in the keys of app_1 that the client was sent, in their order."""
    keys = [
        GatewayEndpoint.FromString(payload).auth.static_api_key.api_key
        for endpoint_id, payload in list(client.updates)
        if endpoint_id == "app_1" and payload
    ]
    return [int(key[1:]) for key in keys if key.startswith("v")]


def newest(client: Gateway) -> int:
    """Return the number in the key that the client holds, 0 before the first."""
    key = client.key("app_1") or ""
    return int(key[1:]) if key.startswith("v") else 0


def token_at(server: Server, stream: StreamFactory, token: bytes = b"") -> tuple[Token, str]:
    """Open a stream; returns the token that it comes to, and why it was reset, empty if it was resumed."""
    one = stream(server, opening(token))
    opened = one.until("opened").opened
    reset = pb.ResetReason.Name(opened.reset.reason) if opened.HasField("reset") else ""
    while True:
        message = one.read()
        raw = message.batch.token if message.HasField("batch") else message.progress.token
        parsed = Token.parse(raw)
        if parsed is not None and parsed.complete:
            one.close()
            return parsed, reset


@pytest.mark.both_plugins(quick=False)
def test_a_promotion_in_mid_stream(
    replicated: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    stream: StreamFactory,
    feed: FeedFactory,
) -> None:
    """Slot and queries are on the standby. Nobody is reset, nothing goes back, everybody ends equal."""
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 200)
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = serve(standby, PRIMARY_CONNECTION_STRING=primary.url(), PROGRESS_INTERVAL="200ms")
    clients = [gateway(server), gateway(server, refetch=True)]
    watching = feed(server)
    wait_equal(clients[0], primary)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    before, _ = token_at(server, stream)
    assert before.timeline == 1

    with writing(primary, 1):
        clients[0].wait(lambda one: newest(one) >= 20, "a key of many")
        replicated.primary.crash()
        replicated.standby.promote()
    with writing(standby, 1_000_000):
        clients[0].wait(lambda one: newest(one) >= 1_000_020, "a key of many on the new primary")
    standby.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    for client in clients:
        wait_equal(client, standby)
    wait_until(lambda: dict(watching.endpoints) == clients[0].map, "the feed has it")
    after, reset = token_at(server, stream, before.encode())
    assert (after.timeline, after.epoch, reset) == (2, before.epoch, ""), "its own tokens stay good"
    assert server.metric("pads_cdc_feed_resets_total", reason="timeline") == 0
    assert server.metric("pads_cdc_audit_drift_total") == 0
    for client in clients:
        assert numbers(client) == sorted(numbers(client)), "it went back"
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")


def test_fail_over_with_lost_transactions(
    replicated: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    stream: StreamFactory,
    tmp_path: Path,
) -> None:
    """The standby is promoted while it is behind. What only the old primary had is gone, everywhere; tokens
    from before are good, and those that stand for what was lost are not.
    """
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 100)
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    with Proxy(replicated.primary.port) as proxy:
        url = primary.url().replace(f":{replicated.primary.port}/", f":{proxy.port}/")
        # If both servers used one slot, each could confirm transactions that the other has not read.
        server = serve(url, PROGRESS_INTERVAL="200ms", SLOT_NAME="another")
        other = serve(
            standby,
            PRIMARY_CONNECTION_STRING=primary.url(),
            STATE_FILE=str(tmp_path / "other"),
            PROGRESS_INTERVAL="200ms",
        )
        wait_until(lambda: other.metric("pads_cdc_source_mode", mode="streaming") == 1, "its slot is made")
        client, abroad = gateway(server), gateway(other)
        for number in range(3):  # a token is good elsewhere from when that has begun to follow
            primary.execute(SET_KEY, (f"v{number}",))
        abroad.wait(lambda one: newest(one) == 2, "what both have")
        wait_equal(client, primary)
        common, _ = token_at(server, stream)

        standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        standby.cluster.reload()
        wait_until(lambda: not standby.rows("SELECT FROM pg_stat_wal_receiver"), "the standby is cut off")
        primary.execute(SET_KEY, ("v1000",))
        primary.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
        primary.execute("INSERT INTO portal_applications VALUES ('lost', 'acc_1')")
        wait_equal(client, primary)
        lost, _ = token_at(server, stream)

        replicated.primary.crash()
        standby.cluster.promote()
        proxy.target = standby.cluster.port
        # Until this reconcile, the server does not know the parents. It would replace the transaction by the
        # reconcile, and would accept only tokens from after the transaction.
        other.wait_log("map reconciled", reason="timeline")
        standby.execute(SET_KEY, ("v4",))
        abroad.wait(lambda one: newest(one) == 4, "the new primary's")
        for one in (client, abroad):
            wait_equal(one, standby)
    assert "lost" not in client.map
    assert "app_2" in client.map
    for judge in (other, server):
        assert token_at(judge, stream, lost.encode())[1] == "RESET_REASON_TIMELINE"
    assert token_at(other, stream, common.encode())[1] == "", "one from before the switch is good"
    assert token_at(other, stream)[0].timeline == 2
    assert other.metric("pads_cdc_feed_resets_total", reason="timeline") == 1


@pytest.mark.soak
def test_a_new_primary_whose_slot_delivers_again_more_than_there_is_room_for(
    replicated: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """A prepared transaction is older than what the standby has shown, so no read counts before the slot has
    delivered that. It has keys of 80 MiB to deliver, since a crash of the standby has undone their
    confirmation.
    """
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 200)
    primary.execute("ALTER TABLE portal_application_changes ALTER portal_app_id TYPE TEXT")
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = serve(standby, PRIMARY_CONNECTION_STRING=primary.url())
    client = gateway(server)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot is made")
    wait_equal(client, primary)
    primary.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'old'")
    for number in range(16):
        primary.execute(
            "INSERT INTO portal_application_changes (portal_app_id) VALUES (%s || repeat('s', 5 << 20))",
            [f"{number}"],
        )
    primary.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'"
    )
    wait_equal(client, primary)
    server.process.send_signal(signal.SIGSTOP)
    replicated.standby.crash()
    replicated.standby.start()
    replicated.wait_replayed()
    replicated.primary.crash()
    replicated.standby.promote()
    server.process.send_signal(signal.SIGCONT)
    standby.execute(
        "UPDATE portal_application_settings SET secret_key = 'newer' WHERE application_id = 'app_1'"
    )
    wait_equal(client, standby)
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")


@pytest.mark.parametrize("how", ["under way", "by a restart"])
@pytest.mark.own_cluster
def test_queries_that_move_from_a_standby_to_its_primary_never_go_back(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    how: str,
) -> None:
    """A commit hangs on the primary, invisible, and its standby shows it."""
    fill(database, 40)
    with ephemeral_standby(database.cluster) as standby, Proxy(standby.port) as proxy:
        through = database.on(standby).url().replace(f":{standby.port}/", f":{proxy.port}/")
        server = serve(database, QUERY_CONNECTION_STRING=through)
        client = gateway(server)
        wait_equal(client, database)
        with standby_away(database) as commit:
            commit(SET_KEY.replace("%s", "'v2'"))
            client.wait(lambda one: newest(one) == 2, "what the standby shows already")
            assert database.value(
                "SELECT secret_key <> 'v2' FROM portal_application_settings WHERE application_id = 'app_1'"
            )
            wait_confirmed(database, database.value("SELECT pg_current_wal_flush_lsn()"))
            if how == "under way":
                proxy.target = database.cluster.port
                proxy.cut()
            else:
                assert server.stop() == 0
                server = serve(database, PORT=str(server.grpc))
            local(database, "UPDATE portal_applications SET account_id = 'acc_2' WHERE id = 'app_1'")
            wait_until(lambda: "moved from a standby" in server.get("/healthz")[1], "it says so")
        wait_equal(client, database)
        wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")
        assert numbers(client) == sorted(numbers(client)), "it went back"


def test_a_token_from_beyond_the_switch_hides_nothing_of_the_new_timeline(
    replicated: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    stream: StreamFactory,
    tmp_path: Path,
) -> None:
    """WAL of another database carries a token beyond the switch; the same positions come again on the new
    timeline, and a key is rotated there. A client that brings the token to another server is sent that key.
    """
    primary = database_factory(cluster=replicated.primary)
    elsewhere = database_factory(cluster=replicated.primary)
    fill(primary, 50)
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = serve(primary, PROGRESS_INTERVAL="200ms")
    other = serve(
        standby,
        PRIMARY_CONNECTION_STRING=primary.url(),
        STATE_FILE=str(tmp_path / "other"),
        PROGRESS_INTERVAL="200ms",
    )
    wait_until(lambda: other.metric("pads_cdc_source_mode", mode="streaming") == 1, "its slot is made")
    abroad = gateway(other)
    primary.execute(SET_KEY, ("v1",))
    abroad.wait(lambda one: newest(one) == 1, "what both have")
    replicated.wait_replayed()

    standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    standby.cluster.reload()
    wait_until(lambda: not standby.rows("SELECT FROM pg_stat_wal_receiver"), "the standby is cut off")
    elsewhere.execute("CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
    end = primary.value("SELECT pg_current_wal_flush_lsn() - '0/0'")
    replica, watching = Replica(), stream(server, opening())
    while (held := Token.parse(replica.token)) is None or held.position < end:
        replica.apply(watching.read())
    assert replica.complete
    watching.close()

    replicated.primary.crash()
    standby.cluster.promote()
    other.wait_metric(1, "pads_cdc_reconcile_total", reason="timeline")
    standby.execute(SET_KEY, ("v2",))
    abroad.wait(lambda one: newest(one) == 2, "the rotated key")
    assert held.seen < standby.value("SELECT pg_current_wal_flush_lsn() - '0/0'") < held.position
    watching = stream(other, opening(replica.token))
    opened = watching.read()
    assert opened.opened.HasField("resumed"), "nothing that it holds was lost"
    replica.apply(opened)
    while replica.endpoints != expected(standby):
        replica.apply(watching.read())
        assert not replica.mismatches
