"""Re-queries on a real server: what they prove, what they refuse, and what they leave behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from cdc import lsn
from cdc.errors import PadsCdcError, Refusal, SourceError
from cdc.mapping.mapping import load
from cdc.postgres import statements
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.postgres.gate import Gate
from cdc.postgres.read import CHUNK, FIRST_CHUNK
from cdc.postgres.watchdog import QueryWatchdog
from tests.plugins.server import DEADLINE, fill, wait_until
from tests.support import BUNDLED
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.postgres.read import Row
    from tests.plugins import postgres
    from tests.plugins.postgres import DatabaseFactory, Replicated

OURS = "FROM pg_stat_activity WHERE application_name = 'pads-cdc' AND datname = current_database()"
OPEN = f"SELECT count(*) {OURS}"
IN_TRANSACTION = OPEN + " AND state <> 'idle'"


def encode(columns: tuple[Any, ...]) -> bytes:
    """Make a payload that people can read; text comes as bytes."""
    return b"|".join(one if isinstance(one, bytes) else str(one).encode() for one in columns)


@pytest.fixture
def reading(database: postgres.Database) -> Iterator[Callable[..., Database]]:
    """Make what reads a test's database, by default as the superuser and in the schema public."""
    opened: list[Database] = []

    def make(url: str | None = None, schema: str = "public") -> Database:
        address = Address(lambda: url or database.url(), "QUERY_CONNECTION_STRING")
        opened.append(Database(address, load("grove"), schema, encode))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def rows(database: Database, **keys: set[str]) -> dict[str, bytes | None]:
    """Read it all, or what keys affect."""
    with database.read(keys or None) as read:
        found: list[Row] = [row for chunk in read.chunks() for row in chunk]
    assert len({endpoint_id for endpoint_id, _ in found}) == len(found), "an id twice"
    return dict(found)


@pytest.mark.parametrize(
    "number", [0, 1, FIRST_CHUNK - 1, FIRST_CHUNK, FIRST_CHUNK + 1, FIRST_CHUNK + 2 * CHUNK]
)
def test_every_endpoint_comes_once_whatever_the_chunks(
    database: postgres.Database, reading: Callable[..., Database], number: int
) -> None:
    fill(database, number)
    read = reading()
    found = rows(read)
    assert set(found) == {f"app_{n}" for n in range(1, number + 1)}
    wanted = {"nobody", *found}
    assert rows(read, EndpointsOfApplications=wanted) == {**found, "nobody": None}
    assert database.value(OPEN) == 1, "one connection does"
    assert database.value(IN_TRANSACTION) == 0


def test_a_key_that_is_gone_is_a_delete_and_other_kinds_find_what_there_is(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 40, plans=2, per_account=10)
    read = reading()
    assert rows(read, EndpointsOfAccounts={"nobody"}) == {}
    assert (
        rows(read, EndpointsOfPlans={"plan_0"}).keys()
        == rows(read, EndpointsOfAccounts={"acc_0", "acc_2"}).keys()
    )
    both = rows(read, EndpointsOfPlans={"plan_0"}, EndpointsOfApplications={"app_4", "gone", "app_1"})
    assert {"gone", "app_1", "app_4"} <= both.keys()
    assert both["gone"] is None
    assert both["app_4"] == b"app_4|key_4|True|None|acc_0|plan_0|0|0"


