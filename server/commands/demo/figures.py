"""The demo's measurements, and percentiles of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.commands.demo.workload import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.commands.demo.arrivals import Delivery
    from server.commands.demo.server_process import Gauges


@dataclass
class KindFigures:
    """The latencies of the delivered commits of one kind."""

    commits: int = 0
    endpoints: int = 0
    seconds: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """The part of ``seconds`` that belongs to commits that did not wait behind another commit."""


@dataclass
class Figures:
    """The figures of one run, for the view and the summary."""

    rows: dict[str, KindFigures] = field(default_factory=lambda: {kind: KindFigures() for kind in KINDS})
    staleness: list[float] = field(default_factory=list)
    """The server's staleness in seconds, sampled about once a second."""
    refused: list[float] = field(default_factory=list)
    """Seconds from each commit that took a key away to Envoy's first refusal of that key."""

    def deliver(self, delivery: Delivery) -> None:
        """Count a delivered commit."""
        row = self.rows[delivery.commit.kind]
        row.commits += 1
        row.endpoints += len(delivery.commit.changes)
        if delivery.seconds is not None:
            row.seconds.append(delivery.seconds)
            if delivery.alone:
                row.alone.append(delivery.seconds)

    def observe(self, gauges: Gauges | None) -> None:
        """Record the server's gauges."""
        if gauges is not None:
            self.staleness.append(gauges.staleness)

    @property
    def total(self) -> KindFigures:
        """The figures of all kinds together."""
        rows = self.rows.values()
        return KindFigures(
            sum(row.commits for row in rows),
            sum(row.endpoints for row in rows),
            [seconds for row in rows for seconds in row.seconds],
            [seconds for row in rows for seconds in row.alone],
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile for ``share`` (0 to 1); NaN if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
