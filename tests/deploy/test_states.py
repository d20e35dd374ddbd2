"""Metrics and alerts as an operator gets them: through a real Prometheus, in each state of the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg2
import pytest
from prometheus_client.exposition import generate_latest
from psycopg2.extras import LogicalReplicationConnection

from cdc.freshness import Freshness
from cdc.store.store import Store
from server.observe.metrics import Metrics
from server.subscribers import Subscribers
from tests.deploy.test_dashboard import as_asked, panels
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated
    from tests.plugins.prometheus import Prometheus, PrometheusFactory
    from tests.plugins.server import GatewayFactory, ServerFactory

LAG = "pads_cdc_replication_lag_seconds"
POLLING = 'pads_cdc_source_mode{mode="polling"}'
STREAMING = 'pads_cdc_source_mode{mode="streaming"}'

pytestmark = pytest.mark.slow


@pytest.fixture
def database(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> Database:
    """One in a cluster of its own, with some endpoints."""
    filled = database_factory(cluster=cluster_factory())
    fill(filled, 300)
    return filled


def wait_caught_up(scraping: Prometheus) -> None:
    scraping.wait(LAG, lambda lag: lag == 0)
    scraping.wait("pads_cdc_source_connected", lambda up: up == 1)


def wait_growing(scraping: Prometheus) -> None:
    """Return when the lag has grown by as much as time has passed, seen twice."""
    first = scraping.wait(LAG, lambda lag: lag > 3)
    began = time.monotonic()
    second = scraping.wait(LAG, lambda lag: lag > first + 3)
    assert second - first == pytest.approx(time.monotonic() - began, abs=2.5)


def colour(scraping: Prometheus, title: str) -> str:
    """Return the colour of a stat on the dashboard, as Grafana would choose it now."""
    [panel] = [one for one in panels() if one["title"] == title]
    [target] = panel["targets"]
    value = scraping.value(as_asked(target["expr"]))
    assert value is not None, title
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return str([step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1])


@pytest.mark.soak
def test_idle_is_no_lag_even_in_a_busy_cluster_and_alerts_nobody(
    database: Database,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    prometheus: PrometheusFactory,
) -> None:
    other = database_factory(cluster=database.cluster)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    scraping = prometheus(server)
    wait_caught_up(scraping)
    began = time.monotonic()
    while time.monotonic() - began < 8:  # for Prometheus to look at
        other.execute("UPDATE pay_plans SET throughput_limit = 1; CREATE TABLE x (); DROP TABLE x")
        database.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000))")
        time.sleep(0.05)  # busy, but not at a pace that would fill a disk within 4 hours
    scraping.next_scrape()
    [lags] = scraping.range(LAG, 7)
    assert max(lags) < 5, lags
    wait_caught_up(scraping)
    scraping.wait('pads_cdc_replication_lag_bytes{stage="applied"}', lambda behind: behind == 0)
    assert scraping.value("pads_cdc_endpoints") == 300
    assert scraping.value("sum(pads_cdc_subscribers)") == 1
    assert scraping.value("sum(pads_cdc_subscribers_current)") == 1
    assert scraping.alerts() == set()
    for title in (
        "Gateways that have everything",
        "Oldest map",
        "Latest gateway",
        "Not streaming",
        "Troubles",
    ):
        assert colour(scraping, title) == "green", title


def test_a_frozen_database_is_lag_that_grows_and_ends(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, prometheus: PrometheusFactory
) -> None:
    server = serve(database)
    gateway(server)
    scraping = prometheus(server)
    wait_caught_up(scraping)
    with database.cluster.frozen():
        wait_growing(scraping)
        assert colour(scraping, "Oldest map") == "orange", "the dashboard takes it for idleness"
    wait_caught_up(scraping)
    assert colour(scraping, "Oldest map") == "green"


def test_a_source_that_is_cut_off_is_disconnected_and_lags(
    database: Database, serve: ServerFactory, prometheus: PrometheusFactory
) -> None:
    with Proxy(database.cluster.port) as proxy:
        url = database.url().replace(f":{database.cluster.port}/", f":{proxy.port}/")
        scraping = prometheus(serve(url))
        wait_caught_up(scraping)
        proxy.refusing = True
        proxy.cut()
        scraping.wait("pads_cdc_source_connected", lambda up: up == 0)
        wait_growing(scraping)
        scraping.wait_alerts("PadsCdcSourceDisconnected", "PadsCdcNoSubscribers")
        # Further attempts are told as what they are.
        scraping.wait('sum(pads_cdc_source_reconnects_total{reason="unreachable"})', lambda tries: tries >= 1)
        proxy.refusing = False
        wait_caught_up(scraping)


def test_a_slot_that_another_holds_is_polling_and_bounded_lag(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, prometheus: PrometheusFactory
) -> None:
    server = serve(database)
    client = gateway(server)
    scraping = prometheus(server)
    wait_caught_up(scraping)
    thief = wait_until(lambda: steal(database), "another process has the slot")
    assert thief is not None
    scraping.wait(POLLING, lambda polls: polls == 1)
    scraping.wait("pads_cdc_source_connected", lambda up: up == 0)
    assert scraping.value(STREAMING) == 0
    scraping.wait_alerts("PadsCdcPolling")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, database)
    scraping.wait(LAG, lambda lag: lag < 6)
    scraping.wait("pads_cdc_endpoints", lambda number: number == 299)
    thief.close()
    scraping.wait(STREAMING, lambda streams: streams == 1)
    wait_caught_up(scraping)
    scraping.wait('pads_cdc_reconcile_total{reason="polling"}', lambda polls: polls >= 1)


def test_a_slot_that_is_dropped_and_cannot_be_made_is_polling_and_says_why(
    database: Database, serve: ServerFactory, prometheus: PrometheusFactory
) -> None:
    scraping = prometheus(serve(database))
    wait_caught_up(scraping)
    session = database.connect()
    session.autocommit = False
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")
    wait_until(lambda: drop_slot(database), "the slot is dropped")
    scraping.wait(POLLING, lambda polls: polls == 1)
    scraping.wait('pads_cdc_trouble{reason="slot_creation"}', lambda holds: holds == 1)
    scraping.wait_alerts("PadsCdcPolling", "PadsCdcSlotCreationWaits")
    scraping.wait(LAG, lambda lag: lag < 6)
    session.rollback()
    scraping.wait('pads_cdc_trouble{reason="slot_creation"}', lambda holds: holds == 0)
    scraping.wait('pads_cdc_reconcile_total{reason="slot_created"}', lambda made: made >= 1)
    wait_caught_up(scraping)


def test_a_state_file_that_cannot_be_written_is_counted_and_alerted_and_no_lag(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, prometheus: PrometheusFactory
) -> None:
    server = serve(database, STATE_FILE="/proc/no/such/folder/state")
    client = gateway(server)
    wait_equal(client, database)
    scraping = prometheus(server)
    wait_caught_up(scraping)
    scraping.wait("pads_cdc_state_file_errors_total", lambda errors: errors >= 1)
    scraping.wait('pads_cdc_trouble{reason="state_file"}', lambda holds: holds == 1)
    scraping.wait_alerts("PadsCdcStateFileFails", "PadsCdcStateFileLost")


@pytest.mark.soak
def test_a_standby_says_the_same(
    standby17: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    prometheus: PrometheusFactory,
) -> None:
    database = database_factory(cluster=standby17.primary)
    fill(database, 300)
    standby17.wait_replayed()
    session = database.connect()
    with session.cursor() as cursor:
        server = serve(database.on(standby17.standby))
        scraping = prometheus(server)

        def connected() -> bool:
            cursor.execute("SELECT pg_log_standby_snapshot()")
            return scraping.value("pads_cdc_source_connected") == 1

        wait_until(connected, "the slot is made on the standby", 60)
    client = gateway(server)
    wait_caught_up(scraping)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    standby17.wait_replayed()
    wait_equal(client, database)
    wait_caught_up(scraping)
    scraping.wait("pads_cdc_endpoints", lambda number: number == 299)
    assert scraping.value('pads_cdc_slot_wal_status{wal_status="reserved"}') == 1
    with standby17.standby.frozen():
        wait_growing(scraping)
    wait_caught_up(scraping)


def test_a_scrape_costs_little_however_many_endpoints_and_subscribers() -> None:
    store, freshness, subscribers = Store(), Freshness(), Subscribers()
    entries = ((f"app_{number}", b"x" * 60) for number in range(1_000_000))
    store.publish(store.prepare(list(entries), 10), consistent=True)
    subscribers.published(store.head)
    for number in range(500):
        subscribers.add(f"ipv4:10.0.0.1:{number}", "gateway_endpoints")
    metrics = Metrics(
        version="1", store=store, freshness=freshness, subscribers=subscribers, audit_interval=300.0
    )
    took = []
    for _ in range(9):
        began = time.perf_counter()
        assert b"pads_cdc_endpoints 1e+06" in generate_latest(metrics.registry)
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 0.02, took


def steal(database: Database) -> connection | None:
    """Read the slot in the server's place; None where that was faster."""
    database.rows("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    thief = psycopg2.connect(database.url(), connection_factory=LogicalReplicationConnection)
    try:
        thief.cursor().start_replication(slot_name="pads_cdc")
    except psycopg2.errors.ObjectInUse:
        thief.close()
        return None
    return thief


def drop_slot(database: Database) -> bool:
    """Drop the slot as soon as its reader lets go of it."""
    try:
        database.rows("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        database.rows("SELECT pg_drop_replication_slot('pads_cdc')")
    except psycopg2.errors.ObjectInUse:
        return False
    return True