def test_the_evidence_of_a_primary(database: postgres.Database, reading: Callable[..., Database]) -> None:
    """It comes with every read, also with one that finds nothing, and is of the very snapshot of its rows."""
    fill(database, 1)
    read = reading()
    writer = database.connect()
    writer.autocommit = False
    with writer.cursor() as cursor:
        cursor.execute("DELETE FROM portal_application_settings RETURNING txid_current()")
        [[xid]] = cursor.fetchall()
    gate = Gate(frozenset({xid % (1 << 32)}))
    for keys in (None, {"EndpointsOfApplications": {"app_1"}}, {"EndpointsOfAccounts": {"nobody"}}):
        with read.read(keys) as found:
            assert not gate.opens(found.evidence)
    assert not gate.opens(read.evidence())
    before = lsn.parse(database.value("SELECT pg_current_wal_lsn()::text"))
    with read.read() as late:
        writer.commit()
        assert not gate.opens(late.evidence)
        assert dict(next(late.chunks()))["app_1"] == b"app_1|key_1|True|None|acc_0|plan_0|0|0"
    evidence = read.evidence()
    assert gate.opens(evidence)
    assert evidence.system == database.value("SELECT system_identifier::text FROM pg_control_system()")
    assert evidence.timeline == 1
    assert evidence.replayed is None
    assert evidence.seen >= before


