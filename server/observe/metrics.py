"""The Prometheus metrics. Reports of the applier are counted, and states are read at each scrape.

Each instance has its own registry, so that the metrics of two servers in one process (in tests) are not
mixed. No label ever contains an id, a key or a connection string; ``reason`` labels are the closed sets of
``cdc.observer``.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cdc.mapping.row_rule import OddReason
from cdc.observer import Mode, SlotSeen
from cdc.state.token import ResetReason
from server.observe.fanout import Listener
from server.subscribers import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cdc.freshness import Freshness
    from cdc.observer import BatchSeen, ReconcileSeen
    from cdc.pair.pair import Pair
    from cdc.store.store import Store
    from server.subscribers import Subscribers

_WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")
"""All values of pg_replication_slots.wal_status."""

_ALERTED: Final = {
    "source_reconnects": ("fault", "slot_lost"),
    "decode_errors": ("key_shape", "missing_column", "out_of_order", "undecodable", "unknown_action"),
    "trouble": (
        "decoding",
        "owed",
        "publication",
        "query",
        "slot_creation",
        "state_file",
        "synchronous_standby",
    ),
}
"""Values of ``reason`` that are shown from the start with 0, since Prometheus sees no increase in a series
that begins at 1.
"""

_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Buckets in seconds. Values are usually milliseconds, but minutes during a large ripple or an outage."""
_ENDPOINTS: Final = (0, 1, 2, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 1_000_000)


