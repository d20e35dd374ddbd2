"""The authorizer's Prometheus metrics. No label contains an id, a key or an address."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from authz.check import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.held import Held

PREFIX: Final = "pads_cdc_authorize"
_SECONDS: Final = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.25,
)
"""Buckets in seconds. A check takes some 20 us. If one took more than a millisecond, it waited for the
interpreter.
"""


class CheckMetrics:
    """Counts checks. ``/metrics`` shows ``registry``."""

    def __init__(self, version: str, held: Held) -> None:
        self.registry = registry = CollectorRegistry()
        build = Gauge(  # its name is that of the server's metric, so that dashboards find all processes
            "pads_cdc_build_info", "Always 1; the version is in the label.", ("version",), registry=registry
        )
        build.labels(version).set(1)
        self._checks = _CheckCounts()
        registry.register(self._checks)
        registry.register(_FeedGauges(held))
        ProcessCollector(registry=registry)

    def checked(self, outcome: Outcome, seconds: float) -> None:
        """Count a check."""
        self._checks.add(outcome, seconds)


class _CheckCounts(Collector):
    """Counts checks in plain numbers, since the library's counters take four times as long.

    Not thread-safe: one event loop counts and answers scrapes.
    """

    def __init__(self) -> None:
        # All series exist from the start, since Prometheus sees no increase in a series that begins at 1.
        self._ended = dict.fromkeys(Outcome, 0)
        self._took = [0] * (len(_SECONDS) + 1)
        """The number of checks in each bucket of `_SECONDS`, followed by the number of those beyond the last
        bucket.
        """
        self._seconds = 0.0

    def add(self, outcome: Outcome, seconds: float) -> None:
        self._ended[outcome] += 1
        self._took[bisect_left(_SECONDS, seconds)] += 1
        self._seconds += seconds

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        checks = CounterMetricFamily(f"{PREFIX}_checks", "Checks, by outcome.", labels=("outcome",))
        for outcome, count in self._ended.items():
            checks.add_metric((outcome.value,), count)
        yield checks
        bounds = (*map(floatToGoString, _SECONDS), "+Inf")
        yield HistogramMetricFamily(
            f"{PREFIX}_check_seconds",
            "From a check's request to its answer.",
            buckets=list(zip(bounds, accumulate(self._took), strict=True)),
            sum_value=self._seconds,
        )


class _FeedGauges(Collector):
    """The state of the map and the feed, read at each scrape."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        held, feed = self._held, self._held.feed
        yield GaugeMetricFamily(
            f"{PREFIX}_ready", "1 while requests can be let in.", value=float(held.unready() is None)
        )
        yield GaugeMetricFamily(f"{PREFIX}_endpoints", "Endpoints in the map.", value=len(held))
        yield GaugeMetricFamily(
            f"{PREFIX}_unnameable_endpoints", "Endpoints whose id no request can name.", value=held.unnameable
        )
        staleness = GaugeMetricFamily(
            f"{PREFIX}_staleness_seconds",
            "Upper bound of the map's age; missing before the first proof.",
        )
        if math.isfinite(seconds := held.staleness()):
            staleness.add_metric((), seconds)
        yield staleness
        yield CounterMetricFamily(
            f"{PREFIX}_feed_connections", "Attempts to connect to the feed.", value=feed.attempts
        )
        yield CounterMetricFamily(
            f"{PREFIX}_feed_resets", "Snapshots that the feed began to send.", value=feed.resets
        )
        yield CounterMetricFamily(
            f"{PREFIX}_feed_proofs",
            "Digests that proved the map to be exact.",
            value=feed.proofs,
        )
