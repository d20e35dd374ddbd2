"""Ripple with the legacy contract: the commit of `bench.ripple`, with one message for each endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdate, GatewayEndpoint

from bench import subscribers
from bench.following import Follower
from bench.references import mapping_query, plain_server
from bench.results import OURS, Result
from bench.rig import PLAN
from bench.ripple import ripple
from server.payload import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig


def run(rig: Rig) -> Iterator[Result]:
    """Measure endpoints per second at one subscriber, counted from the commit and from the call."""
    with rig.database(rig.sizes.small) as database:
        count = len(database.portal.numbers(PLAN))
        rig.say("ripple, legacy contract: messages are made ready")
        messages = _messages(database)
        rates: list[float] = []
        limits: list[float] = []
        with rig.serve(database) as served, Follower(subscribers.old, served.target) as subscriber:
            rig.say("ripple, legacy contract: everything is sent to the new subscriber")
            subscriber.wait(rig.sizes.small)
            for _ in range(rig.sizes.runs):
                rig.say(f"ripple, legacy contract: {OURS}")
                rates.append(count / ripple(database, subscriber, PLAN, count))
                rig.say("ripple, legacy contract: do-nothing server")
                limits.append(count / _sent(messages))
    size = f"{count:,} of {rig.sizes.small:,} endpoints, one subscriber, endpoints a second"
    yield Result("ripple_old", "a plan", OURS, "/s", tuple(rates), size)
    yield Result("ripple_old", "a plan", "do-nothing server", "/s", tuple(limits), size)


def _messages(database: Database) -> list[bytes]:
    """Return the serialized messages of a ripple."""
    endpoints = (GatewayEndpoint.FromString(encode(row)) for row in mapping_query.rows(database, PLAN))
    return [
        AuthDataUpdate(endpoint_id=endpoint.endpoint_id, gateway_endpoint=endpoint).SerializeToString()
        for endpoint in endpoints
    ]


def _sent(messages: list[bytes]) -> float:
    """Let a subscriber receive everything from the do-nothing server; return the seconds since the
    subscriber's start.
    """
    with plain_server.serving(messages) as target, Follower(subscribers.old, target) as subscriber:
        return subscriber.wait(len(messages)) - subscriber.following_since