class Metrics(Listener):
    """Counts the applier's reports. ``/metrics`` shows ``registry``."""

    def __init__(
        self,
        *,
        version: str,
        store: Store,
        freshness: Freshness,
        subscribers: Subscribers,
        audit_interval: float | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``audit_interval`` (in seconds) becomes a metric, so that an alert can detect an overdue audit.

        It is None for a relay, which makes no audits.
        """
        self.registry = registry = CollectorRegistry()
        self._wall = wall
        self._slot_gauges = _SlotGauges()
        registry.register(self._slot_gauges)
        registry.register(_LiveGauges(store, freshness, subscribers))
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pads_cdc_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"pads_cdc_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pads_cdc_{name}", text, buckets=buckets, registry=registry)

        gauge("build_info", "Always 1; the version is in the label.", "version").labels(version).set(1)
        self._connected = gauge("source_connected", "1 while the replication connection is up.")
        self._mode = gauge("source_mode", "1 for the mode in which the source is read.", "mode")
        self._transactions = counter("transactions", "Committed transactions that reached the store.")
        self._row_changes = counter("row_changes", "Rows that transactions changed.", "table", "action")
        self._published = counter("published", "Changes of endpoints that were published.", "kind")
        self._suppressed = counter("suppressed", "Re-queried endpoints that had not changed.")
        self._commit_to_publish = histogram(
            "commit_to_publish_seconds", "From commit (database's clock) to publication (ours).", _LATENCY
        )
        self._requery = histogram("requery_seconds", "Re-query of a batch's endpoints.", _LATENCY)
        self._visibility = histogram(
            "visibility_wait_seconds", "Wait until a snapshot saw the whole batch.", _LATENCY
        )
        self._affected = histogram("affected_endpoints", "Endpoints that a batch affected.", _ENDPOINTS)
        self._reconciles = counter("reconcile", "Comparisons of the whole mapping with the store.", "reason")
        self._audits = counter("audit_runs", "Periodic comparisons of the whole mapping with the store.")
        self._drift = counter("audit_drift", "Endpoints that an audit had to repair: a bug if not 0.")
        self._last_audit = gauge(
            "last_audit_timestamp_seconds", "End of the last audit, Unix time; 0 if none."
        )
        self._last_reconcile = gauge(
            "last_reconcile_timestamp_seconds",
            "End of the last comparison of the whole mapping, for whatever reason, Unix time; 0 if none.",
        )
        if audit_interval is not None:
            gauge("audit_interval_seconds", "AUDIT_INTERVAL as set.").set(audit_interval)
        self._reconnects = counter("source_reconnects", "Losses of the source.", "reason")
        self._decode_errors = counter(
            "decode_errors", "Messages of the slot that were not understood.", "reason"
        )
        self._state_file_errors = counter("state_file_errors", "Failures of the state file.")
        self._troubles = gauge(
            "trouble", "1 while the lasting condition holds. /healthz reports it, too.", "reason"
        )
        self._odd_rows = gauge("odd_rows", "Rows that are not valid endpoints, by the reason.", "reason")
        self._feed_resets = counter(
            "feed_resets", "Snapshots sent to clients of the feed, by the reason.", "reason"
        )
        # The name is the one that the Go and Java interceptors use, so that existing dashboards find the
        # metric.
        self._handled = Counter(
            "grpc_server_handled", "RPCs that ended.", ("grpc_method", "grpc_code"), registry=registry
        )
        self.mode("waiting")
        for kind in ("upsert", "delete"):
            self._published.labels(kind)
        for reason in _ALERTED["source_reconnects"]:
            self._reconnects.labels(reason)
        for reason in _ALERTED["decode_errors"]:
            self._decode_errors.labels(reason)
        for reason in _ALERTED["trouble"]:
            self._troubles.labels(reason)
        for reset in get_args(ResetReason):
            self._feed_resets.labels(reset)
        self.odd_rows({})

    def feed_reset(self, reason: ResetReason) -> None:
        """Count a client of the feed that is sent everything again. The gRPC services call this."""
        self._feed_resets.labels(reason).inc()

    def handled(self, method: str, code: str) -> None:
        """Count an RPC that ended, such as ``("FetchAuthDataSync", "OK")``. The gRPC services call this."""
        self._handled.labels(method, code).inc()

    def mode(self, mode: Mode) -> None:
        """Set the current mode to 1 and all others to 0."""
        for each in get_args(Mode):
            self._mode.labels(each).set(each == mode)

    def connected(self, connected: bool) -> None:
        """Show whether the replication connection is up."""
        self._connected.set(connected)

    def reconnecting(self, reason: str, message: str) -> None:  # noqa: ARG002 (texts are for the log)
        """Count a loss of the source."""
        self._reconnects.labels(reason).inc()

    def batch(self, batch: BatchSeen) -> None:
        """Count a batch and time its transactions."""
        self._transactions.inc(len(batch.transactions))
        rows: dict[tuple[str, str], int] = {}
        for transaction in batch.transactions:
            for kind, number in transaction.rows.items():
                rows[kind] = rows.get(kind, 0) + number
            # The two times are from two clocks, so the difference is negative if the database's clock is
            # ahead.
            self._commit_to_publish.observe(max(0.0, transaction.published_at - transaction.committed_at))
        for (table, action), number in rows.items():
            self._row_changes.labels(table, action).inc(number)
        self._affected.observe(batch.affected)
        self._visibility.observe(batch.visibility_seconds)
        if batch.affected:
            self._requery.observe(batch.requery_seconds)
        self._count_published(batch.upserts, batch.deletes)
        self._suppressed.inc(batch.suppressed)

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Count a reconcile. If it is an audit, count it as an audit, too."""
        self._reconciles.labels(reconcile.reason).inc()
        self._count_published(reconcile.upserts, reconcile.deletes)
        self._last_reconcile.set(self._wall())
        if reconcile.reason == "audit":
            self._audits.inc()
            self._drift.inc(reconcile.upserts + reconcile.deletes)
            self._last_audit.set(self._wall())

    def decode_error(self, reason: str, message: str) -> None:  # noqa: ARG002 (texts are for the log)
        """Count a message that could not be handled."""
        self._decode_errors.labels(reason).inc()

    def state_file_error(self, message: str) -> None:  # noqa: ARG002 (texts are for the log)
        """Count a failure of the state file."""
        self._state_file_errors.inc()

    def odd_rows(self, numbers: Mapping[OddReason, int]) -> None:
        """Show the current number of odd rows for each reason."""
        for reason in get_args(OddReason):
            self._odd_rows.labels(reason).set(numbers.get(reason, 0))

    def trouble(self, key: str, message: str | None) -> None:
        """Show whether a lasting condition holds. Its text is not a label, since it may be long."""
        self._troubles.labels(key).set(message is not None)

    def slot(self, slot: SlotSeen) -> None:
        """Show the slot's state."""
        self._slot_gauges.seen = slot

    def _count_published(self, upserts: int, deletes: int) -> None:
        self._published.labels("upsert").inc(upserts)
        self._published.labels("delete").inc(deletes)


class _SlotGauges(Collector):
    """The last reported state of the slot. A value that the server does not report has no series instead of a
    false 0.
    """

    seen: SlotSeen | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        slot = self.seen or SlotSeen(None, None, None, None, None)
        for name, text, value in (
            ("retained_bytes", "WAL that the slot retains.", slot.retained_bytes),
            (
                "safe_wal_size_bytes",
                "WAL to be written until the slot is in danger.",
                slot.safe_wal_bytes,
            ),
            (
                "catalog_xmin_age",
                "Transactions since the slot's catalog_xmin.",
                slot.catalog_xmin_age,
            ),
        ):
            family = GaugeMetricFamily(f"pads_cdc_slot_{name}", text)
            if value is not None:
                family.add_metric((), value)
            yield family
        statuses = GaugeMetricFamily(
            "pads_cdc_slot_wal_status", "1 for the status that holds.", labels=("wal_status",)
        )
        if slot.wal_status is not None:
            for status in _WAL_STATUSES:
                statuses.add_metric((status,), status == slot.wal_status)
        yield statuses


class _LiveGauges(Collector):
    """States that are read at each scrape. So lags grow even if there are no events."""

    def __init__(self, store: Store, freshness: Freshness, subscribers: Subscribers) -> None:
        self._store = store
        self._freshness = freshness
        self._subscribers = subscribers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("pads_cdc_endpoints", "Endpoints in the map.", value=len(self._store))
        yield GaugeMetricFamily(
            "pads_cdc_replication_lag_seconds",
            "Time since the map was last known to be exact; 0 if it is caught up, even while idle.",
            value=self._freshness.staleness(),
        )
        yield self._lag_bytes()
        yield self._replay_lag()
        subscribers = self._subscribers.snapshot()
        counts = Tally(subscriber.protocol for subscriber in subscribers)
        family = GaugeMetricFamily("pads_cdc_subscribers", "Open streams.", labels=("protocol",))
        for protocol in PROTOCOLS:
            family.add_metric((protocol,), counts[protocol])
        yield family
        current = Tally(subscriber.protocol for subscriber in subscribers if not subscriber.lag_seconds)
        family = GaugeMetricFamily(
            "pads_cdc_subscribers_current",
            "Subscribers that have everything; those of the feed have acknowledged it.",
            labels=("protocol",),
        )
        for protocol in PROTOCOLS:
            family.add_metric((protocol,), current[protocol])
        yield family
        yield GaugeMetricFamily(
            "pads_cdc_subscriber_max_lag_seconds",
            "Time for which the slowest subscriber has lacked a change; 0 if all have everything.",
            value=max((subscriber.lag_seconds for subscriber in subscribers), default=0.0),
        )

    def _replay_lag(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "pads_cdc_query_server_replay_lag_bytes",
            "WAL that the slot's server has and the query server, a standby, has not replayed.",
        )
        at = self._freshness.positions()
        if at.server_end and at.replayed is not None:
            family.add_metric((), max(0, at.server_end - at.replayed))
        return family

    def _lag_bytes(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "pads_cdc_replication_lag_bytes", "WAL behind the server's end, by stage.", labels=("stage",)
        )
        at = self._freshness.positions()
        for stage, position in (
            ("received", at.received),
            ("applied", at.applied),
            ("confirmed", at.confirmed),
        ):
            # 0 means "not known yet": the difference would be the size of all WAL ever written. The stream
            # can be ahead of the end that the server last reported.
            if at.server_end and position:
                family.add_metric((stage,), max(0, at.server_end - position))
        return family


class PairGauges(Collector):
    """The state of a pair, read at each scrape. It shows whether the other server could take over."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current state."""
        pair = self._pair
        yield GaugeMetricFamily(
            "pads_cdc_standing_by", "1 while the peer reads the slot and serves.", value=pair.standing_by
        )
        yield GaugeMetricFamily(
            "pads_cdc_peer_connected",
            "1 while one server of the pair mirrors the other, so that both hold the same map.",
            value=pair.in_step,
        )
        lag = GaugeMetricFamily(
            "pads_cdc_peer_lag_bytes", "WAL that is in the leader's map and not in its standby's."
        )
        if (behind := pair.behind) is not None:
            lag.add_metric((), behind)
        yield lag
