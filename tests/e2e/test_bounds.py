"""Memory is the map plus a constant, whatever is slow, away, locked or large: at real sizes, from outside."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from tests.e2e.test_odd_rows import wait_odd
from tests.plugins.server import DEADLINE, fill, wait_equal, wait_until
from tests.support.crowd import Stalled
from tests.support.memory import MIB, Peak, peak, resident
from tests.support.one_table import make_one_table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.figures import Figure
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_APPLICATIONS = 2_000

_SMALL = """
DO $$ BEGIN
    FOR number IN 1..{count} LOOP
        {statement};
        COMMIT;
    END LOOP;
END $$
"""
_SIGNAL = "INSERT INTO portal_application_changes (portal_app_id) VALUES ('app_' || (1 + number % 2000))"
_UPDATE = """
UPDATE portal_application_settings SET secret_key = md5(clock_timestamp()::text)
WHERE application_id = 'app_' || (1 + number % 2000)
"""
_LONG = """
UPDATE portal_application_settings SET secret_key = repeat('k', 300000000), secret_key_required = true
WHERE application_id = 'app_1'
"""
_HANGS = "UPDATE pay_plans SET throughput_limit = 77 WHERE plan_type = 'plan_1'"
_SENT = """
SELECT sent_lsn - '0/0' FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
WHERE database = current_database()
"""
_HELD = """
SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots
WHERE database = current_database()
"""


def commit(database: Database, transactions: int, statement: str = _SIGNAL) -> None:
    """Commit so many small transactions, one after the other, and then one that changes what is served."""
    for start in range(0, transactions, 25_000):
        database.execute(_SMALL.format(count=min(25_000, transactions - start), statement=statement))
    database.execute(
        "SET LOCAL synchronous_commit = local;"
        "UPDATE portal_application_settings SET secret_key = md5(clock_timestamp()::text)"
    )


def wait_steady(server: Server, database: Database) -> None:
    """Return when the server has read all that it takes for now."""
    seen: list[list[tuple[int]]] = []

    def steady() -> bool:
        seen.append(database.rows(_SENT))  # none, while the stream is begun anew
        return len(seen) > 20 and bool(seen[-1]) and all(one == seen[-1] for one in seen[-20:])

    wait_until(steady, "nothing more is sent", deadline=300)
    assert server.get("/livez")[0] == 200


def test_small_transactions_behind_a_locked_table(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """1.2 kB each were kept, without a bound: 400 MB here."""
    fill(database, _APPLICATIONS)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    with closing(database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        commit(database, 400_000)
        wait_steady(server, database)
        grown = resident(server) - before
        locking.execute("COMMIT")
    figure(f"400,000 transactions behind a locked table: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0


def test_small_transactions_behind_a_locked_table_beyond_max_retained_wal(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """The slot lets go again and again, and what is owed takes no room."""
    fill(database, _APPLICATIONS)
    server = serve(database, MAX_RETAINED_WAL="32MB").wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    with closing(database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        commit(database, 600_000)
        wait_until(lambda: database.value(_HELD) < 64 * MIB, "the slot lets go", deadline=120)
        grown = resident(server) - before
        locking.execute("COMMIT")
    figure(f"600,000 transactions behind a locked table, MAX_RETAINED_WAL=32MB: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    # The server has the whole map long before it has read the rest of the slot.
    wait_until(lambda: server.get("/healthz")[0] == 200, "healthy", deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0


def test_small_transactions_while_the_standby_that_is_queried_does_not_replay(
    standby17: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    figure: Figure,
) -> None:
    primary = database_factory(cluster=standby17.primary)
    fill(primary, _APPLICATIONS)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    server = serve(primary, QUERY_CONNECTION_STRING=standby.url()).wait_ready()
    client = gateway(server)
    wait_equal(client, primary)
    before = resident(server)
    standby.rows("SELECT pg_wal_replay_pause()")
    commit(primary, 400_000)
    wait_steady(server, primary)
    grown = resident(server) - before
    standby.rows("SELECT pg_wal_replay_resume()")
    figure(f"400,000 transactions while the queried standby does not replay: {grown / MIB:.0f} MiB")
    wait_equal(client, primary, deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0


@pytest.mark.own_cluster
def test_small_transactions_behind_a_commit_that_hangs(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    figure: Figure,
) -> None:
    """The slot has it, and nobody can see it: its gate is shut, and the slot is not confirmed beyond it."""
    fill(database, _APPLICATIONS)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    database.cluster.configure({"synchronous_standby_names": "nobody"})
    database.cluster.reload()
    with closing(database.connect()) as session, session.cursor() as hanging:
        hanging.execute("SET statement_timeout = 0")
        waiting = threading.Thread(target=hanging.execute, args=(_HANGS,))
        waiting.start()
        try:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            wait_until(lambda: database.value(waits) == 1, "the commit hangs")
            commit(database, 400_000, f"PERFORM set_config('synchronous_commit', 'local', true); {_SIGNAL}")
            wait_steady(server, database)
            grown = resident(server) - before
        finally:
            database.cluster.configure({"synchronous_standby_names": ""})
            database.cluster.reload()
            waiting.join(DEADLINE)
    figure(f"400,000 transactions behind a commit that hangs: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0


def fill_many(database: Database, applications: int) -> None:
    """As `fill`, beyond the statement timeout of the tests' sessions."""
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(
            """
            INSERT INTO pay_plans SELECT 'plan_' || g, g * 1000, g FROM generate_series(0, 9) g;
            INSERT INTO accounts SELECT 'acc_' || g, 'plan_' || (g %% 10)
                FROM generate_series(0, %(count)s / 10) g;
            INSERT INTO portal_applications SELECT 'app_' || g, 'acc_' || (g / 10)
                FROM generate_series(1, %(count)s) g;
            INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
                SELECT 'app_' || g, 'key_' || g, true FROM generate_series(1, %(count)s) g;
            ANALYZE
            """,
            {"count": applications},
        )


