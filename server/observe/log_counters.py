"""The metric of dropped log lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class LogCounters(Collector):
    """The number of dropped log lines, read at each scrape."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        """``dropped`` returns the number of lines that were dropped since the start."""
        self._dropped = dropped

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the current count."""
        yield CounterMetricFamily(
            "pads_cdc_log_lines_dropped",
            "Log lines that were dropped, because nobody read standard error.",
            value=self._dropped(),
        )
