"""A wal sender that says nothing: one that is dead is given up, one that is at work is waited for."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_losses import reasons, wait_healthy
from tests.plugins.server import fill, wait_confirmed, wait_equal, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

CHANGE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
POLLING = "pads_cdc_source_mode"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Freeze one process."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def starved(pid: int, share: float) -> Iterator[None]:
    """Let one process run for no more than this share of the time, while it is there."""
    fed = threading.Event()

    def starve() -> None:
        with suppress(ProcessLookupError):
            while not fed.is_set():
                with stopped(pid):
                    fed.wait(0.5 * (1 - share))
                fed.wait(0.5 * share)

    thread = threading.Thread(target=starve)
    thread.start()
    try:
        yield
    finally:
        fed.set()
        thread.join()


def sender(database: Database) -> int:
    return int(database.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"))


def polls(server: Server) -> bool:
    return server.metric(POLLING, mode="polling") == 1


@pytest.mark.slow
def test_a_wal_sender_that_is_frozen_alone_is_given_up_and_the_mapping_polled(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Everything else of the server answers. The slot stays the frozen one's until that wakes up."""
    fill(database, 100)
    server = serve(database)
    client = gateway(server)
    wait_healthy(server)
    with stopped(sender(database)):
        began = time.monotonic()
        server.wait_log("source lost, reconnecting", reason="stalled")
        assert time.monotonic() - began < 25
        server.wait_log("source lost, reconnecting", reason="slot_held")
        wait_until(lambda: polls(server), "it polls")
        database.execute(CHANGE)
        wait_equal(client, database)
    wait_healthy(server)
    database.execute(CHANGE)
    wait_equal(client, database)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_wal_sender_that_decodes_for_three_times_the_limit_is_waited_for(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """PostgreSQL 15 and wal2json: no keepalive comes while a large transaction is left out. To start over
    would begin the same work again. The mapping is polled meanwhile.
    """
    database = database_factory(cluster=cluster_factory({"max_wal_size": "4GB"}))
    fill(database, 100)
    database.execute("CREATE TABLE foreign_rows (number INT)")
    server = serve(database)
    client = gateway(server)
    wait_healthy(server)
    with starved(sender(database), share=0.013):
        database.execute("INSERT INTO foreign_rows SELECT generate_series(1, 1000000)")
        end = database.value("SELECT pg_current_wal_lsn()")
        wait_until(lambda: "decoding" in reasons(server), "it is found to be at work", 180)
        silent_at = time.monotonic()
        wait_until(lambda: polls(server), "it polls")
        while "decoding" in reasons(server):
            database.execute(CHANGE)
            wait_equal(client, database)
            assert server.metric("pads_cdc_replication_lag_seconds") < 10
            assert server.metric("pads_cdc_source_connected") == 1
        assert time.monotonic() - silent_at > 60, "not long enough"
    wait_confirmed(database, end, 60)
    wait_healthy(server)
    assert not polls(server)
    assert server.metric("pads_cdc_source_reconnects_total") == 0
    assert server.metric("pads_cdc_audit_drift_total") == 0


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_stream_that_begins_anew_ends_the_trouble_of_the_one_that_was_behind(
    database: Database, serve: ServerFactory
) -> None:
    """Otherwise /healthz would say for ever that the stream is behind."""
    fill(database, 100)
    database.execute("CREATE TABLE foreign_rows (number INT)")
    server = serve(database)
    wait_healthy(server)
    busy = sender(database)
    with starved(busy, share=0.013):
        database.execute("INSERT INTO foreign_rows SELECT generate_series(1, 1000000)")
        wait_until(lambda: "decoding" in reasons(server), "the stream is behind", 120)
        database.execute(f"SELECT pg_terminate_backend({busy})")
        wait_until(
            lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (busy,)) == 0,
            "the wal sender has ended",
        )
    wait_until(lambda: not reasons(server), "healthy", 60)
    assert not polls(server)


@pytest.mark.slow
def test_a_frozen_reader_keeps_its_slot_and_a_shutdown_for_five_seconds(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, serve: ServerFactory
) -> None:
    """However patient the server itself is with readers, such as for ever."""
    cluster = cluster_factory({"wal_sender_timeout": "0"})
    database = database_factory(cluster=cluster)
    fill(database, 100)
    server = serve(database).wait_ready()
    wait_healthy(server)
    with stopped(server.process.pid):
        began = time.monotonic()
        cluster.stop("fast")
        assert time.monotonic() - began < 7
        cluster.start()
    wait_healthy(server)
    with stopped(server.process.pid):
        began = time.monotonic()
        free = "SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
        wait_until(lambda: database.value(free), "the slot is free")
        assert time.monotonic() - began < 7
    wait_healthy(server)
