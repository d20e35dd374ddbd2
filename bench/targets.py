"""The targets, as data: a case, the reference, and the bound of the ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.results import OURS

if TYPE_CHECKING:
    from collections.abc import Collection

    from bench.results import Result


@dataclass(frozen=True)
class Target:
    """A bound for our median divided by the reference's, or only for our median if there is no reference."""

    benchmark: str
    case: str
    reference: str | None
    bound: float
    at_least: bool = False
    """Whether the bound is a minimum; otherwise it is a maximum."""
    why: str = ""
    """Anchor of the section of docs/performance.md that explains why the target was missed."""

    def value(self, results: Collection[Result]) -> float | None:
        """Return the value that is compared with the bound; None if it was not measured."""
        medians = {
            one.contender: one.median
            for one in results
            if (one.benchmark, one.case) == (self.benchmark, self.case)
        }
        if OURS not in medians or (self.reference is not None and self.reference not in medians):
            return None
        return medians[OURS] if self.reference is None else medians[OURS] / medians[self.reference]

    def met(self, value: float) -> bool:
        """Return whether a value meets the target."""
        return value >= self.bound if self.at_least else value <= self.bound


TARGETS: Final = (
    Target("backlog", "settings", "pg_recvlogical", 1.5, why="a-backlog"),
    Target("backlog", "settings, pgoutput", "pg_recvlogical", 2.0, why="a-backlog"),
    Target("backlog", "settings, pgoutput", "ours with wal2json", 0.75, why="a-backlog"),
    Target("backlog", "nothing of ours", "pg_recvlogical", 1.1, why="a-backlog"),
    Target("ripple", "a plan", "plain fetch", 2.5),
    Target("ripple", "every plan", "plain fetch", 2.5, why="a-ripple-over-everything"),
    Target(
        "ripple_old",
        "a plan",
        "do-nothing server",
        0.8,
        at_least=True,
        why="a-ripple-to-a-client-of-the-legacy-contract",
    ),
    Target("latency", "one row, p50 with the commit itself", "bare reader, row by row", 2.5, why="one-row"),
    Target("latency", "one row, p99", None, 4.0, why="one-row"),
    Target("latency", "one row, CPU", "bare reader", 2.0, why="one-row"),
    Target("latency", "during a ripple, p99", None, 50.0),
    Target("writers", "mean", "nobody", 1.1, why="writers-on-two-cores"),
    Target("writers", "p99", "nobody", 1.1, why="writers-on-two-cores"),
    Target("writers", "a plan", "nobody", 1.1, why="writers-on-two-cores"),
    Target("writers", "longest wait, a migration each second", None, 5_000.0),
    Target("reconnect", "a revocation at the feed, p99", None, 50.0),
    Target("reconnect", "a revocation at the legacy contract, p99", None, 50.0, why="on-a-faster-machine"),
    Target("revocation", "beside a ripple at the feed, p99", None, 20.0, why="on-a-faster-machine"),
    Target("revocation", "beside a ripple at the feed, worst", None, 150.0),
    Target(
        "revocation", "beside a ripple at the legacy contract, p99", None, 20.0, why="on-a-faster-machine"
    ),
    Target("revocation", "beside a ripple at the legacy contract, worst", None, 150.0),
    Target("fan_out", "up to 500, p99", None, 50.0, why="fan-out"),
    Target("fan_out", "the most, p99", None, 100.0, why="fan-out"),
    Target("fan_out", "memory a subscriber, up to 500", None, 64.0, why="memory-of-a-subscriber"),
    Target("fan_out", "beside a stalled one, p50", "none is stalled", 1.1, why="fan-out"),
    Target("start", "without a state file", "COPY", 3.0, why="start-and-memory"),
    Target("start", "with a state file", "COPY", 3.0, why="start-and-memory"),
    Target("takeover", "ready", None, 2.0),
    Target("takeover", "a change reaches a client", None, 2.0),
    Target("relay", "one row, p50 above the leader's", None, 2.0),
    Target("relay", "ripple", "leader", 1.3),
    Target("relay", "start", "server without a state file", 1.5),
    Target("relay", "the leader's CPU", "0 relays", 1.1),
    Target("memory", "an endpoint", None, 300.0, why="start-and-memory"),
    Target("memory", "peak of a ripple, above steady", None, 150.0),
    Target("memory", "more after churn", None, 16.0),
    Target("idle", "no changes", None, 1.0, why="on-a-faster-machine"),
    Target("idle", "audits every 5 minutes", None, 5.0),
    Target(
        "authorize",
        "checks a second of one core",
        "do-nothing server",
        0.8,
        at_least=True,
        why="the-authorizer",
    ),
    Target("authorize", "revocation to first 401, p50", "feed client", 2.0),
    Target("authorize", "revocation to first 401, p99", "feed client", 2.0),
    Target("authorize", "while everything changes, p99", None, 10.0, why="the-authorizer"),
)
