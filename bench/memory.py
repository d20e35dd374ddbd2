"""Memory: the resident size with few endpoints and with many, after churn, and at the peak of the largest
ripple.
"""

from __future__ import annotations

import threading
from itertools import cycle
from typing import TYPE_CHECKING, Final

from bench import subscribers
from bench.commits import Rotation, since_returned
from bench.following import Follower
from bench.portal import REST
from bench.results import OURS, Point, Result, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig
    from bench.served import Served

_MIB: Final = 2**20
_EVERY_PLAN: Final = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
_CHURN_RATE: Final = 500.0
"""Commits per second."""


def run(rig: Rig) -> Iterator[Result]:
    """Measure the process from outside. The baseline is a server of the smallest database."""
    sizes = rig.sizes
    base, fewest = 0, min(sizes.growth)
    for endpoints in sizes.growth:
        with (
            rig.database(endpoints) as database,
            rig.serve(database) as served,
            Follower(subscribers.feed, served.target) as subscriber,
        ):
            resident = served.resident_bytes()
            yield _growth("start", served.ready_after, "s", endpoints)
            yield _growth("memory", resident / _MIB, "MiB", endpoints)
            yield _growth("latency", _latency(rig, database, subscriber), "ms", endpoints)
            if endpoints == fewest:
                base = resident
            if endpoints == sizes.endpoints:
                each = (resident - base) / (endpoints - fewest)
                yield Result("memory", "an endpoint", OURS, "bytes", (each,), _size(rig))
                yield from _ripple(rig, database, served, subscriber)
                yield from _churn(rig, database, served)


def _growth(benchmark: str, value: float, unit: str, endpoints: int) -> Result:
    point = Point("endpoints", endpoints, benchmark)
    return Result(benchmark, f"growth: {endpoints:,}", OURS, unit, (value,), point=point)


def _latency(rig: Rig, database: Database, subscriber: Follower) -> float:
    """Return the median latency of one-row commits, in milliseconds."""
    numbers = database.portal.numbers(REST)[: rig.sizes.rate]
    rotation = Rotation(database, numbers, rig.sizes.rate)
    rotation.join()
    subscriber.wait(len(rotation.commits))
    return percentile(since_returned(rotation.commits, subscriber.arrivals()), 0.5)


def _ripple(rig: Rig, database: Database, served: Served, subscriber: Follower) -> Iterator[Result]:
    rig.say("memory: everything ripples")
    _change_everything(database, subscriber)  # from now on the log of revisions has dead entries
    steady = served.resident_bytes()
    served.forget_peak()
    _change_everything(database, subscriber)
    above = (served.resident_bytes(peak=True) - steady) / _MIB
    yield Result("memory", "peak of a ripple, above steady", OURS, "MiB", (above,), _size(rig))


def _change_everything(database: Database, subscriber: Follower) -> None:
    subscriber.mark()
    database.execute(_EVERY_PLAN)
    subscriber.wait(database.portal.endpoints)


def _churn(rig: Rig, database: Database, served: Served) -> Iterator[Result]:
    """Change rows repeatedly. Growth of memory counts after the first fifth of the time."""
    seconds = rig.sizes.churn_seconds
    rig.say(f"memory: {seconds:.0f} s of churn")
    with Rotation(database, cycle(database.portal.numbers(REST)), _CHURN_RATE):
        pause = threading.Event()
        pause.wait(seconds / 5)
        settled = served.resident_bytes()
        pause.wait(seconds * 4 / 5)
        grown = (served.resident_bytes() - settled) / _MIB
    size = f"{_CHURN_RATE:.0f} commits a second for {seconds:.0f} s"
    yield Result("memory", "more after churn", OURS, "MiB", (grown,), size)


def _size(rig: Rig) -> str:
    return f"{rig.sizes.endpoints:,} endpoints"
