"""Migrations go first: none is a deadlock's victim, or waits for long, because we read its tables."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.checks import dependencies
from cdc.checks.census import Census
from cdc.checks.giving_way import giving_way
from cdc.checks.identities import indexes
from cdc.checks.mapping import ids, statements
from cdc.errors import PadsCdcError, SourceError, gives_way
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.postgres.lock_watch import LockWatch
from cdc.postgres.read import CHUNK
from server.observe.fanout import Listener
from tests.cdc.postgres.test_database import encode
from tests.plugins.postgres import site_of
from tests.plugins.server import fill, wait_until
from tests.support import ROOT
from tests.support.cluster import ephemeral_cluster
from tests.support.repeated import repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc.checks.finding import Finding, Site
    from tests.plugins import postgres
    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import DatabaseFactory, Replicated
    from tests.support.cluster import Cluster

STEPS = (
    "LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE portal_applications IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE portal_application_settings IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE pay_plans ADD COLUMN IF NOT EXISTS note TEXT",
    "ALTER TABLE accounts ADD COLUMN IF NOT EXISTS note TEXT",
    "ALTER TABLE portal_applications ADD COLUMN IF NOT EXISTS note TEXT",
    "ALTER TABLE portal_application_settings ALTER secret_key SET DEFAULT 'none'",
    "TRUNCATE portal_applications CASCADE",
    "TRUNCATE pay_plans CASCADE",
    "REINDEX TABLE accounts",
    "REINDEX INDEX portal_applications_pkey",
    "CREATE INDEX ON portal_applications (account_id)",
    "DROP INDEX IF EXISTS portal_applications_account_id_idx",
)


def all_read(database: Database, keys: dict[str, set[str]] | None = None) -> None:
    """Read as the applier does."""
    with database.read(keys) as read:
        for _ in read.chunks():
            pass


class Readers:
    """Threads that read again at once, or after a while when somebody else goes first."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self._ending = threading.Event()
        self.faults: list[PadsCdcError] = []
        self.reads = self.gave_way = 0
        self._threads = [threading.Thread(target=self._read, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, database: Database) -> Readers:
        """Read all, and a plan's."""
        return cls(partial(all_read, database), partial(all_read, database, {"EndpointsOfPlans": {"plan_0"}}))

    def _read(self, work: Callable[[], object]) -> None:
        while not self._ending.is_set():
            try:
                work()
                self.reads += 1
            except PadsCdcError as error:
                self.gave_way += 1
                if not gives_way(error):
                    self.faults.append(error)
                self._ending.wait(0.02)

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def watched(database: Database) -> Iterator[LockWatch]:
    watch = LockWatch(database.connections, server_queries()["Blocked"], Listener())
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
        watch.join(10)


@pytest.fixture(scope="module")
def hasty() -> Iterator[Cluster]:
    """A server that looks for deadlocks soon, so that many orders can be tried."""
    with ephemeral_cluster({"deadlock_timeout": "150ms"}) as cluster:
        yield cluster


def database_of(url: Callable[[], str], wake: Callable[[], object] = lambda: None) -> Database:
    return Database(Address(url, "QUERY_CONNECTION_STRING"), load("grove"), "public", encode, wake)


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from([0.0, 0.03, 0.08, 0.2])), min_size=2, max_size=5
    )
)
def test_no_migration_is_ever_a_deadlocks_victim(
    hasty: Cluster, database_factory: DatabaseFactory, migration: list[tuple[str, float]]
) -> None:
    """Whatever it does, to which tables, in which order, while we read them."""
    database = _shared(hasty, database_factory)
    reader = database_of(database.url)
    readers = Readers.of(reader)
    try:
        session = psycopg2.connect(database.url(), options="-c lock_timeout=5s")
        with session.cursor() as cursor:
            for statement, pause in migration:
                cursor.execute(statement)  # a DeadlockDetected or a LockNotAvailable fails the test
                time.sleep(pause)  # readers come and wait: here the time itself is the point
        session.rollback()
        session.close()
    finally:
        readers.stop()
        reader.close()
    assert readers.faults == []


