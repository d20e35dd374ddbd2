"""Revocation: a plan's ripple begins, and after a delay one key on another plan is revoked."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from bench import subscribers
from bench.following import Follower, now
from bench.portal import REST, endpoint_id
from bench.results import OURS, Result, percentile
from bench.rig import PLAN
from bench.ripple import RAISE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig

_DELAYS: Final = (0, 5, 20, 50, 200)
"""Milliseconds from the return of the plan's commit to the sending of the revocation."""
_ROTATE: Final = "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = %s"
_SUBSCRIBERS: Final = {"feed": subscribers.feed, "legacy contract": subscribers.old_keys}


def run(rig: Rig) -> Iterator[Result]:
    """Measure the time from the commit's return to the key's arrival, for each kind of subscriber."""
    sizes = rig.sizes
    with rig.database(sizes.small) as database:
        count = len(database.portal.numbers(PLAN))
        size = f"{count:,} of {sizes.small:,} endpoints ripple, one subscriber"
        for kind, follow in _SUBSCRIBERS.items():
            found: dict[int, list[float]] = {delay: [] for delay in _DELAYS}
            with rig.serve(database) as served, Follower(follow, served.target) as follower:
                if kind == "legacy contract":  # its stream begins with the whole map
                    follower.wait(sizes.small)
                for number in range(sizes.revocations):
                    rig.say(f"revocation: {kind}, {number + 1} of {sizes.revocations}")
                    for delay in _DELAYS:
                        found[delay].append(_revoked(database, follower, kind, delay))
            for delay, samples in found.items():
                case = f"{delay} ms into a ripple, at the {kind}"
                yield Result("revocation", case, OURS, "ms", tuple(samples), size)
            samples = [sample for delay in _DELAYS for sample in found[delay]]
            for name, share in (("p99", 0.99), ("worst", 1.0)):
                case = f"beside a ripple at the {kind}, {name}"
                yield Result("revocation", case, OURS, "ms", (percentile(samples, share),), size)


def _revoked(database: Database, follower: Follower, kind: str, delay: int) -> float:
    """Return the milliseconds of one revocation. Waits for the end of the ripple, too."""
    plan, rest = database.portal.numbers(PLAN), database.portal.numbers(REST)
    endpoint = endpoint_id(rest[int(now() * 1000) % len(rest)])
    key = f"{now():.6f}"
    name = endpoint if kind == "feed" else key
    follower.mark()
    with closing(database.connect()) as writer, writer.cursor() as cursor:
        database.execute(RAISE, (PLAN,))
        time.sleep(delay / 1000)
        cursor.execute(_ROTATE, (key, endpoint))
        returned = now()
    follower.wait(len(plan) + 1)
    return 1000 * (follower.arrivals()[name] - returned)
