"""What only pgoutput has to survive: a publication that is not as it should be, and writers whom it stops."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.plugins.feed import wait_exact
from tests.plugins.postgres import Database, fetched
from tests.plugins.server import expected, fill, wait_confirmed, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.plugins.feed import FeedFactory
    from tests.plugins.postgres import ClusterFactory, DatabaseFactory
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

pytestmark = pytest.mark.only_with("pgoutput")

NARROWED = {
    "a table less": "ALTER PUBLICATION pads_cdc DROP TABLE portal_application_settings",
    "some rows": (
        "BEGIN; ALTER PUBLICATION pads_cdc DROP TABLE portal_application_settings;"
        "ALTER PUBLICATION pads_cdc ADD TABLE portal_application_settings (id, application_id) WHERE (id < 0)"
        "; COMMIT"
    ),
    "no truncate": "ALTER PUBLICATION pads_cdc SET (publish = 'insert, update, delete')",
    "dropped": "DROP PUBLICATION pads_cdc",
}
ROTATE = "UPDATE portal_application_settings SET secret_key = '{1}' WHERE application_id = '{0}'"


@pytest.fixture(params=["15", "18"])
def either(
    request: pytest.FixtureRequest, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> Database:
    """A database of an old and of a new server: from 18 on, what was not published is left out in silence."""
    programs = None if request.param == "15" else fetched(request.param)
    return database_factory(cluster=cluster_factory(programs=programs))


def healthy(server: Server) -> None:
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "healthy")


def says(server: Server, code: str, text: str) -> None:
    def said() -> bool:
        status, page = server.get("/healthz")
        return status == 503 and code in page and text in page

    wait_until(said, f"{code}: {text} in /healthz, which has {server.get('/healthz')}")


def streaming(server: Server) -> bool:
    return server.metric("pads_cdc_source_mode", mode="streaming") == 1


@pytest.mark.parametrize("how", NARROWED)
def test_a_publication_that_somebody_narrows(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, how: str
) -> None:
    """The mapping is polled until it is mended, then followed again, and nothing of in between is missing."""
    fill(database, 50)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    healthy(server)
    database.execute(NARROWED[how])
    database.execute(ROTATE.format("app_1", "unheard"))
    if how == "no truncate":
        database.execute("TRUNCATE portal_application_settings")
    wait_equal(client, database)
    says(server, "polling", "")
    says(server, "disconnected", "publication pads_cdc")
    database.execute(ROTATE.format("app_2", "polled"))
    wait_equal(client, database)
    database.publish()
    database.execute(ROTATE.format("app_4", "mended"))
    healthy(server)
    wait_equal(client, database)
    assert streaming(server)
    assert server.metric("pads_cdc_decode_errors_total") == 0
    assert server.metric("pads_cdc_audit_drift_total") == 0


def test_a_publication_that_is_dropped_and_made_again(
    either: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """In a moment that nobody looks in: the server's stream ends (or leaves out what was in between)."""
    fill(either, 50)
    server = serve(either)
    client = gateway(server)
    wait_equal(client, either)
    healthy(server)
    for number in range(2):
        either.execute("DROP PUBLICATION pads_cdc")
        either.execute(ROTATE.format("app_1", f"unpublished {number}"))
        either.publish()
        either.execute(ROTATE.format("app_2", f"published {number}"))
        wait_equal(client, either)
        healthy(server)
        assert streaming(server)
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.metric("pads_cdc_source_reconnects_total", reason="publication") <= 4, "no loop"


