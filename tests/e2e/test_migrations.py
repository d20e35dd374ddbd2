"""Nobody waits for us for more than 5 s: no migration of the tables that we read, and nobody behind it."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.e2e.test_losses import wait_healthy
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy
from tests.support.repeated import MOST, repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

SOCKETS = "/tmp"  # noqa: S108 - short enough for a socket, and the server makes the file
RIPPLE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
HELD = (
    "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'relation' AND relation = 'accounts'::regclass AND granted"
    " AND application_name = 'pads-cdc'"
)


class Queue:
    """Somebody who migrates, and behind them somebody who writes and somebody who reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.waits: dict[str, float] = {}
        """Seconds that each has waited."""

    def stand(self) -> None:
        """Let all of them come one after the other, and wait until they are through."""
        statements = {
            "migration": "ALTER TABLE accounts ADD COLUMN IF NOT EXISTS note TEXT",
            "writer": "UPDATE accounts SET plan_type = plan_type WHERE id = 'acc_1'",
            "reader": "SELECT count(*) FROM accounts",
        }
        threads = [threading.Thread(target=self._wait, args=one) for one in statements.items()]
        for thread in threads:
            thread.start()
            time.sleep(0.1)  # so that they queue in this order
        for thread in threads:
            thread.join(60)

    def _wait(self, who: str, statement: str) -> None:
        with closing(psycopg2.connect(self._database.url())) as session, session.cursor() as cursor:
            session.autocommit = True
            began = time.monotonic()
            cursor.execute(statement)
            self.waits[who] = time.monotonic() - began


def by_socket(database: Database) -> str:
    """Return a connection string that goes through the server's Unix socket."""
    cluster = database.cluster
    return f"host=/tmp port={cluster.port} user=postgres password={cluster.password} dbname={database.name}"


@pytest.fixture
def large(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> Database:
    """A plan's change ripples to 60,000 endpoints, for half a second or more."""
    database = database_factory(cluster=cluster_factory({"unix_socket_directories": SOCKETS}))
    fill(database, 60_000, plans=1)
    return database


def caught_reading(database: Database, server: Server) -> None:
    """Stop the process while it holds the locks of a read."""
    for attempt in range(50):
        database.execute(RIPPLE)
        wait_until(lambda: database.value(HELD) > 0, "it reads")
        time.sleep(0.02 * (attempt % 10))
        os.kill(server.process.pid, signal.SIGSTOP)
        if database.value(HELD) > 0:
            return
        os.kill(server.process.pid, signal.SIGCONT)
    raise AssertionError("it was never stopped within a read")


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["tcp", *(pytest.param(way, marks=pytest.mark.soak) for way in ("socket", "pooler"))]
)
def test_a_process_that_is_frozen_within_a_read_delays_nobody_for_long(
    large: Database, serve: ServerFactory, gateway: GatewayFactory, pooler: PoolerFactory, way: str
) -> None:
    url = large.url() if way == "tcp" else by_socket(large)
    if way == "pooler":
        url = pooler(large, large.cluster.port)
    server = serve(large, QUERY_CONNECTION_STRING=url).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    queue = Queue(large)
    for _ in range(2):
        caught_reading(large, server)
        try:
            queue.stand()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert max(queue.waits.values()) < MOST, queue.waits
        assert queue.waits["migration"] > 1, "it was not frozen within a read"
        wait_equal(client, large)
    wait_healthy(server)
    assert server.metric("pads_cdc_audit_drift_total") == 0


@pytest.mark.slow
def test_a_network_that_is_cut_within_a_read_delays_nobody_for_long(
    large: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    with Proxy(large.cluster.port) as proxy:
        url = large.url().replace(f":{large.cluster.port}/", f":{proxy.port}/")
        server = serve(large, QUERY_CONNECTION_STRING=url).wait_ready()
        client = gateway(server)
        wait_healthy(server)
        queue = Queue(large)
        large.execute(RIPPLE)
        wait_until(lambda: large.value(HELD) > 0, "it reads")
        proxy.stalled = True
        try:
            queue.stand()
        finally:
            proxy.stalled = False
        assert max(queue.waits.values()) < MOST, queue.waits
        wait_equal(client, large)
        wait_healthy(server)


@contextmanager
def _migrating(database: Database) -> Iterator[list[float]]:
    """Change definitions again and again, each in turn; yields how long each has waited."""
    waits: list[float] = []
    ending = threading.Event()

    def migrate() -> None:
        columns = {
            "portal_application_settings": "secret_key",
            "pay_plans": "throughput_limit",
            "portal_applications": "account_id",
            "accounts": "plan_type",
        }
        tables = list(columns)
        with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
            number = 0
            while not ending.wait(1.5):
                number += 1
                began = time.monotonic()
                for table in (tables[number % 4], tables[(number + 1) % 4]):
                    cursor.execute(f"ALTER TABLE {table} ALTER {columns[table]} SET DEFAULT '{number}'")
                waits.append(time.monotonic() - began)
                session.commit()

    thread = threading.Thread(target=migrate)
    thread.start()
    try:
        yield waits
    finally:
        ending.set()
        thread.join(60)


@pytest.mark.soak
def test_migrations_beside_ripples_and_audits_wait_seconds_at_most(
    large: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    server = serve(large, AUDIT_INTERVAL="1s").wait_ready()
    client = gateway(server)
    wait_healthy(server)
    write = "UPDATE accounts SET plan_type = plan_type WHERE id = 'acc_1'"
    with _migrating(large) as waits, repeated(large.url(), write):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            large.execute(RIPPLE)
            time.sleep(0.3)
    assert len(waits) >= 5
    assert max(waits) < MOST, waits
    wait_equal(client, large)
    wait_healthy(server)
    assert server.metric("pads_cdc_audit_drift_total") == 0
