"""Transaction ids of 32 bits come around again: what is kept for days is identified by 64 bits."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

from tests.e2e.test_losses import reasons, wait_healthy
from tests.plugins.decoding import stream_options
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory
    from tests.support.cluster import Cluster

HALF = 1 << 31
JUMP = 1_100_000_000
"""Ids that can pass at once: from twice as many on, Postgres refuses all writes."""
PAGE = 32_768
"""Transactions in a page of pg_xact. A server that starts at the first of them needs no file of it."""


def next_xid(cluster: Cluster) -> int:
    with closing(psycopg2.connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        [(xid,)] = cursor.fetchall()
    return int(xid)


def freeze(cluster: Cluster) -> None:
    """Vacuum every database, so that no row names a transaction any more."""
    with closing(psycopg2.connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute("UPDATE pg_database SET datallowconn = true RETURNING datname")
        names = [name for (name,) in cursor.fetchall()]
        session.commit()
    for name in names:
        with closing(psycopg2.connect(cluster.url(name))) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute("VACUUM (FREEZE)")


def let_transactions_pass(cluster: Cluster, number: int) -> None:
    """Set the server's counter, as that many transactions would in days."""
    wanted = next_xid(cluster) + number
    while (now := next_xid(cluster)) < wanted:
        freeze(cluster)
        epoch, xid = divmod((now + JUMP) // PAGE * PAGE, 2 * HALF)
        cluster.stop()
        counter = ("-e", str(epoch), "-x", str(xid))
        cluster.programs.run("pg_resetwal", *counter, "-D", str(cluster.data), cwd=cluster.folder)
        cluster.start()


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.own_cluster
def test_a_reconcile_that_is_owed_is_done_however_many_transactions_pass_before(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """The process that owes it never reached the query server, so no read has shown it the present ids."""
    fill(database, 100)
    server = serve(database).wait_ready()
    wait_healthy(server)
    assert server.stop() == 0
    with Proxy(database.cluster.port) as proxy:
        options = stream_options(database.plugin)
        holder = psycopg2.connect(database.url(), connection_factory=LogicalReplicationConnection)
        with closing(holder):
            holder.cursor().start_replication(slot_name="pads_cdc", options=options)
            queries = database.url().replace(f":{database.cluster.port}/", f":{proxy.port}/")
            server = serve(database, QUERY_CONNECTION_STRING=queries, MAX_RETAINED_WAL="4MB")
            proxy.refusing = True
            proxy.cut()
        wait_until(lambda: server.metric("pads_cdc_source_connected") == 1, "it has the slot")
        database.execute("CREATE TABLE bulk (content text)")

        def let_go() -> bool:
            database.execute("UPDATE portal_application_settings SET secret_key = md5(random()::text)")
            database.execute("INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
            return "owed" in reasons(server)

        wait_until(let_go, "a reconcile is owed")
        server.kill()
    active = "SELECT count(*) FROM pg_replication_slots WHERE active"
    wait_until(lambda: database.value(active) == 0, "the slot is free")
    database.execute("SELECT pg_drop_replication_slot('pads_cdc')")
    let_transactions_pass(database.cluster, HALF + 1_000)
    server = serve(database).wait_ready()
    assert server.metric("pads_cdc_reconcile_total", reason="owed") == 1
    client = gateway(server)
    database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_equal(client, database)
    wait_healthy(server)
