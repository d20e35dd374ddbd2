"""Metrics: the names and labels that dashboards depend on, and what their numbers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import structlog
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cdc.freshness import Freshness
from cdc.observer import BatchSeen, Observer, ReconcileSeen, SlotSeen, TransactionSeen
from cdc.store.store import Store
from cdc.units import Revision
from server.observe.fanout import FanOut, Listener
from server.observe.metrics import Metrics
from server.subscribers import Subscribers

if TYPE_CHECKING:
    from cdc.changes import Action

DESIGNED = {
    "source_connected": set(),
    "source_mode": {"mode"},
    "endpoints": set(),
    "subscribers": {"protocol"},
    "build_info": {"version"},
    "replication_lag_bytes": {"stage"},
    "replication_lag_seconds": set(),
    "slot_retained_bytes": set(),
    "slot_safe_wal_size_bytes": set(),
    "slot_wal_status": {"wal_status"},
    "slot_catalog_xmin_age": set(),
    "transactions_total": set(),
    "row_changes_total": {"table", "action"},
    "published_total": {"kind"},
    "suppressed_total": set(),
    "commit_to_publish_seconds": set(),
    "requery_seconds": set(),
    "visibility_wait_seconds": set(),
    "affected_endpoints": set(),
    "reconcile_total": {"reason"},
    "audit_runs_total": set(),
    "audit_drift_total": set(),
    "source_reconnects_total": {"reason"},
    "decode_errors_total": {"reason"},
    "state_file_errors_total": set(),
    "last_audit_timestamp_seconds": set(),
    "last_reconcile_timestamp_seconds": set(),
    "audit_interval_seconds": set(),
    "trouble": {"reason"},
    "odd_rows": {"reason"},
    "subscriber_max_lag_seconds": set(),
    "subscribers_current": {"protocol"},
    "feed_resets_total": {"reason"},
}
"""The design's table, as far as there is something to feed it."""


class Clock:
    """Stands still until told otherwise."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """Metrics over a real store, freshness and register, with one clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store()
        self.freshness = Freshness(self.clock)
        self.subscribers = Subscribers(self.clock, self.clock)
        self.metrics = Metrics(
            version="1.2.3",
            store=self.store,
            freshness=self.freshness,
            subscribers=self.subscribers,
            audit_interval=300.0,
            wall=self.clock,
        )

    def __getitem__(self, sample: str) -> float | None:
        """Value of a sample, such as ``endpoints`` or ``source_mode{mode="polling"}``."""
        return self.samples().get(f"pads_cdc_{sample}")

    def samples(self) -> dict[str, float]:
        found = {}
        for family in text_string_to_metric_families(generate_latest(self.metrics.registry).decode()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


@pytest.fixture
def scene() -> Scene:
    return Scene()


def transaction(committed_at: float, published_at: float, **rows: int) -> TransactionSeen:
    # mypy takes the names of keywords for any strings.
    changed = cast("dict[tuple[str, Action], int]", {("accounts", action): n for action, n in rows.items()})
    return TransactionSeen(7, 100, committed_at, published_at, changed, 3)


def batch(*transactions: TransactionSeen, affected: int = 3) -> BatchSeen:
    return BatchSeen(transactions, affected, 2, 1, 4, 0.02, 0.001, 9)


def feed_everything(scene: Scene) -> None:
    metrics = scene.metrics
    metrics.mode("streaming")
    metrics.connected(connected=True)
    metrics.reconnecting("refused", "no route")
    metrics.batch(batch(transaction(999.99, 1000.0, update=2, insert=1)))
    metrics.reconciled(ReconcileSeen("start", 10, 10, 0, 0.5))
    metrics.decode_error("action", "unknown action")
    metrics.state_file_error("disk full")
    metrics.slot(SlotSeen(4096, 1 << 30, "reserved", 12, 4711))
    metrics.handled("FetchAuthDataSync", "OK")
    scene.freshness.reported(1000, scene.clock())
    scene.freshness.applied(900)
    scene.freshness.received(950)
    scene.freshness.confirmed(800)


def test_every_metric_of_the_design_is_there_under_its_name_with_its_labels(scene: Scene) -> None:
    feed_everything(scene)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(scene.metrics.registry).decode()):
        for sample in family.samples:
            if sample.name.startswith("pads_cdc_") and not sample.name.endswith("_created"):
                name = sample.name.removeprefix("pads_cdc_")
                if family.type == "histogram":
                    name = family.name.removeprefix("pads_cdc_")
                found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert found == DESIGNED
    assert scene.samples()['grpc_server_handled_total{grpc_code="OK",grpc_method="FetchAuthDataSync"}'] == 1


