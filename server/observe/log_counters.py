"""The metric of log lines that nobody could be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.observe.log_writer import LogWriter


class LogCounters(Collector):
    """Read at each scrape."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the present count."""
        yield CounterMetricFamily(
            "pads_cdc_log_lines_dropped",
            "Log lines that were dropped, because nobody read standard error.",
            value=self._writer.dropped,
        )