COMMANDS: dict[str, Callable[[Site], Iterator[Finding]]] = {
    "check: statements": statements,
    "check: indexes": indexes,
    "check: reads": dependencies.reads,
    "check: ids": ids,
}


def meet_the_lock(readers: Readers, database: postgres.Database) -> None:
    """Return when one of them waits, or has given up, or does not read the table that is locked."""
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'pads-cdc' AND wait_event_type = 'Lock'"
    )
    enough = readers.reads + readers.gave_way + 2
    wait_until(lambda: readers.reads + readers.gave_way > enough or database.value(waits) > 0, "it waits")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_migration_is_a_deadlocks_victim_beside_a_command(
    hasty: Cluster, database_factory: DatabaseFactory, command: str
) -> None:
    """A migration that waits looks for deadlocks after 0.15 s, when a command that waits has just looked."""
    database = _shared(hasty, database_factory)
    first, *_, last = load("grove").reads
    for order in ((first, last), (last, first)):
        with site_of(database.url(), makes_views=True) as site:
            readers = Readers(lambda site=site: list(COMMANDS[command](site)))  # type: ignore[misc]
            try:
                wait_until(lambda: readers.reads > 0, "it has run")  # noqa: B023
                for _ in range(3):
                    with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
                        cursor.execute(f"LOCK TABLE {order[0]} IN ACCESS EXCLUSIVE MODE")
                        meet_the_lock(readers, database)
                        time.sleep(0.18)  # the time itself is the point
                        cursor.execute(f"LOCK TABLE {order[1]} IN ACCESS EXCLUSIVE MODE")
            finally:
                readers.stop()
        assert readers.faults == []


_DATABASES: dict[int, postgres.Database] = {}


def _shared(cluster: Cluster, database_factory: DatabaseFactory) -> postgres.Database:
    """Make the database once, whatever the number of examples."""
    if cluster.port not in _DATABASES:
        _DATABASES[cluster.port] = database_factory(cluster=cluster)
        fill(_DATABASES[cluster.port], 5_000, plans=2)
    return _DATABASES[cluster.port]


def test_whoever_queues_behind_a_migration_is_no_deadlocks_victim_either(database: postgres.Database) -> None:
    """With the production's deadlock_timeout, 1 s. A session looks for deadlocks after that time in a queue,
    so a reader that has only just begun must not complete one.
    """
    fill(database, 10)
    reader = database_of(database.url)
    queued = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND relation = 'portal_application_settings'::regclass"
        " AND application_name <> 'pads-cdc'"
    )
    behind = (
        "UPDATE portal_application_settings SET secret_key = 'v2'",
        "ALTER TABLE portal_application_settings ALTER secret_key SET DEFAULT 'none'",
    )
    readers = Readers.of(reader)
    try:
        for _ in range(3):
            with ThreadPoolExecutor() as pool, closing(psycopg2.connect(database.url())) as session:
                cursor = session.cursor()
                cursor.execute("ALTER TABLE portal_application_settings ADD COLUMN IF NOT EXISTS note TEXT")
                waiting = []
                for number, statement in enumerate(behind, 1):
                    waiting.append(pool.submit(database.execute, statement))
                    wait_until(lambda number=number: database.value(queued) == number, "it waits")  # type: ignore[misc]
                    if number == 1:
                        began = time.monotonic()
                time.sleep(began + 0.93 - time.monotonic())  # the time itself is the point
                cursor.execute("ALTER TABLE pay_plans ADD COLUMN IF NOT EXISTS note TEXT")
                time.sleep(0.2)  # the writer in the queue looks for deadlocks meanwhile
                session.commit()
                for one in waiting:
                    one.result(20)  # a DeadlockDetected fails the test
    finally:
        readers.stop()
        reader.close()
    assert readers.faults == []


