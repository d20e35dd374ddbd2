"""The amounts for each kind of run: a quick check between two changes, the run for the record, and the run in
CI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Counts, and durations in seconds, of one kind of run."""

    name: str
    runs: int
    """Number of repetitions of measurements that take seconds."""
    endpoints: int
    """Number of endpoints in the large database."""
    small: int
    """Number of endpoints in the small database. Clients of the legacy contract are sent all of them at
    first.
    """
    plan: int
    """Number of endpoints on the plan that ripples, in both databases."""
    transactions: int
    """Number of transactions in the backlog, each with one update."""
    bulk: int
    """Number of updates in the backlog's one large transaction."""
    rate: int
    """One-row commits per second."""
    seconds: float
    """Duration of the one-row commits."""
    poll: float
    """Seconds between two polls of the poller."""
    reconnecting: int
    """Number of clients of the legacy contract that reconnect at the same time."""
    revocations: int
    """Number of revocations during a ripple, for each kind and delay."""
    writer_rate: int
    """pgbench's transactions per second."""
    writer_seconds: float
    plan_updates: int
    """Number of updates of a plan in each turn of the writers."""
    fan_out: tuple[int, ...]
    """Numbers of subscribers of the feed."""
    fan_out_rate: int
    """Changes per second."""
    fan_out_seconds: float
    churn_seconds: float
    idle_subscribers: int
    idle_seconds: float
    growth: tuple[int, ...]
    """Sizes of databases in endpoints, for the curves."""
    ripples: tuple[int, ...]
    """Sizes of plans in endpoints, for the curves. Together they fit into the large database."""


TINY: Final = Sizes(
    name="tiny",
    runs=1,
    endpoints=3_000,
    small=2_000,
    plan=1_000,
    transactions=200,
    bulk=500,
    rate=200,
    seconds=0.5,
    poll=0.2,
    reconnecting=2,
    revocations=1,
    writer_rate=200,
    writer_seconds=1.0,
    plan_updates=1,
    fan_out=(1, 3),
    fan_out_rate=50,
    fan_out_seconds=0.5,
    churn_seconds=0.5,
    idle_subscribers=2,
    idle_seconds=0.5,
    growth=(500, 3_000),
    ripples=(1, 10),
)
QUICK: Final = Sizes(
    name="quick",
    runs=3,
    endpoints=100_000,
    small=40_000,
    plan=20_000,
    transactions=10_000,
    bulk=30_000,
    rate=200,
    seconds=6.0,
    poll=5.0,
    reconnecting=5,
    revocations=10,
    writer_rate=1_000,
    writer_seconds=4.0,
    plan_updates=5,
    fan_out=(1, 10, 100),
    fan_out_rate=500,
    fan_out_seconds=4.0,
    churn_seconds=10.0,
    idle_subscribers=100,
    idle_seconds=10.0,
    growth=(1_000, 10_000, 100_000),
    ripples=(1, 10, 100, 1_000, 10_000),
)
FULL: Final = Sizes(
    name="full",
    runs=3,
    endpoints=1_000_000,
    small=200_000,
    plan=100_000,
    transactions=100_000,
    bulk=300_000,
    rate=200,
    seconds=30.0,
    poll=30.0,
    reconnecting=20,
    revocations=10,
    writer_rate=1_000,
    writer_seconds=10.0,
    plan_updates=5,
    fan_out=(1, 10, 100, 500, 1_000),
    fan_out_rate=500,
    fan_out_seconds=10.0,
    churn_seconds=180.0,
    idle_subscribers=100,
    idle_seconds=30.0,
    growth=(1_000, 10_000, 100_000, 1_000_000),
    ripples=(1, 10, 100, 1_000, 10_000),
)
