"""Losing things: the server stays up, serves what it holds, says so, stays ready, and heals by itself."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

from cdc.state.token import Token
from tests.plugins.decoding import stream_options
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from pads_cdc_client import EndpointFeed

    from tests.plugins.feed import FeedFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory
    from tests.support.cluster import Cluster

CHANGE = (
    "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = 'plan_1';"
    "DELETE FROM portal_applications WHERE id = (SELECT max(id) FROM portal_applications)"
)


def reasons(server: Server) -> set[str]:
    """Return the codes of what ``/healthz`` complains of."""
    status, body = server.get("/healthz")
    return {reason["code"] for reason in json.loads(body)["reasons"]} if status == 503 else set()


def wait_healthy(server: Server) -> None:
    wait_until(lambda: server.get("/healthz") == (200, "ok"), f"healthy: {server.get('/healthz')}")


class Rig:
    """A cluster, a database, a server and a client that holds everything."""

    def __init__(self, cluster: Cluster, database: Database, server: Server, client: Gateway) -> None:
        self.cluster, self.database, self.server, self.client = cluster, database, server, client

    def still_serves(self) -> None:
        """Check that gateways do not notice: ready, and a fetch answers."""
        assert self.server.process.poll() is None
        assert self.server.get("/readyz") == (200, "ok")
        assert self.client.map

    def heals(self) -> None:
        """Check that changes arrive again, and that health says so."""
        self.database.execute(CHANGE)
        wait_equal(self.client, self.database)
        wait_healthy(self.server)

    def proves(self, held: EndpointFeed) -> Token:
        """Check that a map is known to be one that the database has; returns the token that says so."""
        before = held.proofs
        self.database.execute(CHANGE)
        wait_equal(self.client, self.database)
        wait_until(lambda: held.proofs > before and held.endpoints == self.client.map, "a proof")
        token = Token.parse(held.resume_token)
        assert token is not None
        return token


@pytest.fixture
def rig(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> Rig:
    cluster = cluster_factory({"wal_sender_timeout": "5s", "max_wal_size": "64MB", "min_wal_size": "32MB"})
    database = database_factory(cluster=cluster)
    fill(database, 300)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    return Rig(cluster, database, server, client)


@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
def test_postgres_stops_and_comes_back(rig: Rig, how: str) -> None:
    began = time.monotonic()
    if how == "crash":
        rig.cluster.crash()
    else:
        rig.cluster.stop("fast" if how == "fast" else "immediate")
    assert how == "crash" or time.monotonic() - began < 6, (
        "a fast stop waits for whoever reads a slot: we must let go at once"
    )
    wait_until(lambda: "disconnected" in reasons(rig.server), "it says so")
    first = rig.server.metric("pads_cdc_replication_lag_seconds")
    wait_until(lambda: rig.server.metric("pads_cdc_replication_lag_seconds") > first + 1, "staleness grows")
    rig.still_serves()
    rig.cluster.start()
    rig.heals()
    assert rig.server.metric("pads_cdc_source_reconnects_total") > 0


def test_every_backend_is_terminated_again_and_again(rig: Rig) -> None:
    for _ in range(5):
        rig.database.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pads-cdc'"
        )
        rig.database.execute(CHANGE)
    rig.heals()


def test_a_fast_stop_with_unconfirmed_wal_is_not_delayed(rig: Rig) -> None:
    """Something hangs (a lock on the mapping), so that WAL stays unconfirmed; the server stops all the
    same.
    """
    blocker = rig.database.connect()
    with blocker.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE portal_applications IN ACCESS EXCLUSIVE MODE")
    rig.database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_until(
        lambda: rig.database.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0, "a re-query hangs"
    )
    began = time.monotonic()
    rig.cluster.stop("fast")
    assert time.monotonic() - began < 6
    rig.cluster.start()
    rig.heals()


@pytest.mark.parametrize("how", ["cut", "stalled", "slow"])
def test_the_network_fails(
    cluster: Cluster, database: Database, serve: ServerFactory, gateway: GatewayFactory, how: str
) -> None:
    fill(database, 300)
    with Proxy(cluster.port) as proxy:
        address = database.url().replace(f":{cluster.port}/", f":{proxy.port}/")
        # Shorter than ours by default: what the user's own connection string says wins.
        server = serve(
            f"{address}?tcp_user_timeout=3000&keepalives_idle=1&keepalives_interval=1&keepalives_count=2"
        )
        client = gateway(server)
        wait_equal(client, database)
        if how == "slow":
            proxy.bytes_per_second = 20_000
            database.execute(CHANGE)
            wait_equal(client, database)
            proxy.bytes_per_second = None
        elif how == "cut":
            proxy.refusing = True
            assert proxy.cut() > 0
            database.execute(CHANGE)
            wait_until(lambda: "disconnected" in reasons(server), "it says so")
            proxy.refusing = False
        else:
            proxy.stalled = True
            database.execute(CHANGE)
            wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") > 5, "staleness grows")
            assert server.get("/readyz") == (200, "ok")
            proxy.stalled = False
        database.execute(CHANGE)
        wait_equal(client, database)
        wait_healthy(server)


def test_a_frozen_postgres_is_not_idleness(rig: Rig) -> None:
    with rig.cluster.frozen():
        wait_until(lambda: rig.server.metric("pads_cdc_replication_lag_seconds") > 4, "staleness grows")
        rig.still_serves()
    rig.heals()
    wait_until(
        lambda: rig.server.metric("pads_cdc_replication_lag_seconds") == 0, "and is 0 again, though idle"
    )


@pytest.mark.both_plugins
def test_the_slot_is_dropped_while_running(rig: Rig) -> None:
    def dropped() -> bool:
        with closing(psycopg2.connect(rig.database.url())) as session, session, session.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
            try:
                cursor.execute("SELECT pg_drop_replication_slot('pads_cdc')")
            except psycopg2.errors.ObjectInUse:
                return False
        return True

    wait_until(dropped, "the slot is dropped under our hands")
    rig.database.execute(CHANGE)
    rig.heals()
    assert rig.server.metric("pads_cdc_reconcile_total", reason="slot_created") >= 1


def test_the_slot_is_dropped_while_down(rig: Rig, serve: ServerFactory) -> None:
    port = str(rig.server.grpc)
    rig.server.kill()
    wait_until(lambda: rig.database.value("SELECT NOT active FROM pg_replication_slots"), "the slot is free")
    rig.database.rows("SELECT pg_drop_replication_slot('pads_cdc')")
    rig.database.execute(CHANGE)
    rig.server = serve(rig.database, PORT=port).wait_ready()
    wait_equal(rig.client, rig.database)
    rig.heals()


def test_the_slot_is_invalidated(rig: Rig) -> None:
    """Our process is frozen while the server writes more than max_slot_wal_keep_size."""
    rig.cluster.configure({"max_slot_wal_keep_size": "16MB"})
    rig.cluster.reload()
    rig.server.process.send_signal(signal.SIGSTOP)
    rig.database.execute(CHANGE)
    rig.database.execute("CREATE TABLE bulk (content text)")

    def lost() -> bool:
        rig.database.execute("INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
        rig.database.execute("SELECT pg_switch_wal(); CHECKPOINT")
        return bool(rig.database.value("SELECT wal_status = 'lost' FROM pg_replication_slots"))

    wait_until(lost, "the slot is lost")
    rig.server.process.send_signal(signal.SIGCONT)
    rig.heals()
    assert rig.database.value("SELECT wal_status FROM pg_replication_slots") in ("reserved", "extended")


def test_the_slot_is_taken_by_another_process(rig: Rig) -> None:
    """It is read while it cannot be ours; the mapping is polled meanwhile, and then taken over without a
    gap.
    """

    def taken() -> psycopg2.extensions.connection | None:
        rig.database.rows("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        thief = psycopg2.connect(rig.database.url(), connection_factory=LogicalReplicationConnection)
        try:
            options = stream_options(rig.database.plugin)
            thief.cursor().start_replication(slot_name="pads_cdc", options=options)
        except psycopg2.errors.ObjectInUse:
            thief.close()
            return None
        return thief

    thief = wait_until(taken, "another process has the slot")
    assert thief is not None
    wait_until(lambda: rig.server.metric("pads_cdc_source_mode", mode="polling") == 1, "polling")
    assert {"polling", "disconnected"} <= reasons(rig.server)
    rig.database.execute(CHANGE)
    wait_equal(rig.client, rig.database)
    wait_until(lambda: rig.server.metric("pads_cdc_replication_lag_seconds") < 6, "polling bounds staleness")
    thief.close()
    wait_until(lambda: rig.server.metric("pads_cdc_source_mode", mode="streaming") == 1, "streaming again")
    rig.heals()


def test_the_database_is_restored_from_an_older_backup(rig: Rig, feed: FeedFactory) -> None:
    """It goes back, and so does the map: what the database says is the truth."""
    cluster = rig.cluster
    cluster.stop()
    backup = cluster.folder / "backup"
    subprocess.run(["/bin/cp", "-a", str(cluster.data), str(backup)], check=True)
    cluster.start()
    rig.heals()
    rig.database.execute(
        "INSERT INTO portal_applications SELECT 'lost_' || g, 'acc_1' FROM generate_series(1, 20) g"
    )
    wait_equal(rig.client, rig.database)
    assert "lost_1" in rig.client.map
    held = feed(rig.server)
    before = rig.proves(held)
    cluster.stop()
    shutil.rmtree(cluster.data)
    backup.rename(cluster.data)
    cluster.start()
    wait_equal(rig.client, rig.database)
    assert "lost_1" not in rig.client.map
    rig.heals()
    now = rig.proves(held)
    assert now.epoch != before.epoch, "positions of the history that was left mean nothing any more"
    assert now.seen <= rig.database.value("SELECT pg_current_wal_lsn() - '0/0'")


def test_the_state_file_s_disk_is_full(
    rig: Rig, feed: FeedFactory, serve: ServerFactory, tmp_path: Path
) -> None:
    """It goes on without, loudly; and once there is room again, with a file that a restart can use."""
    held = feed(rig.server)
    before = rig.proves(held)
    pid = rig.server.process.pid
    size = sum(path.stat().st_size for path in tmp_path.glob("state*"))
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    rig.database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_until(lambda: rig.server.metric("pads_cdc_state_file_errors_total") > 0, "it is counted")
    wait_equal(rig.client, rig.database)
    assert "state_file" in reasons(rig.server)
    rig.still_serves()
    assert rig.proves(held).epoch != before.epoch, "a restart would not know these revisions"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    wait_until(lambda: "state_file" not in reasons(rig.server), "a state file again", deadline=60)
    rig.heals()
    port = str(rig.server.grpc)
    rig.server.kill()
    rig.database.execute("DELETE FROM portal_applications WHERE id = 'app_11'")
    rig.server = serve(rig.database, PORT=port).wait_ready()
    wait_equal(rig.client, rig.database)


def test_wal_is_not_held_for_ever_when_re_queries_fail(rig: Rig, serve: ServerFactory) -> None:
    """A note, then the confirmation, then one reconcile that covers what was let go; also after a crash."""
    port = str(rig.server.grpc)
    assert rig.server.stop() == 0
    rig.server = serve(rig.database, PORT=port, MAX_RETAINED_WAL="8MB").wait_ready()
    wait_equal(rig.client, rig.database)
    rig.database.execute("ALTER TABLE pay_plans RENAME COLUMN throughput_limit TO renamed")
    wait_until(lambda: "query" in reasons(rig.server), "re-queries fail, and it says so", deadline=60)
    rig.database.execute("CREATE TABLE bulk (content text)")

    def let_go() -> bool:
        rig.database.execute("UPDATE portal_application_settings SET secret_key = md5(random()::text)")
        rig.database.execute("INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
        return "owed" in reasons(rig.server)

    wait_until(let_go, "a reconcile is owed", deadline=60)
    rig.still_serves()
    held = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) FROM pg_replication_slots"
    wait_until(lambda: rig.database.value(held) < 8 * 2**20, "the slot lets go")
    rig.server.kill()
    threading.Timer(
        1, rig.database.execute, ("ALTER TABLE pay_plans RENAME COLUMN renamed TO throughput_limit",)
    ).start()
    wait_until(
        lambda: rig.database.value(
            "SELECT count(*) FROM information_schema.columns WHERE column_name = 'throughput_limit'"
        ),
        "the column is back",
    )
    rig.server = serve(rig.database, PORT=port).wait_ready()
    wait_equal(rig.client, rig.database)
    assert rig.server.metric("pads_cdc_reconcile_total", reason="owed") == 1
    rig.heals()


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.only_with("wal2json")
def test_a_change_that_the_plugin_cannot_write_costs_the_slot_and_nothing_else(rig: Rig) -> None:
    """A value of 200 MB is 1.2 GB of JSON, more than Postgres allocates: every stream would end at it."""
    rig.database.execute("ALTER TABLE portal_applications ADD COLUMN note TEXT")
    rig.heals()
    rig.database.execute("UPDATE portal_applications SET note = repeat(chr(1), 200000000) WHERE id = 'app_1'")
    rig.database.execute(CHANGE)
    # Each of the three streams takes many seconds to get there.
    wait_until(lambda: "cannot send (SQLSTATE" in rig.server.output, "the slot is given up", deadline=100)
    wait_equal(rig.client, rig.database)
    rig.heals()
    assert rig.server.metric("pads_cdc_reconcile_total", reason="slot_created") == 2


def test_wal_that_is_gone_costs_the_slot_and_nothing_else(rig: Rig) -> None:
    """Somebody has removed files from a full pg_wal, or reset it: Postgres does not call the slot lost."""
    rig.cluster.stop()
    rig.cluster.programs.run("pg_resetwal", "-f", "-D", str(rig.cluster.data), cwd=rig.cluster.folder)
    rig.cluster.start()
    wait_until(lambda: "cannot send (SQLSTATE 58P01" in rig.server.output, "the slot is given up")
    rig.heals()
    rig.server.wait_metric(2, "pads_cdc_reconcile_total", reason="slot_created")


def test_foreign_wal_is_let_go_while_the_erd_is_idle(rig: Rig) -> None:
    """250 MB of WAL of another database, and nothing for us: the slot must not hold it."""
    cluster = rig.cluster
    with closing(psycopg2.connect(cluster.url())) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("CREATE DATABASE busy")
    with closing(psycopg2.connect(cluster.url("busy"))) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("CREATE TABLE bulk (content text)")
            cursor.execute("SELECT pg_current_wal_lsn()")
            [begun] = cursor.fetchone() or ("",)
            for _ in range(10):
                cursor.execute("INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 25000)")
            cursor.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s) / 2^20", (begun,))
            [written] = cursor.fetchone() or (0,)
            assert written > 250
    retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) / 2^20 FROM pg_replication_slots"
    wait_until(lambda: rig.database.value(retained) < 5, "the slot retains less than 5 MB", deadline=60)
    rig.heals()


def test_a_ripple_longer_than_wal_sender_timeout_keeps_its_connection(rig: Rig) -> None:
    """A lock makes one re-query last twice as long as the server's patience with a silent reader."""
    blocker = rig.database.connect()
    with blocker.cursor() as cursor:
        cursor.execute("SHOW wal_sender_timeout")
        assert cursor.fetchone() == ("5s",)
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        rig.database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        wait_until(
            lambda: rig.server.metric("pads_cdc_replication_lag_seconds") > 11, "it lasts", deadline=60
        )
        cursor.execute("ROLLBACK")
    rig.heals()
    assert rig.server.metric("pads_cdc_source_reconnects_total") == 0


