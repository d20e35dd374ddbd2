"""Relays behind a real NATS server: what they serve, what they survive, and that they never show what never
was.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

from tests.plugins.feed import status, wait_exact
from tests.plugins.server import expected, fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.feed import FeedFactory
    from tests.plugins.nats import Node
    from tests.plugins.postgres import Database
    from tests.plugins.server import Gateway, GatewayFactory, RelayFactory, Server, ServerFactory


def follows(relay: Server, leader: Server) -> None:
    """Return when the relay holds what the leader holds."""

    def same() -> bool:
        ours, theirs = status(relay), status(leader)
        return (ours.epoch, ours.revision, ours.digest) == (theirs.epoch, theirs.revision, theirs.digest)

    wait_until(same, "the relay holds the leader's map")


def _has_key(client: Gateway, key: str) -> bool:
    return client.key("app_1") == key


def test_a_relay_serves_both_contracts_and_follows(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    gateway: GatewayFactory,
    feed: FeedFactory,
    nats: Node,
) -> None:
    fill(database, 500)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    old, new = gateway(one), feed(one)
    wait_equal(old, database)
    wait_exact(new, expected(database))
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'rotated' WHERE application_id = 'app_1'"
    )
    old.wait(lambda client: client.key("app_1") == "rotated", "the rotated key")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    database.execute("UPDATE pay_plans SET throughput_limit = 4711")
    wait_equal(old, database)
    wait_exact(new, expected(database))
    follows(one, leader)
    wait_until(lambda: one.get("/healthz")[0] == 200, "the relay is well")
    assert one.metric("pads_cdc_relay_chain_breaks_total") == 0
    assert leader.metric("pads_cdc_broker_fenced_total") == 0
    assert one.stop() == 0
    assert leader.stop() == 0


def test_a_relay_goes_on_serving_while_leader_and_broker_are_away(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory, nats: Node
) -> None:
    fill(database, 100)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    first = relay(BROKER_URL=nats.url).wait_ready()
    follows(first, leader)
    oracle = expected(database)
    leader.kill()
    second = relay(BROKER_URL=nats.url).wait_ready()  # while database and leader are away
    wait_exact(feed(second), oracle)
    nats.kill()
    wait_exact(feed(first), oracle)
    wait_until(lambda: "disconnected" in first.get("/healthz")[1], "the relay says that it is cut off")
    assert first.get("/readyz")[0] == 200
    wait_until(lambda: first.metric("pads_cdc_replication_lag_seconds") > 2, "the relay says how stale it is")
    nats.start()
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    for one in (first, second):
        follows(one, leader)
        wait_exact(feed(one), expected(database))


def test_a_frozen_leader_s_broker_does_not_hold_it_up(
    database: Database, serve: ServerFactory, relay: RelayFactory, gateway: GatewayFactory, nats: Node
) -> None:
    fill(database, 100)
    leader = serve(database, BROKER_URL=nats.url).wait_ready()
    one = relay(BROKER_URL=nats.url).wait_ready()
    client = gateway(leader)
    nats.signal(signal.SIGSTOP)
    for number in range(20):
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %(key)s WHERE application_id = 'app_1'",
            {"key": f"new_{number}"},
        )
        wait_until(partial(_has_key, client, f"new_{number}"), "the rotated key")
    wait_until(lambda: leader.metric("pads_cdc_replication_lag_bytes", stage="confirmed") == 0, "confirmed")
    nats.signal(signal.SIGCONT)
    follows(one, leader)


def test_a_relay_follows_a_leader_without_a_broker(
    database: Database, serve: ServerFactory, relay: RelayFactory, feed: FeedFactory
) -> None:
    fill(database, 500)
    leader = serve(database).wait_ready()
    one = relay(LEADER_ADDRESS=f"127.0.0.1:{leader.grpc}").wait_ready()
    client = feed(one)
    database.execute("UPDATE pay_plans SET throughput_limit = 4711")
    wait_exact(client, expected(database))
    follows(one, leader)
    port = leader.grpc
    leader.stop()
    leader = serve(database, PORT=str(port)).wait_ready()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_exact(client, expected(database))
    follows(one, leader)
    wait_until(lambda: one.get("/healthz")[0] == 200, "the relay is well")
    assert one.stop() == 0
