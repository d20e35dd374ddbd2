"""No commit waits for us: what happens where ``synchronous_standby_names`` would choose our wal sender."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from server.commands.demo.cluster import ephemeral_standby
from tests.e2e.test_losses import reasons, wait_healthy
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from server.commands.demo.cluster import Cluster
    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

CHANGE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
CHOOSING = ("*", 'ANY 1 ("PADS-cdc", walreceiver)')
"""Values that choose us beside the standby that is there. Which others do: `test_synchronous_standby` in
``tests/cdc/replication``.
"""
LOGICAL = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'"


class Writer:
    """Somebody who commits to a table that is none of ours, one row after the other."""

    def __init__(self, database: Database) -> None:
        database.execute("CREATE TABLE IF NOT EXISTS others (number INT)")
        self._session = database.connect()
        self._ending = threading.Event()
        self.longest = 0.0
        """Seconds of the longest commit."""
        self.commits = 0
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        with self._session.cursor() as cursor:
            while not self._ending.wait(0.002):
                began = time.monotonic()
                cursor.execute("INSERT INTO others VALUES (1)")
                self.longest = max(self.longest, time.monotonic() - began)
                self.commits += 1

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a commit hangs"


@contextmanager
def writing(database: Database) -> Iterator[Writer]:
    writer = Writer(database)
    try:
        yield writer
    finally:
        writer.stop()


def choose(cluster: Cluster, names: str) -> None:
    cluster.configure({"synchronous_standby_names": names})
    cluster.reload()


def polls(server: Server) -> bool:
    return server.metric("pads_cdc_source_mode", mode="polling") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "ours_first"),
    [
        ("15", True),
        ("17", False),
        pytest.param("15", False, marks=pytest.mark.soak),
        pytest.param("17", True, marks=pytest.mark.soak),
        pytest.param("18", True, marks=pytest.mark.soak),
        pytest.param("18", False, marks=pytest.mark.soak),
    ],
)
def test_no_commit_ever_waits_for_us(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    pooler: PoolerFactory,
    version: str,
    ours_first: bool,
) -> None:
    """Of two wal senders of the same priority Postgres takes the one that came first."""
    cluster = cluster_factory(programs=fetched(version))
    database = database_factory(cluster=cluster)
    fill(database, 100)
    if ours_first:
        server = serve(database, QUERY_CONNECTION_STRING=pooler(database, cluster.port)).wait_ready()
        wait_healthy(server)
    with ephemeral_standby(cluster), writing(database) as writer:
        if not ours_first:
            server = serve(database).wait_ready()
        client = gateway(server)
        for names in CHOOSING:
            wait_healthy(server)
            before = writer.commits
            choose(cluster, names)
            wait_until(lambda: "synchronous_standby" in reasons(server), "it says so", 10)
            wait_until(lambda: polls(server), "it polls")
            assert database.value(f"{LOGICAL} AND active") == 0
            database.execute(CHANGE)
            wait_equal(client, database)
            assert writer.commits > before
            choose(cluster, "")
            wait_until(lambda: server.metric("pads_cdc_source_connected") == 1, "it streams again")
        assert writer.longest < 2
    assert server.metric("pads_cdc_audit_drift_total") == 0


def test_it_starts_where_it_would_be_chosen_and_check_says_what_to_type(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Without a slot, since one that nobody may read would only hold back WAL."""
    cluster = cluster_factory()
    database = database_factory(cluster=cluster)
    fill(database, 100)
    with ephemeral_standby(cluster):
        choose(cluster, "*")
        server = serve(database).wait_ready()
        assert "synchronous_standby" in reasons(server)
        assert "name the physical standbys in it" in server.get("/healthz")[1]
        assert database.value(LOGICAL) == 0
        client = gateway(server)
        database.execute(CHANGE)
        wait_equal(client, database)
        report = pads_cdc("check", POSTGRES_CONNECTION_STRING=database.url())
        assert report.returncode == 1
        assert "name the physical standbys in it" in report.stdout
        choose(cluster, "walreceiver")
        wait_healthy(server)
        assert database.value(LOGICAL) == 1
        assert "synchronous_standby_names" not in report.stderr
        database.execute(CHANGE)
        wait_equal(client, database)


def test_a_cluster_that_waits_for_us_alone_is_told_so(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """There is nobody else of that name: commits wait until the setting is right, as without us."""
    cluster = cluster_factory()
    database = database_factory(cluster=cluster)
    fill(database, 100)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    choose(cluster, '"pads-cdc"')
    wait_until(lambda: "synchronous_standby" in reasons(server), "it says so")
    waits = threading.Thread(target=database.execute, args=(CHANGE,))
    waits.start()
    hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    wait_until(lambda: database.value(hanging) == 1, "a commit waits")
    choose(cluster, "")
    waits.join(30)
    wait_equal(client, database)
    wait_healthy(server)


def test_a_slot_that_must_not_be_read_does_not_fill_the_disk(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    cluster = cluster_factory()
    database = database_factory(cluster=cluster)
    fill(database, 100)
    with ephemeral_standby(cluster):
        server = serve(database, MAX_RETAINED_WAL="8MB").wait_ready()
        client = gateway(server)
        wait_healthy(server)
        choose(cluster, "*")
        wait_until(lambda: "synchronous_standby" in reasons(server), "it says so")
        assert database.value(LOGICAL) == 1
        database.execute(
            "CREATE TABLE bulk AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g"
        )
        wait_until(lambda: database.value(LOGICAL) == 0, "the slot is dropped")
        assert (
            "MAX_RETAINED_WAL" in server.wait_log("source lost, reconnecting", reason="slot_lost")["message"]
        )
        database.execute(CHANGE)
        wait_equal(client, database)
        choose(cluster, "")
        wait_healthy(server)
        database.execute(CHANGE)
        wait_equal(client, database)
        assert server.metric("pads_cdc_audit_drift_total") == 0
