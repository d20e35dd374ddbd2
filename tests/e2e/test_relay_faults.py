"""What a broker may do to relays: lose, repeat, stall, come back older, be purged, be full; and two leaders
at once.

A client never sees a map that did not exist, and none that is older than what it had.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import nats
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc.failpoints import PUBLISHER_POINTS, RELAY_POINTS
from tests.e2e.test_pair import free_port, wait_mirrored, wait_streaming
from tests.e2e.test_relay import follows
from tests.plugins.feed import status, wait_exact
from tests.plugins.server import DEADLINE, expected, fill, wait_equal, wait_until
from tests.support.certificates import write_secret
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from nats.js import JetStreamContext
    from pads_cdc_client import EndpointFeed
    from pads_cdc_client.replica import Change

    from tests.plugins.feed import FeedFactory
    from tests.plugins.nats import Node, NodeFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, RelayFactory, Server, ServerFactory

STREAM = "pads_cdc"


def by_hand(node: Node, what: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
    """Do something to the stream, as an operator might."""

    async def run() -> Any:
        client = await nats.connect(node.url, allow_reconnect=False)
        try:
            return await what(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


class Key:
    """A key that only ever grows, and a client that must never see it shrink."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.number = 0
        self.seen: list[int] = []
        self._lock = threading.Lock()

    def rotate(self, times: int = 1) -> None:
        for _ in range(times):
            self.number += 1
            self._database.execute(
                "UPDATE portal_application_settings SET secret_key = %(key)s WHERE application_id = 'app_1'",
                {"key": f"{self.number:06}"},
            )

    def see(self, change: Change) -> None:
        if change.endpoint_id == "app_1" and change.after is not None:
            key = GatewayEndpoint.FromString(change.after).auth.static_api_key.api_key
            if key.isdigit():
                with self._lock:
                    self.seen.append(int(key))

    def check(self) -> None:
        assert self.seen == sorted(self.seen)


def _proved(client: EndpointFeed) -> bool:
    return client.proofs > 0


def wait_published(leader: Server) -> None:
    """Return when everything is in the stream."""
    wait_until(
        lambda: (
            leader.metric("pads_cdc_broker_lag_revisions") == 0
            and leader.metric("pads_cdc_broker_connected") == 1
        ),
        "everything is published",
    )


