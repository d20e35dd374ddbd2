"""Latency: from the return of a one-row commit to its arrival at a subscriber in another process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bench import subscribers
from bench.commits import Rotation, since_returned, since_sent
from bench.following import Follower, now
from bench.portal import REST, endpoint_id
from bench.references import poller, reader, triggers
from bench.results import OURS, Result, percentile
from bench.rig import PLAN
from bench.ripple import RAISE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.commits import Commit
    from bench.rig import Database, Rig
    from bench.sizes import Sizes

    Contender = Callable[[], AbstractContextManager[Follower]]

_SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_WARM_UP: Final = 50
"""Number of first commits that are not counted, because connections and plans are cold."""
_AHEAD: Final = 10
"""Number of commits before the commit that causes the ripple."""


def run(rig: Rig) -> Iterator[Result]:
    """Measure each contender by itself, in the same database and at the same rate."""
    sizes = rig.sizes
    with rig.database(sizes.endpoints) as database:
        for contender, start in _contenders(rig, database).items():
            with start() as follower:
                runs = sizes.runs if contender != "poller" else 1
                yield from _measure(rig, database, follower, contender, runs)
                if contender == OURS:
                    yield from _during_ripple(rig, database, follower)


def _contenders(rig: Rig, database: Database) -> dict[str, Contender]:
    @contextmanager
    def ours() -> Iterator[Follower]:
        with rig.serve(database) as served, Follower(subscribers.feed, served.target) as follower:
            follower.charge(served.process.pid)
            yield follower

    @contextmanager
    def on_slot(follow: Callable[..., None]) -> Iterator[Follower]:
        with database.slot("bench") as slot, Follower(follow, database.url, slot) as follower:
            yield follower

    @contextmanager
    def listening() -> Iterator[Follower]:
        with triggers.installed(database), Follower(triggers.follow, database.url) as follower:
            yield follower

    return {
        OURS: ours,
        "bare reader": lambda: on_slot(reader.follow),
        "bare reader, row by row": lambda: on_slot(reader.follow_and_query),
        "triggers": listening,
        "poller": lambda: Follower(poller.follow, database.url, rig.sizes.poll),
    }


def _measure(rig: Rig, database: Database, follower: Follower, contender: str, runs: int) -> Iterator[Result]:
    sizes = rig.sizes
    seconds = sizes.seconds / runs
    numbers = database.portal.numbers(REST)
    count = min(int(sizes.rate * seconds), len(numbers) // 2)
    taken: dict[str, list[float]] = {}
    for number in range(runs):
        rig.say(f"latency: {contender}")
        some = numbers[number % 2 :: 2][:count]
        commits, arrived, cpu = _follow(database, follower, some, sizes.rate)
        found = since_returned(commits, arrived)
        for name, share in _SHARES.items():
            taken.setdefault(f"one row, {name}", []).append(percentile(found, share))
        asked = percentile(since_sent(commits, arrived), 0.5)
        taken.setdefault("one row, p50 with the commit itself", []).append(asked)
        if contender != "poller":  # the poller fetches everything, however little has changed
            taken.setdefault("one row, CPU", []).append(1_000 * cpu / len(commits))
    size = f"{sizes.rate:,} commits a second for {sizes.seconds:.0f} s, {sizes.endpoints:,} endpoints"
    for case, samples in taken.items():
        yield Result("latency", case, contender, "ms", tuple(samples), size)


def _follow(
    database: Database, follower: Follower, numbers: range, rate: float
) -> tuple[dict[str, Commit], dict[str, float], float]:
    """Return the commits, the arrival of each endpoint, and the follower's CPU seconds."""
    Rotation(database, numbers[:_WARM_UP], rate).join()
    follower.wait(len(numbers[:_WARM_UP]))
    follower.mark()
    before = follower.cpu_seconds()
    rotation = Rotation(database, numbers, rate)
    rotation.join()
    follower.wait(len(rotation.commits))
    return rotation.commits, follower.arrivals(), follower.cpu_seconds() - before


def _during_ripple(rig: Rig, database: Database, follower: Follower) -> Iterator[Result]:
    """Commit rows of other plans while a plan ripples."""
    taken: dict[str, list[float]] = {share: [] for share in _SHARES}
    for _ in range(rig.sizes.runs):
        rig.say("latency: during a ripple")
        found = _while_rippling(database, follower, rig.sizes)
        for name, share in _SHARES.items():
            taken[name].append(percentile(found, share))
    size = f"{rig.sizes.rate:,} commits a second while {rig.sizes.plan:,} endpoints pass"
    for name, samples in taken.items():
        yield Result("latency", f"during a ripple, {name}", OURS, "ms", tuple(samples), size)


def _while_rippling(database: Database, follower: Follower, sizes: Sizes) -> list[float]:
    plan = database.portal.numbers(PLAN)
    follower.mark()
    with Rotation(database, database.portal.numbers(REST), sizes.rate) as rotation:
        follower.wait(_AHEAD)
        database.execute(RAISE, (PLAN,))
        began = now()
        # Rotated rows count too, so a few endpoints of the plan may arrive after this.
        follower.wait(len(plan) + _AHEAD)
    follower.wait(len(plan) + len(rotation.commits))
    arrived = follower.arrivals()
    ended = max(arrived[endpoint_id(number)] for number in plan)
    during = {endpoint: one for endpoint, one in rotation.commits.items() if began <= one.returned <= ended}
    return since_returned(during, arrived)
