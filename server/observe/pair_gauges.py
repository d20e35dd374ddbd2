"""The metrics of a pair, where there is one: who leads is `source_mode`, these say whether it would work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.pair.pair import Pair


class PairGauges(Collector):
    """Read at each scrape."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the present state."""
        pair = self._pair
        yield GaugeMetricFamily(
            "pads_cdc_standing_by", "1 while the peer reads the slot and serves.", value=pair.standing_by
        )
        yield GaugeMetricFamily(
            "pads_cdc_peer_connected",
            "1 while the two servers of the slot hold the same map: one mirrors the other.",
            value=pair.in_step,
        )
        lag = GaugeMetricFamily(
            "pads_cdc_peer_lag_bytes", "WAL that is in the leader's map and not in its standby's."
        )
        if (behind := pair.behind) is not None:
            lag.add_metric((), behind)
        yield lag