def test_a_batch_is_counted_by_transactions_rows_and_outcomes(scene: Scene) -> None:
    slow, fast = transaction(990.0, 1000.0, update=5), transaction(999.998, 1000.0, update=1, truncate=1)
    scene.metrics.batch(batch(slow, fast))
    assert scene["transactions_total"] == 2
    assert scene['row_changes_total{action="update",table="accounts"}'] == 6
    assert scene['row_changes_total{action="truncate",table="accounts"}'] == 1
    assert scene['published_total{kind="upsert"}'] == 2
    assert scene['published_total{kind="delete"}'] == 1
    assert scene["suppressed_total"] == 4
    assert scene['commit_to_publish_seconds_bucket{le="0.0025"}'] == 1
    assert scene["commit_to_publish_seconds_sum"] == pytest.approx(10.002)
    assert scene["affected_endpoints_sum"] == 3
    assert scene["requery_seconds_count"] == 1


def test_a_database_clock_ahead_of_ours_is_not_negative_time(scene: Scene) -> None:
    scene.metrics.batch(batch(transaction(1005.0, 1000.0)))
    assert scene["commit_to_publish_seconds_sum"] == 0.0
    assert scene["commit_to_publish_seconds_count"] == 1


def test_what_affected_nothing_is_no_requery(scene: Scene) -> None:
    scene.metrics.batch(batch(transaction(1000.0, 1000.0), affected=0))
    assert scene["requery_seconds_count"] == 0
    assert scene["visibility_wait_seconds_count"] == 1


def test_lag_in_bytes_is_behind_the_servers_end_and_never_negative(scene: Scene) -> None:
    assert scene['replication_lag_bytes{stage="applied"}'] is None, "unknown is not a number"
    scene.freshness.reported(1000, scene.clock())
    assert scene['replication_lag_bytes{stage="received"}'] is None, "nothing was received yet"
    scene.freshness.received(950)
    scene.freshness.applied(900)
    scene.freshness.confirmed(800)
    assert scene['replication_lag_bytes{stage="received"}'] == 50
    assert scene['replication_lag_bytes{stage="applied"}'] == 100
    assert scene['replication_lag_bytes{stage="confirmed"}'] == 200
    scene.freshness.applied(2000)
    assert scene['replication_lag_bytes{stage="applied"}'] == 0


def test_lag_in_seconds_grows_while_nothing_happens(scene: Scene) -> None:
    scene.freshness.reported(1000, scene.clock())
    scene.freshness.applied(1000)
    assert scene["replication_lag_seconds"] == 0.0
    scene.clock.now += 60
    assert scene["replication_lag_seconds"] == 60.0


def test_exactly_one_mode_holds(scene: Scene) -> None:
    for mode in ("waiting", "polling", "streaming"):
        scene.metrics.mode(mode)
        held = {name: value for name, value in scene.samples().items() if "source_mode" in name}
        assert len(held) == 3
        assert [name for name, value in held.items() if value] == [f'pads_cdc_source_mode{{mode="{mode}"}}']


def test_the_slot_shows_only_what_the_server_says(scene: Scene) -> None:
    scene.metrics.slot(SlotSeen(None, None, "lost", None, None))
    assert scene["slot_retained_bytes"] is None
    assert scene['slot_wal_status{wal_status="lost"}'] == 1
    assert scene['slot_wal_status{wal_status="reserved"}'] == 0


def test_an_audit_is_a_reconcile_whose_repairs_are_drift(scene: Scene) -> None:
    assert scene["audit_drift_total"] == 0, "the alert needs the series from the start"
    scene.metrics.reconciled(ReconcileSeen("audit", 10, 0, 0, 0.5))
    scene.clock.now = 2000.0
    scene.metrics.reconciled(ReconcileSeen("audit", 10, 2, 1, 0.5))
    scene.metrics.reconciled(ReconcileSeen("truncate", 0, 0, 10, 0.5))
    assert scene["audit_runs_total"] == 2
    assert scene["audit_drift_total"] == 3
    assert scene["last_audit_timestamp_seconds"] == 2000.0
    assert scene['reconcile_total{reason="truncate"}'] == 1


def test_any_comparison_of_the_whole_mapping_tells_when_it_was_done(scene: Scene) -> None:
    assert scene["last_reconcile_timestamp_seconds"] == 0.0
    scene.metrics.reconciled(ReconcileSeen("start", 10, 10, 0, 0.5))
    assert scene["last_reconcile_timestamp_seconds"] == 1000.0
    assert scene["last_audit_timestamp_seconds"] == 0.0


