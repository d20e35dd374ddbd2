"""Ripple: one commit changes a plan, and all its endpoints have to reach a subscriber of the feed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench import subscribers
from bench.following import Follower, now
from bench.references import mapping_query
from bench.results import OURS, Point, Result
from bench.rig import PLAN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig

_EVERYONE: Final = "everyone"
RAISE: Final = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = %s"


def run(rig: Rig) -> Iterator[Result]:
    """Measure one plan, plans of growing size, and all endpoints on one plan, in one large database."""
    sizes = rig.sizes
    with (
        rig.database(sizes.endpoints) as database,
        rig.serve(database) as served,
        Follower(subscribers.feed, served.target) as subscriber,
    ):
        for count in sizes.ripples:
            rig.say(f"ripple: {count:,} endpoints")
            samples = tuple(ripple(database, subscriber, f"plan_{count}", count) for _ in range(sizes.runs))
            yield Result("ripple", f"growth: {count:,}", OURS, "s", samples, point=_point(count))
        yield from _against_fetch(rig, database, subscriber, "a plan", PLAN, sizes.plan)
        rig.say("ripple: everybody moves to one plan")
        subscriber.mark()
        database.execute("INSERT INTO pay_plans VALUES (%s, 1000000, 100)", (_EVERYONE,))
        database.execute("UPDATE accounts SET plan_type = %s", (_EVERYONE,))
        database.execute("VACUUM ANALYZE accounts")
        subscriber.wait(sizes.endpoints)
        yield from _against_fetch(rig, database, subscriber, "every plan", _EVERYONE, sizes.endpoints)


def _against_fetch(
    rig: Rig, database: Database, subscriber: Follower, case: str, plan: str, count: int
) -> Iterator[Result]:
    taken: dict[str, list[float]] = {OURS: [], "plain fetch": [], "COPY": []}
    for _ in range(rig.sizes.runs):
        rig.say(f"ripple, {count:,}: {OURS}")
        taken[OURS].append(ripple(database, subscriber, plan, count))
        rig.say(f"ripple, {count:,}: plain fetch")
        taken["plain fetch"].append(mapping_query.fetch(database, plan))
        rig.say(f"ripple, {count:,}: COPY")
        taken["COPY"].append(mapping_query.copy(database, plan))
    size = f"{count:,} of {rig.sizes.endpoints:,} endpoints"
    for contender, samples in taken.items():
        point = _point(count, contender)
        yield Result("ripple", case, contender, "s", tuple(samples), size, point)


def _point(count: int, contender: str = OURS) -> Point:
    return Point("affected", count, "ripple" if contender == OURS else contender)


def ripple(database: Database, subscriber: Follower, plan: str, count: int) -> float:
    """Change a plan; return the seconds from the commit's return to the last arrival."""
    subscriber.mark()
    database.execute(RAISE, (plan,))
    committed = now()
    return subscriber.wait(count) - committed