def test_a_lock_is_waited_for_alone(database: postgres.Database) -> None:
    """A read that waits holds no table. It goes on as soon as it has the lock, or gives up after 0.4 s."""
    fill(database, 10)
    reader = database_of(database.url)
    with reader.read() as read:
        assert sum(map(len, read.chunks())) == 10
    holder = database.connect()
    holder.autocommit = False
    holder.cursor().execute("LOCK TABLE portal_applications IN ACCESS EXCLUSIVE MODE")
    began = time.monotonic()
    with pytest.raises(SourceError) as error:
        reader.read()
    assert error.value.reason == "locked"
    assert time.monotonic() - began > 0.4
    alone = (
        "SELECT count(*) FROM pg_locks AS waiting JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND application_name = 'pads-cdc' AND NOT EXISTS ("
        " SELECT FROM pg_locks AS held WHERE held.pid = waiting.pid AND granted AND relation >= 16384)"
    )
    readers = Readers.of(reader)
    try:
        wait_until(lambda: database.value(alone) > 0, "a read waits, and holds nothing")
        before = readers.reads
        holder.rollback()
        wait_until(lambda: readers.reads > before, "it reads")
    finally:
        readers.stop()
        reader.close()
    assert readers.faults == []


@pytest.mark.parametrize(
    "locking", ["LOCK TABLE more_plans IN ACCESS EXCLUSIVE MODE", "REINDEX INDEX pay_plans_pkey"]
)
def test_a_lock_of_a_partition_or_an_index_is_not_waited_for_while_others_are_held(
    database: postgres.Database, locking: str
) -> None:
    fill(database, 10)
    database.execute("CREATE TABLE more_plans () INHERITS (pay_plans)")
    holding = (
        "SELECT count(*) FROM pg_locks AS waiting JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND application_name = 'pads-cdc' AND EXISTS ("
        " SELECT FROM pg_locks AS held WHERE held.pid = waiting.pid AND granted AND relation >= 16384)"
    )
    with closing(database_of(database.url)) as reader, closing(database.connect()) as holder:
        all_read(reader)
        holder.autocommit = False
        holder.cursor().execute(locking)
        readers = Readers.of(reader)
        try:
            seen = [database.value(holding) for _ in iter(lambda: readers.gave_way < 20, False)]
            assert sum(map(bool, seen)) < len(seen) / 2, "some ask while it waits for 1 ms"
            holder.rollback()
            before = readers.reads
            wait_until(lambda: readers.reads > before, "it reads")
        finally:
            readers.stop()
    assert readers.faults == []


def test_a_lock_that_is_not_to_be_had_is_not_waited_for_while_others_are_held(
    database: postgres.Database,
) -> None:
    """With the production's deadlock_timeout, 1 s: the last table of our order first, then the first one."""
    fill(database, 10)
    reader = database_of(database.url)
    readers = Readers.of(reader)
    try:
        for _ in range(3):
            session = psycopg2.connect(database.url())
            with session.cursor() as cursor:
                cursor.execute("ALTER TABLE portal_application_settings ADD COLUMN note TEXT")
                before = readers.gave_way
                wait_until(lambda: readers.gave_way > before, "a reader has met the lock")  # noqa: B023
                began = time.monotonic()
                cursor.execute("ALTER TABLE pay_plans ADD COLUMN note TEXT")
                assert time.monotonic() - began < 0.9, "a reader's locks were waited for"
            session.rollback()
            session.close()
    finally:
        readers.stop()
        reader.close()
    assert readers.faults == []


@pytest.mark.parametrize("pooled", [False, True])
def test_a_read_that_lasts_gives_way_to_whoever_waits_for_its_locks(
    database: postgres.Database, pooler: PoolerFactory, pooled: bool
) -> None:
    """Also while nothing of it runs: its rows are still being applied."""
    fill(database, 3 * CHUNK)
    url = pooler(database, database.cluster.port) if pooled else database.url()
    reader = database_of(lambda: url)
    with watched(reader):
        read = reader.read()
        chunks = read.chunks()
        next(chunks)
        began = time.monotonic()
        database.execute("ALTER TABLE accounts ADD COLUMN note TEXT")
        assert time.monotonic() - began < 3
        with pytest.raises(SourceError, match="gets a lock") as error:
            for _ in chunks:
                pass
        assert error.value.reason == "gave_way"
        assert gives_way(error.value)
        with reader.read() as again:
            assert sum(map(len, again.chunks())) == 3 * CHUNK
    reader.close()