def test_a_transaction_that_is_older_than_the_publication(
    either: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """It commits when everything has long been read again: what it had changed before is not sent, or ends
    the stream.
    """
    fill(either, 50)
    server = serve(either)
    client = gateway(server)
    wait_equal(client, either)
    healthy(server)
    old = either.connect()
    old.autocommit = False
    old.cursor().execute(ROTATE.format("app_1", "older than the publication"))
    either.execute("DROP PUBLICATION pads_cdc")
    either.publish()
    wait_until(
        lambda: (
            server.metric("pads_cdc_source_reconnects_total", reason="schema") >= 1
            or server.metric("pads_cdc_source_reconnects_total", reason="publication") >= 1
        ),
        "the change is noticed",
    )
    wait_until(lambda: streaming(server), "it streams again")
    says(server, "unpublished", "may still run")
    either.execute(ROTATE.format("app_2", "meanwhile"))
    wait_equal(client, either)
    old.cursor().execute(ROTATE.format("app_4", "of the same transaction"))
    old.commit()
    wait_equal(client, either)
    healthy(server)
    assert streaming(server)
    assert server.metric("pads_cdc_audit_drift_total") == 0


def test_a_slot_that_is_older_than_the_publication(
    either: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """As after a `setup` that came too late: said, made anew once, and not again at each start."""
    either.unpublish()
    either.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'pgoutput')")
    fill(either, 50)
    either.publish()
    server = serve(either)
    client = gateway(server)
    wait_equal(client, either)
    either.execute(ROTATE.format("app_1", "fresh"))
    wait_equal(client, either)
    healthy(server)
    assert streaming(server)
    assert server.metric("pads_cdc_source_reconnects_total", reason="slot_lost") <= 1
    assert server.stop() == 0
    server = serve(either)
    healthy(server)
    assert server.metric("pads_cdc_source_reconnects_total") == 0


def test_writers_that_are_refused_are_said_at_once(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(database, 50)
    server = serve(database)
    wait_equal(gateway(server), database)
    healthy(server)
    for identity in ("FULL", "NOTHING"):
        database.execute(f"ALTER TABLE accounts REPLICA IDENTITY {identity}")
        with pytest.raises(psycopg2.Error, match='cannot update table "accounts"'):
            database.execute("UPDATE accounts SET plan_type = plan_type")
        says(server, "publication", "refuses every UPDATE and DELETE of public.accounts")
        assert server.metric("pads_cdc_trouble", reason="publication") == 1
        assert server.get("/readyz") == (200, "ok")
        database.execute("ALTER TABLE accounts REPLICA IDENTITY DEFAULT")
        database.execute("UPDATE accounts SET plan_type = 'plan_3' WHERE id = 'acc_1'")
        healthy(server)


def test_for_all_tables_is_followed(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Rows of other tables come, in any shape, and are nothing to us."""
    database.unpublish()
    database.execute(
        "CREATE PUBLICATION pads_cdc FOR ALL TABLES;"
        "CREATE TABLE noise (id SERIAL PRIMARY KEY, x BYTEA, y POINT)"
    )
    fill(database, 50)
    server = serve(database)
    client = gateway(server)
    wait_equal(client, database)
    database.execute(
        r"INSERT INTO noise (x, y) SELECT '\xff00', '(1,2)' FROM generate_series(1, 1000);"
        "UPDATE noise SET y = NULL; TRUNCATE noise;"
        "UPDATE pay_plans SET throughput_limit = 5; DELETE FROM portal_application_settings WHERE id % 2 = 0"
    )
    wait_equal(client, database)
    assert server.metric("pads_cdc_decode_errors_total") == 0
    assert server.metric("pads_cdc_rows_total", table="noise") == 0
    healthy(server)


@pytest.mark.own_cluster
def test_a_slot_that_cannot_be_read_does_not_fill_the_disk(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """Without a publication the mapping is polled, and the slot is given up beyond MAX_RETAINED_WAL."""
    fill(database, 50)
    server = serve(database, MAX_RETAINED_WAL="16MB")
    client = gateway(server)
    wait_equal(client, database)
    healthy(server)
    database.unpublish()
    says(server, "disconnected", "there is no publication pads_cdc")
    assert database.value("SELECT count(*) FROM pg_replication_slots") == 1, "it may come back soon"
    database.execute("CREATE TABLE noise AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 40000) g")
    wait_until(lambda: not database.rows("SELECT FROM pg_replication_slots"), "the slot is given up")
    database.execute(ROTATE.format("app_1", "polled"))
    wait_equal(client, database)
    database.publish()
    database.execute(ROTATE.format("app_2", "streamed"))
    wait_equal(client, database)
    healthy(server)
    assert streaming(server)


def test_auto_falls_back_and_stays_with_its_slot(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """A server that refuses wal2json at first, and later does not."""
    cluster = cluster_factory({"dynamic_library_path": "$libdir:/nowhere"}, programs=fetched("17"))
    cluster.configure({"output_plugin_libraries": "pgoutput, test_decoding"})
    cluster.reload()
    database = database_factory(cluster=cluster)
    fill(database, 20)
    plugin = "SELECT plugin FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
    server = serve(database, PLUGIN="auto")
    wait_equal(gateway(server), database)
    assert database.value(plugin) == "pgoutput"
    assert server.stop() == 0
    cluster.configure({"output_plugin_libraries": "pgoutput, test_decoding, wal2json"})
    cluster.reload()
    server = serve(database, PLUGIN="auto")
    client = gateway(server)
    database.execute("UPDATE pay_plans SET throughput_limit = 5")
    wait_equal(client, database)
    assert database.value(plugin) == "pgoutput"
    assert server.metric("pads_cdc_source_reconnects_total") == 0


def test_without_either_it_refuses_in_one_line(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    cluster = cluster_factory({"output_plugin_libraries": "pgoutput, test_decoding"}, programs=fetched("17"))
    database = database_factory(cluster=cluster)
    database.unpublish()
    done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=database.url(), PORT="0", METRICS_PORT="0")
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert "output_plugin_libraries" in said
    assert "pads-cdc setup" in said


@pytest.mark.own_cluster
def test_ddl_and_foreign_wal_move_the_slot_on(database: Database, serve: ServerFactory) -> None:
    """Empty transactions are not sent: what tells of progress are keepalives."""
    fill(database, 10)
    server = serve(database)
    healthy(server)
    for statement in (
        "CREATE TABLE noise (id INT)",
        "INSERT INTO noise SELECT g FROM generate_series(1, 1000) g",
        "DROP TABLE noise",
    ):
        database.execute(statement)
        wait_confirmed(database)
        healthy(server)
    assert server.metric("pads_cdc_replication_lag_seconds") == 0


@pytest.mark.slow
@pytest.mark.parametrize("either", ["15", pytest.param("18", marks=pytest.mark.soak)], indirect=True)
def test_storm_of_publications(either: Database, serve: ServerFactory, gateway: GatewayFactory) -> None:
    """Writers that never pause, some in long transactions, while the publication comes and goes."""
    fill(either, 100)
    server = serve(either)
    client = gateway(server)
    wait_equal(client, either)
    ended = threading.Event()

    def write(number: int) -> None:
        with closing(either.connect()) as session, session.cursor() as cursor:
            turn = 0
            while not ended.is_set():
                turn += 1
                cursor.execute("BEGIN")
                for step in range(turn % 7):
                    cursor.execute(
                        ROTATE.format(f"app_{(turn * 7 + step * 3 + number) % 100 + 1}", f"{number} {turn}")
                    )
                    ended.wait(0.05 * (turn % 5))
                cursor.execute("COMMIT")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(3):
            for damage in NARROWED.values():
                either.execute(damage)
                ended.wait(0.3)
                either.publish()
                ended.wait(0.6)
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    wait_equal(client, either)
    healthy(server)
    assert streaming(server)
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert client.map == expected(either)


@pytest.mark.parametrize("to", ["pgoutput", "wal2json"])
def test_from_one_plugin_to_the_other(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, feed: FeedFactory, to: str
) -> None:
    """As docs/operate.md has it, under a writer that never pauses: nobody misses anything or starts over."""
    fill(database, 50)
    before = "wal2json" if to == "pgoutput" else "pgoutput"
    server = serve(database, PLUGIN=before, SLOT_NAME=f"{database.name}_1")
    client, held = gateway(server), feed(server)
    wait_exact(held, expected(database))
    ended = threading.Event()

    def write() -> None:
        for number in itertools.count():
            database.execute(ROTATE.format(f"app_{number % 50 + 1}", f"key {number}"))
            if ended.wait(0.01):
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        database.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (f"{database.name}_2", to))
        assert server.stop() == 0
        server = serve(database, PLUGIN=to, SLOT_NAME=f"{database.name}_2", PORT=str(server.grpc))
        wait_until(lambda: streaming(server), "it streams")
        assert not server.metric("pads_cdc_reconcile_total", reason="slot_created")
    finally:
        ended.set()
        writer.join()
    wait_equal(client, database)
    wait_exact(held, expected(database))
    assert held.resets == 1, "its token stayed good"
    assert server.metric("pads_cdc_audit_drift_total") == 0
    database.execute("SELECT pg_drop_replication_slot(%s)", (f"{database.name}_1",))
    healthy(server)