_MANY = 300_000


def test_a_transaction_of_more_rows_than_are_named(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """1.2 million rows of 300,000 endpoints, twice over."""
    fill_many(database, _MANY)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database, deadline=300)
    with Peak(server) as watched:
        with closing(database.connect()) as session, session.cursor() as cursor:
            cursor.execute("SET statement_timeout = 0; BEGIN")
            for number in range(4):
                cursor.execute(
                    "UPDATE portal_application_settings SET secret_key = md5(%s || id)", (str(number),)
                )
            cursor.execute("COMMIT")
        wait_equal(client, database, deadline=300)
    figure(f"one transaction of {4 * _MANY:,} rows: {watched.shown}")
    assert watched.most < 300 * MIB
    assert server.stop() == 0


def test_a_transaction_of_ten_thousand_subtransactions(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    fill(database, _APPLICATIONS)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    database.execute(
        """
        DO $$ BEGIN
            FOR number IN 1..10000 LOOP
                BEGIN
                    UPDATE portal_application_settings SET secret_key = md5('sub' || number)
                        WHERE application_id = 'app_' || (1 + number % 2000);
                EXCEPTION WHEN division_by_zero THEN NULL;
                END;
            END LOOP;
        END $$
        """
    )
    wait_equal(client, database)
    grown = resident(server) - before
    figure(f"one transaction of 10,000 subtransactions: {grown / MIB:.0f} MiB")
    assert grown < 50 * MIB
    assert server.stop() == 0


def test_clients_that_take_nothing_of_what_they_fetch(
    database: Database, serve: ServerFactory, figure: Figure
) -> None:
    fill_many(database, _MANY)
    server = serve(database).wait_ready()
    with grpc.insecure_channel(
        f"127.0.0.1:{server.grpc}", options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        fetch = GatewayEndpointsStub(channel).FetchAuthDataSync
        size = fetch(AuthDataRequest()).ByteSize()
        with Peak(server) as watched, Stalled(server.grpc) as stalled:
            stalled.connect(50, lambda one: one.call(1, b"/proto.GatewayEndpoints/FetchAuthDataSync"))
            stalled.wait(count=2)
            waiting = fetch.future(AuthDataRequest(), timeout=10 * DEADLINE)
            wait_until(lambda: watched.most > 2 * size, "answers wait to be taken")
            stalled.close()
            assert len(waiting.result().endpoints) == _MANY, "who takes its answer gets it once they are gone"
    figure(f"50 clients that take nothing of {size / MIB:.0f} MiB that they fetch: {watched.shown}")
    assert watched.most < 256 * MIB + 4 * size
    assert server.stop() == 0


both_contracts = pytest.mark.parametrize(
    ("path", "opening"),
    [
        pytest.param(
            b"/pads.cdc.v1.EndpointFeedService/Watch",
            pb.WatchRequest(open=pb.Open(client_id="stalled")).SerializeToString(),
            id="feed",
        ),
        pytest.param(b"/proto.GatewayEndpoints/StreamAuthDataUpdates", b"", id="legacy contract"),
    ],
)


@both_contracts
def test_hundreds_of_subscribers_that_take_nothing(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    figure: Figure,
    path: bytes,
    opening: bytes,
    request: pytest.FixtureRequest,
) -> None:
    """They stall in the midst of what they are sent first, while all of it changes and a tenth is deleted."""
    fill_many(database, 50_000)
    server = serve(database, MAX_CONCURRENT_SNAPSHOTS="500").wait_ready()
    database.execute("DELETE FROM portal_applications WHERE id LIKE '%7'")
    wait_until(lambda: server.metric("pads_cdc_endpoints") == 45_000, "tombstones")
    before = resident(server)
    with Stalled(server.grpc) as stalled:
        stalled.connect(500, lambda one: one.call(1, path, message=opening, more=bool(opening)))
        stalled.wait_full()
        assert server.metric("pads_cdc_subscribers") == 500
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        wait_equal(gateway(server, fetch=False), database, deadline=120)
        grown = resident(server) - before
    each = f"{grown / 500 / 1024:.0f} KiB each"
    figure(f"500 subscribers ({request.node.callspec.id}) that take nothing: {each}")
    assert grown < 300 * MIB
    wait_until(lambda: server.metric("pads_cdc_subscribers") == 1, "they are gone")
    assert server.stop() == 0


@both_contracts
def test_hundreds_of_subscribers_that_stop_taking_changes(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    figure: Figure,
    path: bytes,
    opening: bytes,
    request: pytest.FixtureRequest,
) -> None:
    """The map fits into their windows, and the changes do not."""
    fill(database, 200)
    server = serve(database, MAX_CONCURRENT_SNAPSHOTS="500").wait_ready()
    client = gateway(server)
    change = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
    with Stalled(server.grpc) as stalled:
        stalled.connect(500, lambda one: one.call(1, path, message=opening, more=bool(opening)))
        stalled.wait()
        before = resident(server)
        for _ in range(20):
            database.execute(change)
            wait_equal(client, database)
        stalled.wait_full()
        full = resident(server)
        for _ in range(100):
            database.execute(change)
            wait_equal(client, database)
        grown = resident(server) - full
    each = f"{(full - before) / 500 / 1024:.0f} KiB each"
    figure(
        f"500 subscribers ({request.node.callspec.id}) that stop taking changes: {each},"
        f" and after 100 more of everything {grown / MIB:.0f} MiB in all"
    )
    assert grown < 30 * MIB
    assert server.stop() == 0


def test_thousands_of_clients_that_come_at_once_and_take_little_are_all_served(
    database: Database, serve: ServerFactory, figure: Figure
) -> None:
    """The last ones are accepted after minutes. gRPC would end calls that have waited for 30 s."""
    fill(database, 200)
    server = serve(database).wait_ready()
    before, began = resident(server), time.monotonic()
    with Stalled(server.grpc) as stalled:
        stalled.connect(2_500, lambda one: one.call(1, b"/proto.GatewayEndpoints/StreamAuthDataUpdates"))
        stalled.wait()
        seconds, grown = time.monotonic() - began, resident(server) - before
    each = f"{grown / 2_500 / 1024:.0f} KiB each"
    figure(f"2,500 clients of the legacy contract that come at once: {each}, all within {seconds:.0f} s")
    assert seconds > 30, "too few to show it"
    assert server.stop() == 0


def test_ten_thousand_idle_connections(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    fill(database, _APPLICATIONS)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    with Stalled(server.grpc) as idle:
        idle.connect(10_000)
        grown = resident(server) - before
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        wait_equal(client, database)
        assert server.get("/livez")[0] == 200
    figure(f"10,000 idle connections: {grown / 10_000 / 1024:.0f} KiB each")
    assert grown < 1_000 * MIB
    assert server.stop() == 0


def test_a_standby_that_is_frozen_while_the_table_is_locked(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure, tmp_path: Path
) -> None:
    """The leader's memory of parents has news that its mirror does not take."""
    database.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT")
    fill(database, _APPLICATIONS)
    leader = serve(database, PEER_ADDRESS="127.0.0.1:1").wait_ready()
    standby = serve(
        database,
        PEER_ADDRESS=f"127.0.0.1:{leader.grpc}",
        STATE_FILE=str(tmp_path / "standby"),
        SLOT_NAME="pads_cdc",
    )
    wait_until(lambda: leader.metric("pads_cdc_peer_connected") == 1, "it is mirrored")
    client = gateway(leader)
    wait_equal(client, database)
    before = resident(leader)
    standby.process.send_signal(signal.SIGSTOP)
    try:
        with closing(database.connect()) as session, session.cursor() as locking:
            locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
            commit(database, 400_000, _UPDATE)
            wait_steady(leader, database)
            grown = resident(leader) - before
            locking.execute("COMMIT")
    finally:
        standby.process.send_signal(signal.SIGCONT)
    figure(f"400,000 transactions behind a locked table, the standby is frozen: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    assert grown < 200 * MIB
    assert standby.stop() == 0
    assert leader.stop() == 0


def test_three_hundred_thousand_odd_rows(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure, tmp_path: Path
) -> None:
    """They are known by name up to a bound, and counted beyond it. While everything is read, all their ids
    are held: less than as many endpoints would take.
    """
    folder = make_one_table(tmp_path / "one_table")
    database.execute((folder / "schema.sql").read_text())
    database.publish(mapping=str(folder))
    good = "INSERT INTO endpoints (id) SELECT 'good_' || g FROM generate_series(1, 100) g"
    odd = "INSERT INTO endpoints (id, capacity) SELECT 'odd_{0}_' || g, 'NaN' FROM generate_series(1, {1}) g"
    database.execute(good)
    server = serve(database, MAPPING=str(folder), AUDIT_INTERVAL="1s").wait_ready()
    client = gateway(server)
    counted = partial(server.metric, "pads_cdc_odd_rows", reason="not_a_number")
    grown = []
    for half in (1, 2):
        before = resident(server)
        database.execute(odd.format(half, _MANY // 2))
        wait_until(lambda half=half: counted() == half * _MANY // 2, "all are counted", deadline=120)  # type: ignore[misc]
        grown.append(resident(server) - before)
    database.execute("UPDATE endpoints SET throughput = 5 WHERE id LIKE 'good%'")
    client.wait(lambda one: len(one.map) == 100, "the good ones")
    figure(
        f"{_MANY:,} odd rows: {grown[0] / MIB:.0f} MiB for the first half, {grown[1] / MIB:.0f} for the rest"
    )
    assert sum(grown) < _MANY * 330
    assert server.stop() == 0


def test_ids_that_come_and_go_for_long(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """Each round has ids of its own, and begins when the deletes of the one before it are forgotten."""
    fill(database, 100)
    server = serve(database, TOMBSTONE_RETENTION="5s").wait_ready()
    rounds, each = 5, 100_000
    taken = []

    def forgotten() -> bool:
        """Return whether a client that never fetches is told of no delete."""
        newcomer = gateway(server, fetch=False)
        wait_equal(newcomer, database, deadline=120)
        newcomer.stop()
        return all(payload is not None for _, payload in newcomer.updates)

    for number in range(rounds):
        database.execute(
            "INSERT INTO portal_applications (id, account_id)"
            " SELECT 'brief_' || %s || '_' || g, 'acc_1' FROM generate_series(1, %s) g",
            (str(number), each),
        )
        wait_until(lambda: server.metric("pads_cdc_endpoints") == 100 + each, "they have come", deadline=120)
        database.execute("DELETE FROM portal_applications WHERE starts_with(id, 'brief_')")
        wait_until(lambda: server.metric("pads_cdc_endpoints") == 100, "they are gone", deadline=120)
        wait_until(forgotten, "their deletes are forgotten", deadline=120)
        taken.append(resident(server))
    grown = taken[-1] - taken[0]
    figure(f"{(rounds - 1) * each:,} more ids that came and went: {grown / MIB:.0f} MiB")
    assert grown < 50 * MIB
    assert server.stop() == 0


def test_rows_that_are_longer_than_usual(database: Database, serve: ServerFactory, figure: Figure) -> None:
    """Beside the map there are the rows of two fetches at most, in a load, in a ripple and in an audit."""
    rows, length = 6_000, 32_000
    database.execute("ALTER TABLE portal_application_settings ALTER secret_key TYPE TEXT")
    database.publish()
    fill(database, rows, plans=1)
    database.execute(
        "UPDATE portal_application_settings"
        " SET secret_key = repeat(md5(application_id), %s / 32), secret_key_required = true",
        (length,),
    )
    server = serve(database, AUDIT_INTERVAL="1s").wait_ready()
    held = rows * 6 / 7 * length
    loaded = peak(server) - held
    with Peak(server) as watched:
        published = server.metric("pads_cdc_published_total") + rows
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        server.wait_metric(published, "pads_cdc_published_total")
        server.wait_metric(server.metric("pads_cdc_audit_runs_total") + 2, "pads_cdc_audit_runs_total")
    figure(
        f"{rows:,} rows of {length:,} bytes: {loaded / MIB:.0f} MiB beside the map, with the process itself,"
        f" and {watched.shown} more in a ripple and in audits"
    )
    fetch = 2_000 * length  # of which the driver has a copy in its own form for a moment
    assert loaded < 105 * MIB + 4 * fetch
    assert watched.most < 5 * fetch
    assert server.stop() == 0


@pytest.mark.both_plugins
def test_a_value_of_300_mb(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """Whether for a load, an audit, a change or a ripple: a read takes only its length from the database.

    wal2json sends all columns of a changed row, pgoutput only the keys.
    """
    database.execute("ALTER TABLE portal_application_settings ALTER secret_key TYPE TEXT")
    database.publish()
    fill(database, _APPLICATIONS)
    server = serve(database, AUDIT_INTERVAL="1s").wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    usual = peak(server)
    with Peak(server) as of_change:
        database.execute(_LONG)
        wait_odd(server, "app_1 (secret_key has 300,000,000 bytes, more than a message can have)")
        client.wait(lambda one: "app_1" not in one.map, "it is left out")
    figure(f"a value of 300 MB, changed, {database.plugin}: {of_change.shown}")
    assert server.stop() == 0
    server = serve(database, PORT=str(server.grpc), AUDIT_INTERVAL="1s").wait_ready()
    wait_odd(server, "app_1 (secret_key has 300,000,000 bytes, more than a message can have)")
    grown = peak(server) - usual
    figure(f"a value of 300 MB in a load: {grown / MIB:.0f} MiB more than without")
    with Peak(server) as of_reads:
        for _ in range(3):
            database.execute(
                "UPDATE accounts SET plan_type = plan_type; UPDATE portal_applications SET id = id;"
                "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
            )
            runs = server.metric("pads_cdc_audit_runs_total")
            server.wait_metric(runs + 2, "pads_cdc_audit_runs_total")
    figure(f"a value of 300 MB, re-queried and audited: {of_reads.shown}")
    assert grown < 60 * MIB
    assert of_reads.most < 60 * MIB
    assert database.plugin != "pgoutput" or of_change.most < 60 * MIB
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'mended' WHERE application_id = 'app_1'"
    )
    client.wait(lambda one: one.key("app_1") == "mended", "it is served")
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.stop() == 0