def test_the_evidence_of_a_standby_and_after_its_promotion(
    standby17: Replicated, database_factory: DatabaseFactory
) -> None:
    """Its role is asked each time: the same connection is of a primary later."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 5)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    address = Address(standby.url, "QUERY_CONNECTION_STRING")
    with closing(Database(address, load("grove"), "public", encode)) as read:
        end = lsn.parse(primary.value("SELECT pg_current_wal_lsn()::text"))
        standby17.wait_replayed()
        evidence = read.evidence()
        assert evidence.timeline is None
        assert evidence.replayed is not None
        assert evidence.replayed >= end
        assert evidence.seen >= evidence.replayed
        assert Gate(frozenset({3}), end=end).opens(evidence)
        assert not Gate(frozenset({3}), end=evidence.replayed + 1).opens(evidence)
        standby17.standby.promote()
        promoted = read.evidence()
        assert promoted.system == evidence.system
        assert (promoted.timeline, promoted.replayed) == (2, None)
        assert len(rows(read)) == 5


def test_a_transaction_that_commits_during_a_read_is_in_none_of_its_rows(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    """One statement, one snapshot, however many chunks: and a TRUNCATE waits for it."""
    fill(database, FIRST_CHUNK + CHUNK)
    with reading().read() as read:
        chunks = read.chunks()
        found = list(next(chunks))
        database.execute("UPDATE pay_plans SET throughput_limit = 987654321")
        found += [row for chunk in chunks for row in chunk]
    assert len(found) == FIRST_CHUNK + CHUNK
    assert not any(b"987654321" in (payload or b"") for _, payload in found)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY", "BYPASSRLS"),
        ("REVOKE SELECT ON accounts FROM PUBLIC", "run pads-cdc setup"),
    ],
)
def test_hidden_rows_are_an_error_and_not_a_delete(
    database: postgres.Database, reading: Callable[..., Database], what: str, names: str
) -> None:
    fill(database, 3)
    role = database.create_role()
    database.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC")
    read = reading(database.url(*role))
    assert len(rows(read)) == 3
    database.execute(what)
    with pytest.raises(Refusal, match=names):
        rows(read)
    assert database.value(OPEN) == 0, "a connection in doubt is closed"


def test_tables_of_other_schemas_are_not_ours(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    """Neither by the search_path of the role, nor by temporary tables, nor by operators that hide ours."""
    fill(database, 3)
    role = database.create_role()
    database.execute(
        f"CREATE SCHEMA {role.name} AUTHORIZATION {role.name};"
        f"CREATE TABLE {role.name}.portal_applications AS SELECT 'evil' AS id, 'acc_0' AS account_id;"
        f"CREATE FUNCTION {role.name}.pg_current_snapshot() RETURNS text LANGUAGE sql AS 'SELECT NULL';"
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role.name};"
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {role.name} TO {role.name};"
        f"ALTER ROLE {role.name} SET search_path = {role.name}, public"
    )
    read = reading(database.url(*role))
    assert set(rows(read)) == {"app_1", "app_2", "app_3"}
    connection = read.connections.take()
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE portal_applications AS SELECT 'evil' AS id, 'acc_0' AS account_id"
        )
    read.connections.give_back(connection)
    assert set(rows(read)) == {"app_1", "app_2", "app_3"}


@pytest.mark.parametrize(
    "schema", ["Odd Schema", 'quo"te', "per%cent", "ünï,code", "%(search_path)s", "it's"]
)
def test_a_schema_of_any_name(
    database: postgres.Database, reading: Callable[..., Database], schema: str
) -> None:
    fill(database, 3)
    quoted = '"{}"'.format(schema.replace('"', '""'))
    database.execute(f"ALTER SCHEMA public RENAME TO {quoted}")
    assert len(rows(reading(schema=schema))) == 3


def test_settings_of_the_role_do_not_matter(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 3)
    role = database.create_role()
    database.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role.name};"
        f"ALTER ROLE {role.name} SET default_transaction_isolation = 'serializable';"
        f"ALTER ROLE {role.name} SET row_security = on;"
        f"ALTER ROLE {role.name} SET lock_timeout = 0; ALTER ROLE {role.name} SET statement_timeout = '1h';"
        f"ALTER ROLE {role.name} SET DateStyle = 'German';"
        f"ALTER ROLE {role.name} SET client_encoding = 'LATIN1';"
        f"UPDATE portal_application_settings SET secret_key = 'schlüssel_\u8868'"
    )
    read = reading(database.url(*role) + "?client_encoding=LATIN1")
    payload = rows(read)["app_1"]
    assert payload is not None
    assert "schlüssel_\u8868" in payload.decode()
    assert read.query("SHOW transaction_isolation") == [("read committed",)]
    assert read.query("SHOW row_security") == [("off",)]
    assert read.query("SHOW lock_timeout") == [("400ms",)]
    assert read.query("SHOW statement_timeout") == [("1min",)]


def test_a_statement_that_runs_can_be_ended(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    read = reading()
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            read.query("SELECT pg_sleep(50)")
        except PadsCdcError as error:
            raised.append(error)

    attempting = threading.Thread(target=attempt)
    attempting.start()
    wait_until(lambda: database.value(OPEN + " AND wait_event = 'PgSleep'") == 1, "it runs")
    read.connections.give_way(0.0)
    attempting.join(20)
    assert isinstance(raised[0], SourceError)
    assert raised[0].reason == "gave_way"
    wait_until(lambda: database.value(OPEN + " AND wait_event = 'PgSleep'") == 0, "the server has ended it")
    assert rows(read) == {}


def test_connections_that_have_died_cost_one_error(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 3)
    read = reading()
    assert len(rows(read)) == 3
    database.execute(f"SELECT pg_terminate_backend(pid) {OURS}")
    wait_until(lambda: database.value(OPEN) == 0, "it has ended")
    with pytest.raises(SourceError):
        rows(read)
    assert len(rows(read)) == 3


def test_a_read_that_dies_in_the_middle_says_so(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    """Never to be taken for the end of the rows: everything that did not come would be deleted."""
    fill(database, FIRST_CHUNK + 2 * CHUNK)
    read = reading().read()
    chunks = read.chunks()
    next(chunks)
    database.execute(f"SELECT pg_terminate_backend(pid) {OURS}")
    with pytest.raises(SourceError):
        list(chunks)
    assert not read.complete
    read.close()


def test_reads_may_overlap_and_be_closed_early(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, FIRST_CHUNK + CHUNK)
    read = reading()
    with read.read() as long:
        chunks = long.chunks()
        next(chunks)
        assert len(rows(read, EndpointsOfApplications={"app_1"})) == 1
        assert database.value(OPEN) == 2
    long.close()
    wait_until(lambda: database.value(IN_TRANSACTION) == 0, "no transaction stays open")
    assert len(rows(read)) == FIRST_CHUNK + CHUNK
    read.close()
    wait_until(lambda: database.value(OPEN) == 0, "all are closed")


def test_nothing_is_written_by_a_read(database: postgres.Database, reading: Callable[..., Database]) -> None:
    with pytest.raises(SourceError, match="read-only"):
        reading().query("CREATE TABLE ours (id INT); SELECT 1")
    with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('ours')")
        assert cursor.fetchall() == [(None,)]


@pytest.mark.parametrize("mapping", BUNDLED)
def test_tables_are_locked_before_those_that_refer_to_them(
    mapping: str, database_factory: DatabaseFactory
) -> None:
    reads = load(mapping).reads
    keys = database_factory(mapping).rows(
        "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
    )
    order = [
        (reads.index(parent), reads.index(child)) for child, parent in keys if {child, parent} <= set(reads)
    ]
    assert order
    assert all(parent < child for parent, child in order)


@pytest.mark.parametrize(
    "keys", [{}, {"EndpointsOfPlans": {"plan_0"}}, {"EndpointsOfApplications": {"app_1"}}]
)
def test_a_truncate_that_cascades_is_no_victim_of_a_read(
    database: postgres.Database, reading: Callable[..., Database], keys: dict[str, set[str]]
) -> None:
    """Half way through its locks, from parents to children, it meets a read that takes locks as well."""
    fill(database, 10)
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE NOT granted AND datname = current_database()"
    )
    read = reading()
    assert rows(read, **keys)
    writer, truncating = database.connect(), database.connect()
    writer.autocommit = False
    writer.cursor().execute("UPDATE accounts SET plan_type = 'plan_2' WHERE id = 'acc_0'")
    truncating.cursor().execute(
        "SET deadlock_timeout = '10ms'"
    )  # who looks for deadlocks first is the victim
    with ThreadPoolExecutor(2) as both:
        truncate = both.submit(truncating.cursor().execute, "TRUNCATE pay_plans CASCADE")
        wait_until(lambda: database.value(waiting) == 1, "the plans are locked, and accounts waited for")
        found = both.submit(rows, read, **keys)
        wait_until(lambda: database.value(waiting) == 2, "the read waits")
        writer.commit()
        truncate.result(DEADLINE)
        assert set(found.result(DEADLINE).values()) <= {None}


@pytest.mark.parametrize("keys", [{}, {"EndpointsOfApplications": {"app_1"}}])
def test_a_partition_that_is_emptied_and_filled_again_is_never_seen_empty(
    database: postgres.Database,
    reading: Callable[..., Database],
    keys: dict[str, set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lock must be had before the snapshot, as any table's: an older one sees none of the new rows. The
    read would not wait for it, except that here it has ten seconds.
    """
    monkeypatch.setattr(statements, "AT_ONCE", statements.AT_ONCE.replace("1ms", "10s"))
    database.execute(
        "DROP TABLE portal_application_settings, portal_applications;"
        "CREATE TABLE portal_applications (id TEXT PRIMARY KEY, account_id TEXT) PARTITION BY HASH (id);"
        "CREATE TABLE part PARTITION OF portal_applications FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        "CREATE TABLE portal_application_settings"
        " (id SERIAL, application_id TEXT, secret_key TEXT, secret_key_required BOOLEAN)"
    )
    fill(database, 3)
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE NOT granted AND datname = current_database()"
    )
    read = reading()
    assert rows(read, **keys)["app_1"]
    writer = database.connect()
    writer.autocommit = False
    writer.cursor().execute(
        "CREATE TEMP TABLE kept AS TABLE part; TRUNCATE part; INSERT INTO part TABLE kept"
    )
    with ThreadPoolExecutor(1) as other:
        found = other.submit(rows, read, **keys)
        wait_until(lambda: database.value(waiting) == 1, "the read waits")
        writer.commit()
        assert found.result(DEADLINE)["app_1"]