def test_check_gives_way_to_whoever_waits_for_its_locks(database: postgres.Database) -> None:
    """Its read of all rows lasts as long as there are rows: here until the migration is through."""
    fill(database, 3 * CHUNK)
    through = threading.Event()
    rows = 0

    def encode_slowly(row: tuple[Any, ...]) -> bytes:
        nonlocal rows
        rows += 1
        if rows == CHUNK + 1:
            reads.set()
            through.wait(20)
        return encode(row)

    reads = threading.Event()
    url = database.url()
    asked = Database(Address(lambda: url, "TEST"), load("grove"), "public", encode_slowly)
    with ThreadPoolExecutor(1) as other, closing(asked):
        census = other.submit(Census.take, asked, server_queries()["Blocked"])
        assert reads.wait(20)
        began = time.monotonic()
        database.execute("ALTER TABLE accounts ADD COLUMN note TEXT")
        waited = time.monotonic() - began
        through.set()
        assert census.result(20).endpoints == 3 * CHUNK
    assert waited < 3
    assert rows > 3 * CHUNK, "it was read again"


def test_a_statement_of_check_gives_way_too(database: postgres.Database) -> None:
    """It runs while it holds the locks; here for 20 s, but only at first."""
    fill(database, 10)
    reader = database_of(database.url)
    sleeps = iter([20, 0])

    def read() -> list[tuple[Any, ...]]:
        return reader.query_tables(
            f"SELECT pg_sleep({next(sleeps, 0)}) FROM (SELECT max(id) FROM public.accounts) AS one"
        )

    held = "SELECT count(*) FROM pg_locks WHERE relation = 'accounts'::regclass AND granted"
    with ThreadPoolExecutor(1) as other, closing(reader):
        done = other.submit(giving_way, reader, server_queries()["Blocked"], read)
        wait_until(lambda: database.value(held) > 0, "it holds the lock")
        began = time.monotonic()
        database.execute("ALTER TABLE accounts ADD COLUMN note TEXT")
        assert time.monotonic() - began < 3
        assert len(done.result(20)) == 1


def test_a_read_that_keeps_nobody_waiting_goes_on(database: postgres.Database) -> None:
    """Somebody waits, for somebody else's lock."""
    fill(database, 3 * CHUNK)
    database.execute("CREATE TABLE others ()")
    holder, waiter = database.connect(), database.connect()
    holder.autocommit = False
    holder.cursor().execute("LOCK TABLE others IN ACCESS SHARE MODE")

    def wait() -> None:
        with suppress(psycopg2.Error):
            waiter.cursor().execute("ALTER TABLE others ADD COLUMN note TEXT")

    waiting = threading.Thread(target=wait)
    waiting.start()
    reader = database_of(database.url)
    with watched(reader), reader.read() as read:
        found = 0
        for chunk in read.chunks():
            found += len(chunk)
            looked = reader.connections.age() + 0.8
            wait_until(lambda until=looked: reader.connections.age() > until, "another look")  # type: ignore[misc]
        assert found == 3 * CHUNK
    holder.rollback()
    waiting.join(30)
    reader.close()


