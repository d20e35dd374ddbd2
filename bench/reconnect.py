"""Reconnect: all clients of the legacy contract reconnect at the same time, while keys are revoked."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bench import crowd, subscribers
from bench.commits import Rotation, since_returned
from bench.following import Follower
from bench.portal import REST
from bench.results import OURS, Result, percentile
from bench.rig import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig

_SHARES: Final = {"p50": 0.5, "p99": 0.99}
_RATE: Final = 50.0
"""Revocations per second."""
_LEAST: Final = 10
"""Minimum number of revocations, even if the clients have everything sooner."""


def run(rig: Rig) -> Iterator[Result]:
    """Rotate keys while all clients receive the whole map; measure one client and one feed subscriber."""
    sizes = rig.sizes
    with rig.database(sizes.small) as database, rig.serve(database) as served:
        rig.say("reconnect: clients come")
        with (
            Follower(subscribers.feed, served.target) as feed,
            Follower(crowd.old, served.grpc, sizes.reconnecting - 1),
            Follower(subscribers.old_keys, served.target) as old,
        ):
            rig.say("reconnect: keys are revoked")
            rotation = Rotation(database, database.portal.numbers(REST), _RATE)
            # The rotation lasts until the client has everything, but at least for the minimum.
            with rotation:
                with suppress(TimeoutError):
                    old.wait(sizes.small, sizes.seconds)
                feed.wait(_LEAST)
            commits = rotation.commits
            feed.wait(len(commits))
            rig.say("reconnect: the last revocations arrive")
            at_feed = feed.arrivals()
            keys = {rotation.key(endpoint): endpoint for endpoint in commits}
            wait_until(lambda: keys.keys() <= old.arrivals().keys(), "all revocations arrive", every=0.5)
            at_old = {keys[key]: at for key, at in old.arrivals().items() if key in keys}
        size = f"{len(commits):,} revocations, {sizes.reconnecting} clients, {sizes.small:,} endpoints each"
        for place, arrived in (("feed", at_feed), ("legacy contract", at_old)):
            found = since_returned(commits, arrived)
            for name, share in _SHARES.items():
                case = f"a revocation at the {place}, {name}"
                yield Result("reconnect", case, OURS, "ms", (percentile(found, share),), size)