def test_a_lasting_condition_is_shown_while_it_holds_and_never_with_its_text(scene: Scene) -> None:
    assert scene['trouble{reason="state_file"}'] == 0, "the alert needs the series from the start"
    scene.metrics.trouble("state_file", "the disk is full")
    assert scene['trouble{reason="state_file"}'] == 1
    assert not any("disk" in name for name in scene.samples())
    scene.metrics.trouble("state_file", None)
    assert scene['trouble{reason="state_file"}'] == 0


def test_what_alerts_count_is_there_from_the_start(scene: Scene) -> None:
    """An increase from nothing to 1 is none to Prometheus."""
    assert scene['source_reconnects_total{reason="slot_lost"}'] == 0
    assert scene['source_reconnects_total{reason="fault"}'] == 0
    assert scene['feed_resets_total{reason="digest_mismatch"}'] == 0
    assert scene['decode_errors_total{reason="undecodable"}'] == 0


def test_endpoints_are_the_live_ones_of_the_store(scene: Scene) -> None:
    store = scene.store
    store.publish(store.prepare([("a", b"1"), ("b", b"2")], 10), consistent=True)
    store.publish(store.prepare([("a", None)], 20), consistent=True)
    assert scene["endpoints"] == 1


def test_subscribers_are_counted_while_they_are_open(scene: Scene) -> None:
    assert scene['subscribers{protocol="gateway_endpoints"}'] == 0
    first = scene.subscribers.add("ipv4:127.0.0.1:1", "gateway_endpoints")
    second = scene.subscribers.add("ipv4:127.0.0.1:1", "gateway_endpoints")
    assert scene['subscribers{protocol="gateway_endpoints"}'] == 2
    scene.subscribers.remove(first)
    scene.subscribers.remove(first)
    assert [seen.since for seen in scene.subscribers.snapshot()] == [second.since]


def test_a_subscriber_lags_since_the_first_thing_that_it_lacks(scene: Scene) -> None:
    subscribers, clock = scene.subscribers, scene.clock
    subscriber = subscribers.add("peer", "gateway_endpoints")
    subscribers.published(1)
    subscriber.revision = Revision(1)
    clock.now += 3600
    assert scene["subscriber_max_lag_seconds"] == 0.0, "idle is not late"
    subscribers.published(2)
    assert scene["subscriber_max_lag_seconds"] == 0.0, "just published"
    clock.now += 5
    subscribers.published(3)
    clock.now += 2
    assert scene["subscriber_max_lag_seconds"] == 7.0
    (seen,) = subscribers.snapshot()
    assert (seen.behind, seen.peer) == (2, "peer")
    subscriber.revision = Revision(2)
    assert scene["subscriber_max_lag_seconds"] == 2.0
    subscriber.revision = Revision(3)
    assert scene["subscriber_max_lag_seconds"] == 0.0


def test_publications_close_together_are_kept_as_one_from_the_first(scene: Scene) -> None:
    subscribers, clock = scene.subscribers, scene.clock
    subscriber = subscribers.add("peer", "gateway_endpoints")
    for head in range(1, 100_001):
        clock.now = 1000.0 + head / 100_000
        subscribers.published(head)
    assert len(subscribers._published) <= 12
    clock.now = 1010.0
    assert subscribers.snapshot()[0].lag_seconds == pytest.approx(10.0, abs=0.001)
    subscriber.revision = Revision(50_000)
    assert subscribers.snapshot()[0].lag_seconds == pytest.approx(9.5, abs=0.11)


def test_two_servers_in_one_process_do_not_mix(scene: Scene) -> None:
    other = Scene()
    scene.metrics.batch(batch(transaction(1000.0, 1000.0)))
    assert other["transactions_total"] == 0


def test_an_observer_that_fails_stops_neither_the_caller_nor_the_others(scene: Scene) -> None:
    class Broken(Listener):
        def mode(self, mode: str) -> None:
            raise RuntimeError(mode)

    with structlog.testing.capture_logs() as lines:
        FanOut(Broken(), scene.metrics).mode("polling")
    assert scene['source_mode{mode="polling"}'] == 1
    assert [line["observer"] for line in lines] == ["Broken"]


def test_every_report_of_the_follower_reaches_its_listeners(scene: Scene) -> None:
    told: Observer = FanOut(scene.metrics)
    reports = {name for name in vars(Observer) if not name.startswith("_")}
    assert reports <= set(vars(FanOut))
    assert reports <= set(vars(Listener))
    told.slot(SlotSeen(7, None, None, None, None))
    assert scene["slot_retained_bytes"] == 7
