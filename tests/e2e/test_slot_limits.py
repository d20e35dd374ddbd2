"""What the server does to a slot that costs it too much: seen in time, and recovered from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.plugins.postgres import ClusterFactory, DatabaseFactory
    from tests.plugins.server import GatewayFactory, ServerFactory


def test_limits_of_the_slot(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """Beyond max_slot_wal_keep_size, by a transaction that stays open; and idle_replication_slot_timeout."""
    settings = {"max_slot_wal_keep_size": "32MB", "max_wal_size": "2GB", "checkpoint_timeout": "1h"}
    cluster = cluster_factory(settings, programs=fetched("18"))
    database = database_factory(cluster=cluster)
    fill(database, 20)
    with Proxy(cluster.port) as proxy:
        server = serve(database.url().replace(f":{cluster.port}/", f":{proxy.port}/"))
        client = gateway(server)
        wait_equal(client, database)

        with database.connect().cursor() as cursor:
            cursor.execute("BEGIN; CREATE TABLE bulk (content text)")
            for _ in range(6):
                database.execute("SELECT pg_logical_emit_message(true, 'bulk', repeat('x', 10000000))")
            wait_until(
                lambda: server.metric("pads_cdc_slot_wal_status", wal_status="unreserved") == 1, "unreserved"
            )
            status, told = server.get("/healthz")
            assert (status, "unreserved" in told, "max_slot_wal_keep_size" in told) == (503, True, True)
            assert server.metric("pads_cdc_slot_safe_wal_size_bytes") <= 0
            assert server.get("/readyz") == (200, "ok")
            cursor.execute("ROLLBACK")
        database.rows("SELECT pg_log_standby_snapshot()")
        wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")
        assert server.metric("pads_cdc_slot_wal_status", wal_status="reserved") == 1

        cluster.configure({"idle_replication_slot_timeout": "1s"})
        cluster.reload()
        proxy.refusing = True
        proxy.cut()

        def lost() -> bool:
            database.execute("SELECT pg_logical_emit_message(true, 'bulk', 'x')")
            database.execute("CHECKPOINT")
            return bool(database.value("SELECT wal_status = 'lost' FROM pg_replication_slots"))

        wait_until(lost, "the slot is lost")
        database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
        proxy.refusing = False
        wait_equal(client, database)
        server.wait_metric(1, "pads_cdc_reconcile_total", reason="slot_created")
        assert "invalidated by the server (idle_timeout)" in server.output
        wait_until(lambda: server.get("/healthz") == (200, "ok"), "all is well")
