"""A reconcile reads the memory of parents first: however long that takes, it holds up nobody.

The tables have the default replica identity, so that the memory is needed.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.cdc.requery.test_slow_rows import own_mapping
from tests.e2e.test_losses import reasons, wait_healthy
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.repeated import MOST, repeated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory

LONG = 12
"""Seconds: more than twice the `wal_sender_timeout` of our connection."""
PARENT = "    settings.application_id AS parent\n"
SLOW_PARENT = f"""\
    concat(
        settings.application_id,
        CASE settings.secret_key WHEN 'slow' THEN pg_catalog.pg_sleep({LONG})::text END
    ) AS parent
"""
RECONNECT = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active"
SETTINGS = "portal_application_settings"
OURS = "FROM pg_stat_activity WHERE application_name = 'pads-cdc'"


def has_key(key: str, client: Gateway) -> bool:
    return client.key("app_4") == key


def reconnects(server: Server) -> float:
    return server.metric("pads_cdc_source_reconnects_total")


@pytest.mark.soak
def test_a_read_of_the_parents_that_takes_long_holds_up_nobody(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    """Neither a revocation, nor a writer, nor a migration of the table, nor the wal sender."""
    fill(database, 1_000)
    mapping = own_mapping(tmp_path, "shared/endpoints_of.sql", PARENT, SLOW_PARENT)
    server = serve(database, MAPPING=mapping).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    database.execute(f"UPDATE {SETTINGS} SET secret_key = 'slow' WHERE application_id = 'app_1'")
    wait_equal(client, database)
    database.execute(RECONNECT)
    sleeping = f"SELECT count(*) {OURS} AND wait_event = 'PgSleep'"
    wait_until(lambda: database.value(sleeping) == 1, "the parents are read")
    wait_until(lambda: server.metric("pads_cdc_source_connected") == 1, "it streams again")
    before = reconnects(server)
    write = f"UPDATE {SETTINGS} SET secret_key = md5(random()::text) WHERE application_id = 'app_2'"
    began = time.monotonic()
    with repeated(database.url(), write):
        while time.monotonic() < began + LONG - 2:
            asked = time.monotonic()
            database.execute(f"UPDATE {SETTINGS} SET secret_key = 'x{asked}' WHERE application_id = 'app_4'")
            client.wait(partial(has_key, f"x{asked}"), "a revocation", 5)
            assert database.value(sleeping) == 1, "the parents are not read any more"
            time.sleep(0.2)
        with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
            session.autocommit = True
            asked = time.monotonic()
            cursor.execute(f"ALTER TABLE {SETTINGS} ADD COLUMN note TEXT")
            waited = time.monotonic() - asked
    assert waited < MOST
    assert reconnects(server) <= before + 1, "only the changed definition may end the stream"
    database.execute(f"UPDATE {SETTINGS} SET secret_key = 'quick' WHERE application_id = 'app_1'")
    wait_until(lambda: server.get("/healthz")[0] == 200, "healthy", 60)
    wait_equal(client, database)
    assert server.metric("pads_cdc_audit_drift_total") == 0


@pytest.mark.soak
def test_parents_whose_table_is_locked_are_asked_for_again_until_it_is_free(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(database, 100)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    locked, over = threading.Event(), threading.Event()

    def lock() -> None:
        with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {SETTINGS} IN ACCESS EXCLUSIVE MODE")
            locked.set()
            over.wait(60)

    locking = threading.Thread(target=lock)
    locking.start()
    try:
        assert locked.wait(30)
        database.execute(RECONNECT)
        wait_until(lambda: "query" in reasons(server), "it says that it waits for a lock")
        wait_until(lambda: server.metric("pads_cdc_source_connected") == 1, "it streams again")
        before = reconnects(server)
        waiting = f"SELECT count(*) {OURS} AND wait_event_type = 'Lock' AND now() - query_start > '1s'"
        until = time.monotonic() + LONG / 2
        while time.monotonic() < until:
            assert database.value(waiting) == 0, "a read queues for the lock, and others queue behind it"
        assert reconnects(server) == before
    finally:
        over.set()
        locking.join(30)
    database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_equal(client, database)
    wait_healthy(server)