def test_a_broker_that_comes_back_older_takes_nobody_back(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    fill(database, 200)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    first = relay(BROKER_URL=nats.url).wait_ready()
    client = feed(first, on_change=key.see)
    key.rotate(3)
    follows(first, leader)
    nats.stop()
    older = nats.copy("older")
    nats.start()
    key.rotate(5)
    wait_exact(client, expected(database))
    nats.stop()
    nats.restore(older)
    nats.start()
    key.rotate(2)
    wait_exact(client, expected(database))
    second = relay(BROKER_URL=nats.url).wait_ready()
    for one in (first, second):
        follows(one, leader)
    key.check()
    assert leader.metric("pads_cdc_broker_fenced_total") == 0
    assert first.metric("pads_cdc_relay_digest_mismatches_total") == 0


@pytest.mark.parametrize("harm", ["purge", "delete"])
def test_a_stream_that_somebody_empties_is_filled_again(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats: Node,
    harm: str,
) -> None:
    fill(database, 200)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    first = relay(BROKER_URL=nats.url).wait_ready()
    client = feed(first)
    follows(first, leader)
    if harm == "purge":
        by_hand(nats, lambda js: js.purge_stream(STREAM))
    else:
        by_hand(nats, lambda js: js.delete_stream(STREAM))
    wait_exact(client, expected(database))
    second = relay(BROKER_URL=nats.url).wait_ready()  # without any change of the database
    follows(second, leader)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_exact(client, expected(database))
    for one in (first, second):
        follows(one, leader)


def test_pages_that_are_lost_are_noticed_and_made_up_for(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    """JetStream may lose acknowledged messages: here an operator's hand takes one out of the middle."""
    fill(database, 200)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    first = relay(BROKER_URL=nats.url).wait_ready()
    client = feed(first, on_change=key.see)
    follows(first, leader)
    first.process.send_signal(signal.SIGSTOP)
    key.rotate()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_3'")
    wait_published(leader)

    async def lose(js: JetStreamContext) -> None:
        last = (await js.get_last_msg(STREAM, f"{STREAM}.page")).seq
        assert last is not None
        await js.delete_msg(STREAM, last)

    by_hand(nats, lose)
    key.rotate()
    first.process.send_signal(signal.SIGCONT)
    wait_exact(client, expected(database))
    follows(first, leader)
    key.check()


def test_a_full_stream_is_made_room_in(
    database: Database, serve: ServerFactory, relay: RelayFactory, gateway: GatewayFactory, nats: Node
) -> None:
    fill(database, 500)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    follows(one, leader)

    async def narrow(js: JetStreamContext) -> None:
        info = await js.stream_info(STREAM)
        info.config.max_bytes = info.state.bytes + 40_000
        await js.update_stream(info.config)

    by_hand(nats, narrow)
    client = gateway(leader)
    for limit in range(6):
        database.execute("UPDATE pay_plans SET throughput_limit = %(limit)s", {"limit": limit})
    wait_equal(client, database)
    follows(one, leader)
    assert leader.metric("pads_cdc_broker_snapshots_total") > 1


@pytest.mark.soak
def test_a_broker_whose_disk_is_full_holds_nobody_up(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats_node: NodeFactory,
    small_disk: Callable[[Path], None],
) -> None:
    """JetStream turns itself off then, until its restart. Relays keep the map that they have."""
    fill(database, 200)
    key, node = Key(database), nats_node()
    small_disk(node.store)
    node.start()
    leader = serve(database, BROKER_URL=node.url).wait_ready()
    one = relay(BROKER_URL=node.url).wait_ready()
    at_leader, at_relay = feed(leader), feed(one, on_change=key.see)
    follows(one, leader)
    ballast = node.store / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(16 << 20))

    def said() -> bool:
        key.rotate()
        return leader.metric("pads_cdc_broker_connected") == 0

    wait_until(said, "the leader says that it cannot publish", 60)
    wait_exact(at_leader, expected(database))
    assert one.get("/readyz")[0] == 200
    ballast.unlink()
    node.stop()
    node.start()
    wait_exact(at_relay, expected(database))
    follows(one, leader)
    key.check()


def test_a_client_goes_from_leader_to_relay_and_back_with_its_token(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    fill(database, 300)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    relays = [relay(BROKER_URL=nats.url).wait_ready() for _ in range(2)]
    token, resets = b"", 0
    endpoints: dict[str, bytes] = {}
    for hop in range(9):
        server = [leader, *relays][hop % 3]
        client = feed(server, on_change=key.see, endpoints=endpoints, resume_token=token)
        key.rotate(3)
        wait_exact(client, expected(database))
        wait_until(partial(_proved, client), "a proof")
        resets += client.resets
        client.close()
        token, endpoints = client.resume_token, dict(client.endpoints)
    assert resets == 1, "the first one, which had no token"
    key.check()


def test_a_token_that_is_ahead_of_a_relay_waits_and_is_never_taken_back(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    fill(database, 100)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    follows(one, leader)
    nats.signal(signal.SIGSTOP)
    client = feed(leader, on_change=key.see)
    key.rotate(3)
    wait_exact(client, expected(database))
    wait_until(lambda: client.proofs > 0, "a proof")
    client.close()
    behind = feed(one, on_change=key.see, endpoints=client.endpoints, resume_token=client.resume_token)
    assert dict(behind.endpoints) == expected(database)
    nats.signal(signal.SIGCONT)
    key.rotate()
    wait_exact(behind, expected(database))
    assert behind.resets == 0
    key.check()


def test_a_leader_that_lost_its_state_file_is_another_line(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    gateway: GatewayFactory,
    nats: Node,
    tmp_path: Path,
) -> None:
    """And clients of the legacy contract are told what was deleted while nobody looked: the relay knows."""
    fill(database, 100)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    client, legacy = feed(one, on_change=key.see), gateway(one)
    follows(one, leader)
    leader.kill()
    for file in tmp_path.glob("state*"):
        file.unlink()
    key.rotate()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    wait_exact(client, expected(database))
    wait_equal(legacy, database)
    follows(one, leader)
    key.check()


def test_a_frozen_leader_that_wakes_up_publishes_nothing(
    database_factory: DatabaseFactory,
    cluster_factory: ClusterFactory,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats: Node,
    tmp_path: Path,
) -> None:
    cluster = cluster_factory({"wal_sender_timeout": "2s"})
    database = database_factory(cluster=cluster)
    fill(database, 200)
    key, other = Key(database), free_port()
    settings = {"BROKER_URL": nats.url}
    first = serve(database, PEER_ADDRESS=f"127.0.0.1:{other}", STATE_FILE=str(tmp_path / "one"), **settings)
    wait_streaming(first)
    second = serve(
        database,
        PORT=str(other),
        PEER_ADDRESS=f"127.0.0.1:{first.grpc}",
        STATE_FILE=str(tmp_path / "two"),
        **settings,
    )
    wait_mirrored(first, second)
    one = relay(**settings).wait_ready()
    client = feed(one, on_change=key.see)
    key.rotate()
    follows(one, first)
    first.process.send_signal(signal.SIGSTOP)
    wait_streaming(second)
    second.wait_ready()
    key.rotate(3)
    wait_exact(client, expected(database))
    follows(one, second)
    first.process.send_signal(signal.SIGCONT)
    wait_until(
        lambda: first.metric("pads_cdc_standing_by") == 1 or first.metric("pads_cdc_broker_fenced_total") > 0,
        "the first one has noticed",
    )
    key.rotate(3)
    wait_exact(client, expected(database))
    follows(one, second)
    assert second.metric("pads_cdc_broker_fenced_total") == 0
    assert client.resets == 1, "tokens stay good over the takeover"
    key.check()


def test_sealed_pages_show_the_broker_nothing(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats: Node,
    tmp_path: Path,
) -> None:
    fill(database, 50)
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'hunter22' WHERE application_id = 'app_1'"
    )
    old, new = (base64.b64encode(bytes([number]) * 32).decode() for number in range(2))
    keys, relay_keys = tmp_path / "keys", tmp_path / "relay_keys"
    for file in (keys, relay_keys):
        write_secret(file, old)
    leader = serve(database, BROKER_URL=nats.url, BROKER_SEAL_FILE=str(keys)).wait_ready()
    one = relay(BROKER_URL=nats.url, BROKER_SEAL_FILE=str(relay_keys)).wait_ready()
    client = feed(one)
    wait_exact(client, expected(database))
    without = relay(BROKER_URL=nats.url)
    wait_until(lambda: "BROKER_SEAL_FILE" in without.get("/healthz")[1], "it says what it lacks")
    assert without.get("/readyz")[0] == 503

    # As docs/security.md says: the new key to the relays, then to the leader as the first one.
    relay_keys.write_text("no key\n")
    wait_until(lambda: "broker_seal" in one.get("/healthz")[1], "it says that this is no key")
    relay_keys.write_text(f"{old}\n{new}\n")
    keys.write_text(f"{new}\n{old}\n")
    with_new = b"\x01" + hashlib.sha256(b"\x01" * 32).digest()[:8]

    def sealed_anew() -> bool:
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        return bool(
            by_hand(nats, lambda js: js.get_last_msg(STREAM, f"{STREAM}.page")).data.startswith(with_new)
        )

    wait_until(sealed_anew, "a page is sealed with the new key")
    for file in (keys, relay_keys):
        file.write_text(f"{new}\n")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_exact(client, expected(database))
    follows(one, leader)
    wait_until(lambda: "broker_seal" not in one.get("/healthz")[1], "it says no more")
    nats.stop()
    stored = b"".join(path.read_bytes() for path in nats.store.rglob("*") if path.is_file())
    assert len(stored) > 5_000
    for secret in (b"hunter22", b"key_", b"app_1"):
        assert secret not in stored


def _work(database: Database, key: Key, number: int) -> None:
    """Do what makes pages of every kind: a key, a delete, a plan that ripples."""
    key.rotate()
    database.execute("DELETE FROM portal_applications WHERE id = %(id)s", {"id": f"app_{number + 10}"})
    database.execute("UPDATE pay_plans SET throughput_limit = %(limit)s", {"limit": 1000 + number})


def _work_until_killed(database: Database, key: Key, doomed: Server) -> None:
    until = time.monotonic() + DEADLINE
    while doomed.process.poll() is None:
        assert time.monotonic() < until, "it is never killed"
        _work(database, key, 0)
    assert doomed.join() == -signal.SIGKILL


def some(points: Sequence[str], *quick: str) -> list[Any]:
    """Return all points as parameters, of which `make test` takes the ``quick`` ones."""
    return [pytest.param(point, marks=() if point in quick else pytest.mark.soak) for point in points]


@pytest.mark.parametrize("point", some(PUBLISHER_POINTS, "page_stored", "snapshot_complete"))
def test_a_leader_that_is_killed_at_any_point_goes_on_where_the_stream_ends(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats: Node,
    point: str,
) -> None:
    fill(database, 150)
    key = Key(database)
    first = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    client = feed(one, on_change=key.see)
    follows(one, first)
    for hit in (1, 2):
        first.kill()
        if point.startswith("snapshot"):  # those come with a stream that has none
            by_hand(nats, lambda js: js.purge_stream(STREAM))
        armed = {"PADS_CDC_FAILPOINT": f"{point}:{1 if point.startswith('snapshot') else hit}"}
        doomed = serve(database, BROKER_URL=nats.url, **armed)
        _work_until_killed(database, key, doomed)
        first = serve(database, BROKER_URL=nats.url).wait_ready()
        _work(database, key, 10 + hit)
        wait_exact(client, expected(database))
        follows(one, first)
    wait_exact(feed(relay(BROKER_URL=nats.url).wait_ready()), expected(database))
    key.check()
    assert one.metric("pads_cdc_relay_digest_mismatches_total") == 0


@pytest.mark.parametrize("point", some(RELAY_POINTS, "page_received", "page_applied"))
def test_a_relay_that_is_killed_at_any_point_comes_back(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats: Node,
    point: str,
) -> None:
    fill(database, 150)
    key = Key(database)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    for hit in (1, 3):
        doomed = relay(BROKER_URL=nats.url, PADS_CDC_FAILPOINT=f"{point}:{hit}")
        _work_until_killed(database, key, doomed)
        again = relay(BROKER_URL=nats.url, PORT=str(doomed.grpc)).wait_ready()
        wait_exact(feed(again, on_change=key.see), expected(database))
        follows(again, leader)
        again.stop()
    key.check()


def test_networks_that_are_cut_and_stall_at_each_edge(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    fill(database, 100)
    key = Key(database)
    with Proxy(nats.port) as of_leader, Proxy(nats.port) as of_relay:
        leader = serve(database, BROKER_URL=f"nats://127.0.0.1:{of_leader.port}").wait_ready()
        one = relay(BROKER_URL=f"nats://127.0.0.1:{of_relay.port}").wait_ready()
        client = feed(one, on_change=key.see)
        for proxy in (of_leader, of_relay):
            _harm(
                proxy,
                key,
                lambda: wait_exact(client, expected(database)),
                restarts=lambda: _restarts(leader, one),
                connected=lambda: (
                    leader.metric("pads_cdc_broker_connected") * one.metric("pads_cdc_relay_connected")
                ),
            )
        follows(one, leader)
    key.check()


@pytest.mark.soak
def test_the_network_between_a_relay_and_the_leader_that_it_follows_directly(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory
) -> None:
    fill(database, 100)
    key = Key(database)
    leader = serve(database).wait_ready()
    with Proxy(leader.grpc) as proxy:
        one = relay(LEADER_ADDRESS=f"127.0.0.1:{proxy.port}").wait_ready()
        client = feed(one, on_change=key.see)
        follows(one, leader)
        _harm(
            proxy,
            key,
            lambda: wait_exact(client, expected(database)),
            restarts=lambda: one.metric("pads_cdc_relay_restarts_total"),
            connected=lambda: one.metric("pads_cdc_relay_connected"),
        )
        assert one.get("/readyz")[0] == 200
        follows(one, leader)
    assert client.resets == 1, "its token stays good"
    key.check()


def _restarts(leader: Server, relay: Server) -> float:
    return leader.metric("pads_cdc_broker_restarts_total") + relay.metric("pads_cdc_relay_restarts_total")


def _harm(
    proxy: Proxy,
    key: Key,
    caught_up: Callable[[], None],
    *,
    restarts: Callable[[], float],
    connected: Callable[[], float],
) -> None:
    """Cut an edge, let it stall, and refuse connections; each time the client catches up afterwards."""
    key.rotate()
    proxy.cut()
    key.rotate()
    caught_up()
    before = restarts()
    proxy.stalled = True
    key.rotate(3)
    wait_until(lambda: restarts() > before, "the silence is noticed")
    proxy.stalled = False
    proxy.cut()
    caught_up()
    proxy.refusing = True
    proxy.cut()
    key.rotate()
    wait_until(lambda: connected() == 0, "it is said")
    proxy.refusing = False
    caught_up()


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_a_snapshot_that_a_ripple_overtakes(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node, count: int
) -> None:
    fill(database, count)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    database.execute(
        "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
    )  # while it is being written
    one = relay(BROKER_URL=nats.url)
    database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_until(lambda: one.get("/readyz")[0] == 200, "ready", 120)
    client = feed(one)
    oracle = expected(database)
    wait_until(lambda: dict(client.endpoints) == oracle, "everything", 120)
    follows(one, leader)
    assert one.metric("pads_cdc_relay_digest_mismatches_total") == 0


@pytest.mark.soak
def test_a_cluster_of_three_loses_one_after_the_other(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    feed: FeedFactory,
    nats_cluster: list[Node],
) -> None:
    fill(database, 200)
    key = Key(database)
    urls = ",".join(node.url for node in nats_cluster)
    leader = serve(database, BROKER_URL=urls, BROKER_REPLICAS="3").wait_ready()
    one = relay(BROKER_URL=urls).wait_ready()
    client = feed(one, on_change=key.see)
    follows(one, leader)
    for node in nats_cluster:
        node.kill()
        key.rotate(3)
        wait_until(lambda: status(one).digest == status(leader).digest, "with two of three", 60)
        node.start()
        key.rotate(3)
        wait_until(lambda: status(one).digest == status(leader).digest, "with three again", 60)
    for node in nats_cluster:
        node.signal(signal.SIGSTOP)
        key.rotate(3)
        wait_until(lambda: status(one).digest == status(leader).digest, "with one frozen", 60)
        node.signal(signal.SIGCONT)
    wait_exact(client, expected(database))
    key.check()


def test_credentials_are_asked_for_and_said_to_be_wrong(
    database: Database, serve: ServerFactory, relay: RelayFactory, nats_node: NodeFactory, tmp_path: Path
) -> None:
    fill(database, 20)
    node = nats_node("authorization { user: pads, password: hunter22 }\n").start()
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("pads:hunter22\n")
    wrong.write_text("pads:hunter23\n")
    for file in (right, wrong):
        file.chmod(0o600)
    leader = serve(database, BROKER_URL=node.url, BROKER_CREDENTIALS_FILE=str(right)).wait_ready()
    one = relay(BROKER_URL=node.url, BROKER_CREDENTIALS_FILE=str(wrong))
    wait_until(lambda: "BROKER_CREDENTIALS_FILE" in one.get("/healthz")[1], "it says what is wrong")
    wrong.write_text("pads:hunter22\n")
    one.wait_ready()
    follows(one, leader)
    for server in (leader, one):
        assert "hunter2" not in server.output