@pytest.mark.soak
def test_a_standby_that_replays_a_migration_does_not_wait_for_our_reads(
    standby17: Replicated, database_factory: DatabaseFactory
) -> None:
    """It would wait for 30 s (max_standby_streaming_delay), and so would commits with remote_apply."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 3 * CHUNK)
    standby17.wait_replayed()
    standby17.primary.configure({"synchronous_standby_names": "walreceiver"})
    standby17.primary.reload()
    write = "SET synchronous_commit = remote_apply; UPDATE pay_plans SET throughput_limit = throughput_limit"
    reader = database_of(primary.on(standby17.standby).url)
    with watched(reader), repeated(primary.url(), write) as writer:
        chunks = reader.read().chunks()
        next(chunks)
        primary.execute("ALTER TABLE accounts ADD COLUMN note TEXT")
        began = time.monotonic()
        standby17.wait_replayed()
        assert time.monotonic() - began < 5
        writer.goes_on()
        with pytest.raises(SourceError):
            for _ in chunks:
                pass
    reader.close()


def test_an_index_that_is_built_beside_the_writers_does_not_wait_for_our_reads(
    database: postgres.Database,
) -> None:
    """It waits for every transaction that may still see the table without it."""
    fill(database, 3 * CHUNK)
    reader = database_of(database.url)
    with watched(reader):
        chunks = reader.read().chunks()
        next(chunks)
        began = time.monotonic()
        database.execute("CREATE INDEX CONCURRENTLY ON portal_applications (account_id)")
        assert time.monotonic() - began < 5
        with pytest.raises(SourceError):
            for _ in chunks:
                pass
    reader.close()


@pytest.mark.soak
def test_after_a_minute_it_counts_no_more_that_reads_were_ended(database: postgres.Database) -> None:
    fill(database, 3 * CHUNK)
    reader = database_of(database.url)
    with watched(reader) as watch:
        for number, rest in enumerate((0.0, 0.0, 61.0)):
            until = time.monotonic() + rest
            wait_until(lambda to=until: time.monotonic() >= to, "the minute", 90)  # type: ignore[misc]
            chunks = reader.read().chunks(100)
            next(chunks)
            began = time.monotonic()
            database.execute(f"ALTER TABLE accounts ALTER plan_type SET DEFAULT 'plan_{number}'")
            waited = time.monotonic() - began
            with suppress(PadsCdcError):
                for _ in chunks:
                    pass
        assert waited < 2
        assert watch._patience == 1.0, "one was ended since"
    reader.close()


@pytest.mark.slow
def test_reads_are_ended_later_and_later_and_never_after_more_than_some(
    database: postgres.Database,
) -> None:
    """Whoever migrates again and again would keep a long read from ever getting through."""
    fill(database, 3 * CHUNK)
    reader = database_of(database.url)
    ending = threading.Event()

    def read_slowly() -> None:
        while not ending.is_set():
            with suppress(PadsCdcError), reader.read() as read:
                for _ in read.chunks(100):
                    ending.wait(0.3)  # each chunk is being applied: 15 s in all

    thread = threading.Thread(target=read_slowly)
    held = "SELECT count(*) FROM pg_locks WHERE relation = 'accounts'::regclass AND granted"
    with watched(reader):
        thread.start()
        waits = []
        for number in range(5):
            wait_until(lambda: database.value(held) > 0, "it reads")
            began = time.monotonic()
            database.execute(f"ALTER TABLE accounts ALTER plan_type SET DEFAULT 'plan_{number}'")
            waits.append(time.monotonic() - began)
        ending.set()
    thread.join(30)
    assert waits[0] < 2, waits
    assert max(waits[2:]) > 2, waits
    assert max(waits) < 5, waits
    reader.close()


_HOLDER = """
import sys
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
database = Database(Address(lambda: sys.argv[1], "TEST"), load("grove"), "public", repr)
database.query_tables("SELECT pg_sleep(50) FROM (SELECT count(*) FROM public.accounts) AS rows")
"""


def test_a_statement_of_a_process_that_was_killed_ends(database: postgres.Database) -> None:
    """The server looks whether its client is still there: a lock is not held to the statement's end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, database.url()],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    held = "SELECT count(*) FROM pg_locks WHERE relation = 'accounts'::regclass AND granted"
    wait_until(lambda: database.value(held) > 0, "it holds the lock")
    process.kill()
    process.communicate()
    with repeated(database.url(), "UPDATE accounts SET plan_type = plan_type") as writer:
        began = time.monotonic()
        database.execute("ALTER TABLE accounts ADD COLUMN note TEXT")
        assert time.monotonic() - began < 5
        writer.goes_on()
