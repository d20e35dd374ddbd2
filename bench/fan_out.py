"""Fan-out: the same changes to a growing number of subscribers of the feed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import grpc
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from bench import crowd
from bench.commits import Rotation, since_returned
from bench.following import Follower
from bench.portal import REST
from bench.results import OURS, Point, Result, percentile
from bench.subscribers import OPTIONS, WATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bench.commits import Commit
    from bench.rig import Database, Rig
    from bench.served import Served

_SHARES: Final = {"p50": 0.5, "p99": 0.99}
AT: Final = 500
"""Number of subscribers up to which the latency has a target."""


def run(rig: Rig) -> Iterator[Result]:
    """Measure latency, CPU and memory at each number of subscribers, with one server process."""
    sizes = rig.sizes
    with rig.database(sizes.small) as database, rig.serve(database) as served:
        # If the first subscriber or the changes let memory grow, that is not a cost of more subscribers.
        before, after = (storm(rig, database, served, 1)[-1] for _ in range(2))
        for number, count in enumerate(sizes.fan_out, 1):
            grown = max(0, after - before)
            yield from _measured(rig, database, served, count, after + (number - 1) * grown, grown)
        yield from _stalled(rig, database, served)


def _measured(
    rig: Rig, database: Database, served: Served, count: int, base: int, grown: int
) -> Iterator[Result]:
    found, share, resting, resident = storm(rig, database, served, count)
    size = f"subscribers: {count:,}, {rig.sizes.fan_out_rate} changes a second"
    point = Point("subscribers", count, "p99")
    yield Result("fan_out", f"{count:,}, p50", OURS, "ms", (percentile(found, 0.5),), size)
    yield Result("fan_out", f"{count:,}, p99", OURS, "ms", (percentile(found, 0.99),), size, point)
    yield Result("fan_out", f"{count:,}, CPU", OURS, "%", (100 * share,), size)
    if count == _most(rig):
        yield Result("fan_out", f"up to {AT}, p99", OURS, "ms", (percentile(found, 0.99),), size)
    if count == max(rig.sizes.fan_out):
        yield Result("fan_out", "the most, p99", OURS, "ms", (percentile(found, 0.99),), size)
    if count in (_most(rig), max(rig.sizes.fan_out)):
        case = "memory a subscriber" + (f", up to {AT}" if count <= AT else ", beyond")
        for state, held in ((", at rest", resting), ("", resident - grown)):
            each = max(0, held - base) / count / 1024
            yield Result("fan_out", case + state, OURS, "KiB", (each,), size)


def _stalled(rig: Rig, database: Database, served: Served) -> Iterator[Result]:
    """Measure subscribers in turns, with and without one more subscriber that is stalled."""
    count = _most(rig)
    contenders = {OURS: 1, "none is stalled": 0}
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rig.sizes.runs):
        for contender, stalled in contenders.items():
            found, *_ = storm(rig, database, served, count, stalled)
            for name, share in _SHARES.items():
                taken.setdefault((name, contender), []).append(percentile(found, share))
    size = f"subscribers: {count:,}, {rig.sizes.fan_out_rate} changes a second"
    for (name, contender), samples in taken.items():
        yield Result("fan_out", f"beside a stalled one, {name}", contender, "ms", tuple(samples), size)


def _most(rig: Rig) -> int:
    return max(count for count in rig.sizes.fan_out if count <= AT)


def storm(
    rig: Rig, database: Database, served: Served, count: int, stalled: int = 0
) -> tuple[list[float], float, int, int]:
    """Change endpoints while ``count`` clients are subscribed.

    Returns milliseconds from each commit to each arrival, the server's share of a core, and its resident
    bytes before the first change and at the end.
    """
    sizes = rig.sizes
    rest = database.portal.numbers(REST)
    numbers = rest[: min(len(rest), int(sizes.fan_out_rate * sizes.fan_out_seconds))]
    rig.say(f"fan-out: {count:,} subscribers connect")
    token = resume_token(served)
    with Follower(crowd.feed, served.grpc, count, token=token, stalled=stalled) as many:
        rig.say(f"fan-out: {count:,} subscribers{', one more is stalled' if stalled else ''}")
        resting = served.resident_bytes()
        cpu, began = served.cpu_seconds(), time.monotonic()
        rotation = Rotation(database, numbers, sizes.fan_out_rate)
        rotation.join()
        share = (served.cpu_seconds() - cpu) / (time.monotonic() - began)
        many.wait(len(numbers) * crowd.sampled(count))
        resident = served.resident_bytes()
        return latencies(rotation.commits, many.arrivals()), share, resting, resident


def latencies(commits: Mapping[str, Commit], arrivals: Mapping[str, float]) -> list[float]:
    """Return the milliseconds from each commit to each of its arrivals at `crowd`'s subscribers."""
    each = {arrival: commits[arrival.partition("/")[2]] for arrival in arrivals}
    return since_returned(each, arrivals)


def resume_token(served: Served) -> bytes:
    """Receive a snapshot and return the token at its end. With it, other subscribers need no snapshot."""
    opening = pb.WatchRequest(open=pb.Open(client_id="bench"))
    with grpc.insecure_channel(served.target, options=OPTIONS) as channel:
        watch = channel.stream_stream(WATCH, pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString)
        for message in watch(iter([opening])):
            if message.batch.snapshot_end:
                token: bytes = message.batch.token
                return token
    raise RuntimeError("the feed ended before its snapshot did")