def test_a_read_that_cannot_be_written_or_understood_leaves_no_connection(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    """The driver has errors that are not its own, and whoever follows tries again every two seconds."""
    read = reading()
    with pytest.raises(ValueError, match="NUL"):
        read.read({"EndpointsOfApplications": {"app_\0"}})
    with pytest.raises(ValueError, match="NUL"):
        read.query("SELECT %(text)s", {"text": "\0"})
    wait_until(lambda: database.value(OPEN) == 0, "both are closed")


@pytest.mark.parametrize("far", ["at once", "half way", "at its end"])
def test_a_server_that_is_frozen_holds_nobody_for_ever(
    database: postgres.Database, reading: Callable[..., Database], far: str
) -> None:
    """Its kernel answers in its place, so that neither keepalives nor its own timeouts end anything."""
    fill(database, FIRST_CHUNK + 3 * CHUNK)
    with Proxy(database.cluster.port) as proxy:
        read = reading(database.url().replace(str(database.cluster.port), str(proxy.port)))
        read.evidence()  # it has a connection
        watch = QueryWatchdog(read.connections, limit=1.0)
        opened = None if far == "at once" else read.read()
        chunks = opened.chunks() if opened is not None else iter(())
        if far != "at once":
            next(chunks)
            next(chunks)
        proxy.stalled = True
        watch.start()
        try:
            if opened is None:
                with pytest.raises(SourceError, match="QUERY_CONNECTION_STRING"):
                    read.read()
            elif far == "half way":
                with pytest.raises(SourceError, match="QUERY_CONNECTION_STRING"):
                    list(chunks)
            else:
                opened.close()
        finally:
            proxy.stalled = False
            watch.stop()
        assert rows(read), "another connection serves"


def test_a_read_that_is_only_looked_at_slowly_is_not_hung_up(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, FIRST_CHUNK + 2 * CHUNK)
    read = reading()
    with read.read() as opened:
        chunks = opened.chunks()
        found = len(next(chunks))
        wait_until(lambda: database.value(IN_TRANSACTION + " AND state = 'idle in transaction'"), "fetched")
        read.connections.cut_stalled(0.0)
        assert found + sum(map(len, chunks)) == FIRST_CHUNK + 2 * CHUNK


@pytest.mark.parametrize("why", ["closed meanwhile", "refused"])
def test_a_connection_that_is_not_to_be_asked_again(why: str, reading: Callable[..., Database]) -> None:
    """Of several hosts another one may fit by now: a read that ends late must not bring the old one back."""
    read = reading()
    opened = read.read()
    old = opened._connection
    assert old is not None
    if why == "refused":
        opened.discard()
    else:
        read.close()
    opened.close()
    with read.read() as now:
        assert now._connection is not old
    assert old.closed


def test_a_read_whose_server_was_promoted_in_the_middle_proves_nothing(
    database: postgres.Database, reading: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, 3)
    read = reading()
    rules = [one for of_table in read.mapping.rules.values() for one in of_table if one.parents]
    in_recovery = "SELECT pg_catalog.set_config('pads_cdc.before', '1 - 1 0/0', true)"
    monkeypatch.setattr(statements, "BEFORE", in_recovery)
    with pytest.raises(SourceError, match="no snapshot"):
        read.read()
    with pytest.raises(SourceError, match="no snapshot"):
        read.read({"EndpointsOfApplications": {"app_1"}})
    with pytest.raises(SourceError, match="no snapshot"):
        read.parents(rules)
    assert read.connections.age() == 0


def test_the_server_that_lists_parents_is_the_one_that_says_what_it_shows(
    database: postgres.Database, reading: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler, or with several hosts, another connection may lead to another server."""
    fill(database, 3)
    read = reading()
    rules = [one for of_table in read.mapping.rules.values() for one in of_table if one.parents]
    read.parents(rules)  # the types are known from now on
    take, taken = read.connections.take, 0

    def counted() -> Connection:
        nonlocal taken
        taken += 1
        return take()

    monkeypatch.setattr(read.connections, "take", counted)
    [found] = read.parents(rules).values()
    assert (len(found.rows), taken) == (3, 1)
    assert found.before.instance == found.after.instance
    assert found.before.seen <= found.after.seen