@pytest.mark.soak
def test_a_view_in_place_of_a_table_is_named(rig: Rig) -> None:
    rig.database.execute(
        "ALTER TABLE pay_plans RENAME TO moved; CREATE VIEW pay_plans AS SELECT * FROM moved"
    )

    def named() -> bool:
        return "public.pay_plans, which does not exist (a view" in rig.server.get("/healthz")[1]

    wait_until(named, "it says that a view will not do")
    rig.still_serves()
    rig.database.execute("DROP VIEW pay_plans; ALTER TABLE moved RENAME TO pay_plans")
    rig.heals()


def test_a_missing_state_file_is_said(rig: Rig, serve: ServerFactory, tmp_path: Path) -> None:
    """Old clients that were away cannot be told of deletes any more: a person has to restart them."""
    assert rig.server.metric("pads_cdc_state_file_errors_total") == 0
    assert rig.server.stop() == 0
    rig.server = serve(rig.database, STATE_FILE=str(tmp_path / "another"))
    rig.server.wait_metric(1, "pads_cdc_state_file_errors_total")
    assert rig.server.stop() == 0
    again = serve(rig.database, STATE_FILE=str(tmp_path / "another"))
    again.wait_metric(1, "pads_cdc_reconcile_total", reason="start")
    assert again.metric("pads_cdc_state_file_errors_total") == 0


