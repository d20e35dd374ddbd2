"""The metrics of a leader that publishes to a broker, and those of a relay. They are read at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from cdc.relay.intake import Received
    from cdc.relay.leader import LeaderFreshness
    from cdc.store.store import Store
    from server.broker.publishing import PublishingCounts


class PublishedGauges(Collector):
    """The metrics of a leader that publishes to a broker."""

    def __init__(self, published: PublishingCounts, store: Store) -> None:
        self._published = published
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the present state."""
        now = self._published
        yield GaugeMetricFamily(
            "pads_cdc_broker_connected", "1 while the broker can be reached.", value=now.connected
        )
        yield CounterMetricFamily("pads_cdc_broker_pages", "Pages published to the broker.", value=now.pages)
        yield CounterMetricFamily("pads_cdc_broker_bytes", "Bytes of pages published.", value=now.bytes)
        yield GaugeMetricFamily(
            "pads_cdc_broker_lag_revisions",
            "Revisions of the map that are not in the stream yet.",
            value=max(0, self._store.head - now.revision),
        )
        yield CounterMetricFamily(
            "pads_cdc_broker_fenced", "How often another publisher was found in our stream.", value=now.fenced
        )
        yield CounterMetricFamily(
            "pads_cdc_broker_snapshots", "Complete snapshots published.", value=now.generations
        )
        yield CounterMetricFamily(
            "pads_cdc_broker_restarts",
            "Connections to the broker that were lost or could not be opened.",
            value=now.restarts,
        )


class ReceivedGauges(Collector):
    """The metrics of a relay."""

    def __init__(self, received: Received, freshness: LeaderFreshness) -> None:
        self._received = received
        self._freshness = freshness

    def collect(self) -> Iterator[Metric]:
        """Yield the present state."""
        now = self._received
        yield GaugeMetricFamily(
            "pads_cdc_relay_connected",
            "1 while the broker, or the leader, can be reached.",
            value=now.connected,
        )
        yield CounterMetricFamily("pads_cdc_relay_pages", "Pages received.", value=now.pages)
        yield CounterMetricFamily("pads_cdc_relay_bytes", "Bytes of pages received.", value=now.bytes)
        yield GaugeMetricFamily(
            "pads_cdc_relay_revision", "The leader's revision that the map has reached.", value=now.revision
        )
        behind = GaugeMetricFamily(
            "pads_cdc_relay_behind_revisions", "Revisions that the leader has and the relay lacks."
        )
        if (missing := self._freshness.behind) is not None:
            behind.add_metric((), missing)
        yield behind
        yield CounterMetricFamily(
            "pads_cdc_relay_chain_breaks",
            "Gaps in the pages, after which a snapshot was needed.",
            value=now.breaks,
        )
        yield CounterMetricFamily(
            "pads_cdc_relay_digest_mismatches",
            "Checkpoints at which the map differed from the leader's.",
            value=now.mismatches,
        )
        yield CounterMetricFamily(
            "pads_cdc_relay_restarts",
            "Connections to the broker or the leader that were lost or could not be opened.",
            value=now.restarts,
        )
