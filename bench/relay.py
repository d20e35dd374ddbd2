"""Relays behind a broker, compared with their leader: their latency, their start, and the leader's CPU."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bench import crowd, subscribers
from bench.commits import Rotation, since_returned
from bench.fan_out import latencies, resume_token, storm
from bench.following import Follower
from bench.portal import REST
from bench.results import OURS, Result, percentile
from bench.rig import PLAN
from bench.ripple import ripple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig
    from bench.served import Served

LEADER: Final = "leader"
_SHARES: Final = {"p50": 0.5, "p99": 0.99}
_RELAYS: Final = (0, 1, 4)
"""Numbers of relays for which the leader's CPU is measured."""
_FRONTS: Final = 2
"""Number of relays that share subscribers."""


def run(rig: Rig) -> Iterator[Result]:
    """Measure a relay and its leader in turns, in one run."""
    with rig.broker() as url, rig.database(rig.sizes.endpoints) as database:
        yield from _start(rig, database)
        with rig.serve(database, BROKER_URL=url) as leader, rig.relay(BROKER_URL=url) as relay:
            yield from _latency(rig, database, leader, relay)
            yield from _ripple(rig, database, leader, relay)
    with rig.broker() as url, rig.database(rig.sizes.small) as database:
        yield from _cpu(rig, database, url)
        yield from _fan_out(rig, database, url)


def _start(rig: Rig, database: Database) -> Iterator[Result]:
    """Measure the start of a server from the database, and of a relay from this server's stream."""
    taken: dict[str, list[float]] = {OURS: [], "server without a state file": []}
    for _ in range(rig.sizes.runs):
        with rig.broker() as url, rig.serve(database, BROKER_URL=url, SLOT_NAME="start") as leader:
            taken["server without a state file"].append(leader.ready_after)
            leader.wait_metric(1, "pads_cdc_broker_snapshots_total")
            with rig.relay(BROKER_URL=url) as relay:
                taken[OURS].append(relay.ready_after)
        database.drop_slots("start")
    for contender, samples in taken.items():
        yield Result("relay", "start", contender, "s", tuple(samples), f"{rig.sizes.endpoints:,} endpoints")


def _latency(rig: Rig, database: Database, leader: Served, relay: Served) -> Iterator[Result]:
    sizes = rig.sizes
    numbers = database.portal.numbers(REST)
    count = min(int(sizes.rate * sizes.seconds / sizes.runs), len(numbers) // 2)
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(sizes.runs):
        for contender, served in ((OURS, relay), (LEADER, leader)):
            rig.say(f"relay, one row: {contender}")
            with Follower(subscribers.feed, served.target) as follower:
                rotation = Rotation(database, numbers[turn % 2 :: 2][:count], sizes.rate)
                rotation.join()
                follower.wait(count)
                found = since_returned(rotation.commits, follower.arrivals())
            for name, share in _SHARES.items():
                taken.setdefault((f"one row, {name}", contender), []).append(percentile(found, share))
    size = f"{sizes.rate:,} commits a second, {sizes.endpoints:,} endpoints"
    for (case, contender), samples in taken.items():
        yield Result("relay", case, contender, "ms", tuple(samples), size)
    more = [
        ours - theirs
        for ours, theirs in zip(taken["one row, p50", OURS], taken["one row, p50", LEADER], strict=True)
    ]
    yield Result("relay", "one row, p50 above the leader's", OURS, "ms", tuple(more), size)


def _ripple(rig: Rig, database: Database, leader: Served, relay: Served) -> Iterator[Result]:
    taken: dict[str, list[float]] = {OURS: [], LEADER: []}
    for _ in range(rig.sizes.runs):
        for contender, served in ((OURS, relay), (LEADER, leader)):
            rig.say(f"relay, ripple: {contender}")
            with Follower(subscribers.feed, served.target) as follower:
                taken[contender].append(ripple(database, follower, PLAN, rig.sizes.plan))
    for contender, samples in taken.items():
        yield Result("relay", "ripple", contender, "s", tuple(samples), f"{rig.sizes.plan:,} endpoints")


def _cpu(rig: Rig, database: Database, url: str) -> Iterator[Result]:
    """Measure the leader's CPU with a growing number of relays, each with a subscriber."""
    sizes = rig.sizes
    taken: dict[int, list[float]] = {}
    for _ in range(sizes.runs):
        for count in _RELAYS:
            with ExitStack() as running:
                leader = running.enter_context(rig.serve(database, BROKER_URL=url))
                relays = [running.enter_context(rig.relay(BROKER_URL=url)) for _ in range(count)]
                for relay in relays:
                    running.enter_context(Follower(subscribers.feed, relay.target))
                rig.say(f"relay, the leader's CPU beside {count}")
                numbers = database.portal.numbers(REST)[: int(sizes.fan_out_rate * sizes.fan_out_seconds)]
                cpu, began = leader.cpu_seconds(), time.monotonic()
                Rotation(database, numbers, sizes.fan_out_rate).join()
                share = (leader.cpu_seconds() - cpu) / (time.monotonic() - began)
                taken.setdefault(count, []).append(100 * share)
    size = f"{sizes.fan_out_rate} changes a second"
    for count, samples in taken.items():
        yield Result("relay", "the leader's CPU", f"{count} relays", "%", tuple(samples), size)
    yield Result("relay", "the leader's CPU", OURS, "%", tuple(taken[max(_RELAYS)]), size)


def _fan_out(rig: Rig, database: Database, url: str) -> Iterator[Result]:
    """Measure subscribers that are divided among relays, and the same number of subscribers at one server."""
    sizes = rig.sizes
    most = max(sizes.fan_out)
    with rig.serve(database, BROKER_URL=url) as leader, ExitStack() as running:
        for count in (most, 2 * most):
            rig.say(f"relay: {count:,} subscribers at one server")
            found, *_ = storm(rig, database, leader, count)
            relays = [running.enter_context(rig.relay(BROKER_URL=url)) for _ in range(_FRONTS)]
            yield from _shared(rig, database, relays, count)
            running.close()
            size = f"subscribers: {count:,}, {sizes.fan_out_rate} changes a second"
            case = f"{count // most} times the most subscribers, p99"
            yield Result("relay", case, "one server", "ms", (percentile(found, 0.99),), size)


def _shared(rig: Rig, database: Database, relays: list[Served], count: int) -> Iterator[Result]:
    sizes = rig.sizes
    rest = database.portal.numbers(REST)
    numbers = rest[: min(len(rest), int(sizes.fan_out_rate * sizes.fan_out_seconds))]
    each = count // len(relays)
    with ExitStack() as running:
        many = [
            running.enter_context(
                Follower(crowd.feed, relay.grpc, each, token=resume_token(relay), stalled=0)
            )
            for relay in relays
        ]
        rig.say(f"relay: {count:,} subscribers at {len(relays)} relays")
        rotation = Rotation(database, numbers, sizes.fan_out_rate)
        rotation.join()
        found: list[float] = []
        for one in many:
            one.wait(len(numbers) * crowd.sampled(each))
            found += latencies(rotation.commits, one.arrivals())
    size = f"subscribers: {count:,}, {sizes.fan_out_rate} changes a second"
    case = f"{count // max(sizes.fan_out)} times the most subscribers, p99"
    yield Result("relay", case, OURS, "ms", (percentile(found, 0.99),), size)