def test_a_stopped_process_still_holds_the_slot(rig: Rig, serve: ServerFactory, tmp_path: Path) -> None:
    """Its machine hangs: whoever comes after it polls until the server gives up on it, and then streams."""
    second = serve(rig.database, STATE_FILE=str(tmp_path / "second"))
    second.wait_log("source lost, reconnecting", reason="slot_held")
    second.wait_metric(1, "pads_cdc_reconcile_total", reason="polling")
    assert second.metric("pads_cdc_endpoints") == 300
    rig.server.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: second.metric("pads_cdc_source_mode", mode="streaming") == 1, "the slot")
    finally:
        rig.server.process.send_signal(signal.SIGCONT)
    rig.server.wait_log("source lost, reconnecting")
    second.kill()
    rig.heals()


def test_another_cluster_takes_its_place(
    rig: Rig, feed: FeedFactory, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """Behind the same address: no position of the old one means anything in it."""
    held = feed(rig.server)
    before = rig.proves(held)
    old, other = rig.cluster, cluster_factory()
    twin = database_factory(cluster=other)
    fill(twin, 40)
    twin.execute("ALTER ROLE postgres PASSWORD %s", (old.password,))
    with closing(psycopg2.connect(other.url(password=old.password))) as session, session.cursor() as cursor:
        session.autocommit = True
        cursor.execute(f"ALTER DATABASE {twin.name} RENAME TO {rig.database.name}")
        for _ in range(4):
            cursor.execute("CREATE TABLE gone (); DROP TABLE gone; SELECT pg_switch_wal()")
        cursor.execute("SELECT pg_current_wal_lsn() - '0/0'")
        [(end,)] = cursor.fetchall()
        assert end > before.seen, "so far that it could be the same history, going on"
    old.stop()
    other.stop()
    shutil.rmtree(old.data)
    other.data.rename(old.data)
    old.configure({"port": str(old.port)})
    old.start()
    wait_equal(rig.client, rig.database)
    assert len(rig.client.map) == 40
    rig.heals()
    now = rig.proves(held)
    assert now.epoch != before.epoch, "positions of the history that was left mean nothing any more"
    assert now.seen <= rig.database.value("SELECT pg_current_wal_lsn() - '0/0'")
