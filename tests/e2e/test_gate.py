"""The gate end to end: nothing that is read too early counts, and nothing that waits holds up the rest."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory
    from tests.support.cluster import Cluster


@pytest.fixture
def own(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> Database:
    """A database in a cluster whose settings may be changed."""
    database = database_factory(cluster=cluster_factory())
    fill(database, 40)
    return database


@contextmanager
def standby_away(database: Database) -> Iterator[Callable[[str], None]]:
    """Let commits hang, invisible, until the context ends; yields a function that runs such a commit."""
    cluster = database.cluster
    cluster.configure({"synchronous_standby_names": "nobody"})
    cluster.reload()
    wait_until(lambda: database.value("SHOW synchronous_standby_names") == "nobody", "the reload")
    hanging: list[threading.Thread] = []

    def commit(statement: str) -> None:
        session = database.connect()
        thread = threading.Thread(target=session.cursor().execute, args=(statement,))
        thread.start()
        hanging.append(thread)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: database.value(waiting) == len(hanging), "the commit hangs")

    try:
        yield commit
    finally:
        cluster.configure({"synchronous_standby_names": ""})
        cluster.reload()
        for thread in hanging:
            thread.join(30)


def local(database: Database, statement: str) -> None:
    """Commit without waiting for the standby."""
    database.execute(f"SET synchronous_commit = local; {statement}")


def settled(client: Gateway, database: Database, marker: str) -> None:
    """Return when a change made now has reached the client: everything decoded before it has been looked
    at.
    """
    local(database, f"INSERT INTO portal_applications VALUES ('{marker}', NULL)")
    client.wait(lambda one: marker in one.map, marker)


def test_one_that_waits_does_not_hold_up_a_later_one(
    own: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    server = serve(own)
    client = gateway(server)
    wait_equal(client, own)
    with standby_away(own) as commit:
        commit("UPDATE portal_application_settings SET secret_key = 'hangs' WHERE application_id = 'app_1'")
        local(
            own, "UPDATE portal_application_settings SET secret_key = 'local' WHERE application_id = 'app_2'"
        )
        client.wait(lambda one: one.key("app_2") == "local", "the revocation that does not wait", 5)
        assert client.key("app_1") == "key_1"
        server.kill()  # and what waits is not lost by it
    second = serve(own, PORT=str(server.grpc)).wait_ready()
    wait_equal(client, own)
    assert client.key("app_1") == "hangs"
    assert second.metric("pads_cdc_decode_errors_total") == 0


def test_one_that_affects_nothing_yet_waits_too(
    own: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """A plan without accounts is changed invisibly; then an account joins the plan, visibly."""
    own.execute("INSERT INTO pay_plans VALUES ('empty', 1, 1)")
    client = gateway(serve(own))
    wait_equal(client, own)
    with standby_away(own) as commit:
        commit("UPDATE pay_plans SET throughput_limit = 99 WHERE plan_type = 'empty'")
        local(own, "UPDATE accounts SET plan_type = 'empty' WHERE id = 'acc_1'")
        client.wait(lambda one: _plan(one, "app_1") == ("empty", 1), "the plan as everybody sees it", 5)
    client.wait(lambda one: _plan(one, "app_1") == ("empty", 99), "the plan's new limit")
    wait_equal(client, own)


def _plan(client: Gateway, endpoint_id: str) -> tuple[str, int] | None:
    endpoint = client.endpoint(endpoint_id)
    if endpoint is None:
        return None
    return endpoint.metadata.plan_type, endpoint.rate_limiting.throughput_limit


def test_a_commit_that_hangs_since_before_the_slot_was_made(
    own: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """The slot never delivers it: the load has to see it, and waits for it, or clients never hear of it.

    Making a slot waits for what runs when it begins, and then for what has begun meanwhile. Whatever begins
    after that is over for the slot with its commit record, though nobody can see it yet. So it is in 15.18;
    newer releases (15.20) wait for such a commit as well, and make no slot before it is over.
    """

    def begin() -> connection:
        session = own.connect()
        session.cursor().execute("BEGIN; SELECT pg_current_xact_id()")
        return session

    def streaming(server: Server) -> bool:
        return server.metric("pads_cdc_source_mode", mode="streaming") == 1

    def waits_for(pid: int) -> bool:
        waits = (
            "SELECT count(*) = 1 FROM pg_locks AS waiting"
            " JOIN pg_locks AS held USING (locktype, transactionid)"
            " WHERE NOT waiting.granted AND held.granted AND held.pid = %s"
        )
        return bool(own.value(waits, (pid,)))

    def waited_for(session: connection) -> None:
        wait_until(lambda: waits_for(session.info.backend_pid), "the slot waits for it")

    with standby_away(own) as commit:
        first = begin()
        server = serve(own)
        waited_for(first)
        second = begin()
        first.cursor().execute("ROLLBACK")
        waited_for(second)
        commit("UPDATE portal_application_settings SET secret_key = 'hangs' WHERE application_id = 'app_1'")
        second.cursor().execute("ROLLBACK")
        hanging = own.value("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        wait_until(
            lambda: streaming(server) or waits_for(hanging), "the slot is made, or waits for the commit"
        )
        if streaming(server):
            local(own, "INSERT INTO portal_applications VALUES ('follows', NULL)")
            server.wait_metric(1, "pads_cdc_transactions_total")
        else:
            wait_until(lambda: f"process {hanging}" in server.get("/healthz")[1], "it is said whose")
        assert server.metric("pads_cdc_reconcile_total", reason="slot_created") == 0, "loaded too early"
    client = gateway(server)
    wait_equal(client, own)
    assert client.key("app_1") == "hangs"


@pytest.mark.parametrize("busy_with", ["ripple", "reconcile", "bootstrap"])
def test_truncate_and_reload_never_shows_an_endpoint_without_its_key(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, busy_with: str
) -> None:
    """A snapshot taken before a TRUNCATE shows the table empty: every endpoint would become `no_auth`."""
    fill(database, 3_000, plans=1)
    database.execute(
        "DELETE FROM portal_application_settings;"
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT id, 'key', true FROM portal_applications"
    )
    reload_ = (
        "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM portal_application_settings;"
        "TRUNCATE portal_application_settings;"
        "INSERT INTO portal_application_settings SELECT * FROM kept"
    )
    ended = threading.Event()

    def reload_again_and_again() -> None:
        while not ended.is_set():
            database.execute(reload_)

    writer = threading.Thread(target=reload_again_and_again)
    if busy_with == "bootstrap":
        writer.start()
    server = serve(database)
    client = gateway(server)
    if busy_with != "bootstrap":
        writer.start()
    for _ in range(5):
        if busy_with == "reconcile":
            database.rows("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    ended.set()
    writer.join(60)
    wait_equal(client, database)
    no_auth = [endpoint_id for endpoint_id, payload in client.updates if payload and b"key" not in payload]
    assert not no_auth


@pytest.mark.parametrize("how", ["statement_timeout", "terminated", "cut"])
def test_a_re_query_that_fails_is_never_taken_for_a_delete(
    cluster: Cluster, database: Database, serve: ServerFactory, gateway: GatewayFactory, how: str
) -> None:
    fill(database, 200)
    with Proxy(cluster.port) as proxy:
        query = database.url().replace(f":{cluster.port}/", f":{proxy.port}/")
        server = serve(database, QUERY_CONNECTION_STRING=query)
        client = gateway(server)
        wait_equal(client, database)
        before = len([payload for _, payload in client.updates if payload is None])
        blocker = database.connect()
        with blocker.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
            database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
            waiting = "SELECT array_agg(pid) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: database.value(waiting), "the re-query hangs")
            if how == "terminated":
                database.rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
            elif how == "cut":
                proxy.cut()
            else:
                database.rows("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted")
            wait_until(lambda: "query" in server.get("/healthz")[1], "it says so")
            assert server.get("/readyz") == (200, "ok")
            cursor.execute("ROLLBACK")
        wait_equal(client, database)
        assert len([payload for _, payload in client.updates if payload is None]) == before
        wait_until(lambda: server.get("/healthz") == (200, "ok"), "healthy again")


def test_hidden_rows_are_an_error_and_no_deletes(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Somebody turns on row-level security: our role would see an empty table."""
    fill(database, 50)
    role = database.create_role("REPLICATION")
    database.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{role.name}"')
    server = serve(database.url(role.name, role.password))
    client = gateway(server)
    wait_equal(client, database)
    database.execute("ALTER TABLE portal_applications ENABLE ROW LEVEL SECURITY")
    database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_until(lambda: "row-level security" in server.get("/healthz")[1], "it says so")
    assert len(client.map) == 50
    database.execute("ALTER TABLE portal_applications DISABLE ROW LEVEL SECURITY")
    wait_equal(client, database)


def test_a_table_of_the_same_name_before_ours(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(database, 20)
    role = database.create_role("REPLICATION")
    database.execute(
        f'CREATE SCHEMA "{role.name}" AUTHORIZATION "{role.name}";'
        f'CREATE TABLE "{role.name}".portal_applications (LIKE public.portal_applications);'
        f'GRANT SELECT ON ALL TABLES IN SCHEMA public, "{role.name}" TO "{role.name}"'
    )
    client = gateway(serve(database.url(role.name, role.password)))
    wait_equal(client, database)
    assert len(client.map) == 20
