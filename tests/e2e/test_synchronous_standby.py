"""No commit waits for us: what happens where ``synchronous_standby_names`` would choose our wal sender.

The family is generated from the forms of the setting, the versions, what else streams WAL and which came
first, the way to the server, and whether the setting was there before we started.
"""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from server.commands.demo.programs import give_to_owner
from tests.e2e.test_losses import reasons, wait_healthy
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.cluster import ephemeral_standby

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory
    from tests.support.cluster import Cluster

CHANGE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"
LOGICAL = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary"
WAITING = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
LOCAL_CHANGE = f"SET synchronous_commit = local; {CHANGE}"
"""A change whose commit waits for no standby."""
LONGEST = 2.0
"""Seconds for which a commit waits on a busy machine. One that waited for us would wait for ever."""

METHODS = ("{}", "1 ({})", "FIRST 1 ({})", "FIRST 2 ({})", "ANY 1 ({})", "ANY 2 ({})")
LISTS = ("*", '"pads-cdc"', '"PADS-cdc", walreceiver', 'walreceiver, "pads-cdc"', 'nobody, "pads-cdc", *')
"""Together they are the values that choose a sender of our name. The test of `chosen` in
``tests/cdc/replication`` holds names of any kind against Postgres itself.
"""
OTHERS = ("", "walreceiver", 'FIRST 1 (walreceiver, "pads cdc")', 'ANY 1 ("pads-cdc ", walreceiver, pads)')
"""Values that do not."""


class Case(NamedTuple):
    """A member of the family."""

    version: str
    when: str
    """Whether the setting is there ``before`` the server starts, or comes ``while`` it streams."""
    beside: str
    """What else streams WAL: ``nobody``; a standby that came ``after`` us or ``first``; an ``archiver``
    (pg_receivewal) that came first. Of senders of the same priority Postgres takes the one that came first.
    """
    way: str
    """``direct``; ``queries`` or everything by a ``pooler``; or as ``walreceiver``, like the standby."""
    names: tuple[str, ...]
    """Values that choose us."""

    @property
    def standby(self) -> bool:
        return self.beside in {"after", "first"}

    def satisfied(self, names: str) -> bool:
        """Return whether the standby that is there suffices, so that commits go on without us."""
        return not names or (self.standby and " 2 " not in names and ("*" in names or "walreceiver" in names))


def cases() -> Iterator[Case]:
    """Yield the whole family. A case has one of the methods; each version meets each of them, with several
    neighbours and ways.
    """
    for turn, version in enumerate(("15", "17", "18")):
        for when, besides in (
            ("while", ("nobody", "after", "first", "archiver")),
            ("before", ("nobody", "first", "archiver")),
        ):
            ways = ("direct", "queries", "pooler", "walreceiver")
            for (row, beside), (column, way) in product(enumerate(besides), enumerate(ways)):
                own = "walreceiver" if way == "walreceiver" else "pads-cdc"
                method = METHODS[(row + column + 2 * turn) % len(METHODS)]
                names = tuple(method.format(one) for one in LISTS if "*" in one or own in one.lower())
                yield Case(version, when, beside, way, names)


QUICK = (
    Case("15", "while", "after", "queries", ("*", 'ANY 1 ("PADS-cdc", walreceiver)')),
    Case("17", "while", "first", "direct", ("FIRST 1 (*)",)),
)


class Writer:
    """Somebody who commits to a table that is none of ours, one row after the other."""

    def __init__(self, database: Database) -> None:
        database.execute("CREATE TABLE IF NOT EXISTS others (number INT)")
        self._session = database.connect()
        self._ending = threading.Event()
        self.longest = 0.0
        """Seconds of the longest commit."""
        self.commits = 0
        self.local = False
        """Whether its commits wait for no standby; see `go`."""
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        with self._session.cursor() as cursor:
            while not self._ending.wait(0.002):
                began = time.monotonic()
                cursor.execute(
                    "SET synchronous_commit = %s; INSERT INTO others VALUES (1)",
                    ("local" if self.local else "on",),
                )
                self.longest = max(self.longest, time.monotonic() - began)
                self.commits += 1

    def go(self, *, local: bool) -> None:
        """Return when all commits that began otherwise are over."""
        self.local = local
        self.wait_commits(2)

    def wait_commits(self, number: int) -> None:
        before = self.commits
        wait_until(lambda: self.commits >= before + number, "the writer goes on", 5)

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a commit hangs"


@contextmanager
def writing(database: Database) -> Iterator[Writer]:
    writer = Writer(database)
    try:
        yield writer
    finally:
        writer.stop()


def choose(cluster: Cluster, names: str) -> None:
    cluster.configure({"synchronous_standby_names": names})
    cluster.reload()


def polls(server: Server) -> bool:
    return server.metric("pads_cdc_source_mode", mode="polling") == 1


def wait_streaming(server: Server) -> None:
    wait_until(lambda: server.metric("pads_cdc_source_connected") == 1, "it streams")


class Neighbours:
    """A database with a writer, and what streams its WAL beside us."""

    def __init__(self, case: Case, database: Database, writer: Writer, ending: ExitStack) -> None:
        self.case, self.database, self.writer = case, database, writer
        self._ending = ending

    def come(self) -> None:
        if self.case.standby:
            self._ending.enter_context(ephemeral_standby(self.database.cluster))
        elif self.case.beside == "archiver":
            archive(self.database, self._ending)

    def use(self, names: str) -> None:
        """Set the names. The writer waits for standbys unless they are too few without us."""
        suffices = self.case.satisfied(names)
        if not suffices:
            self.writer.go(local=True)
        choose(self.database.cluster, names)
        shown = "SHOW synchronous_standby_names"
        wait_until(lambda: self.database.value(shown) == names, "the setting is in force")
        self.writer.go(local=not suffices)

    @contextmanager
    def unconfirmed(self) -> Iterator[None]:
        """Check that a commit waits all the time where the standbys are too few: we confirm none."""
        if not self.writer.local:
            yield
            return
        waits = threading.Thread(target=self.database.execute, args=("INSERT INTO others VALUES (2)",))
        waits.start()
        wait_until(lambda: self.database.value(f"SELECT count(*) {WAITING}") == 1, "a commit waits", 10)
        yield
        assert self.database.value(f"SELECT count(pg_cancel_backend(pid)) {WAITING}") == 1, (
            "a commit is confirmed, and no standby has it"
        )
        waits.join(30)
        assert not waits.is_alive()

    def follows(self, client: Gateway) -> None:
        self.database.execute(LOCAL_CHANGE)
        wait_equal(client, self.database)
        self.writer.wait_commits(2)


def archive(database: Database, ending: ExitStack) -> None:
    """Start pg_receivewal, which streams WAL and never counts as a synchronous standby."""
    cluster = database.cluster
    folder = cluster.folder / "archive"
    folder.mkdir()
    give_to_owner(folder)
    receiving = subprocess.Popen(
        cluster.programs.command("pg_receivewal", "-D", str(folder), "-d", cluster.url()),
        stderr=subprocess.DEVNULL,
        cwd=cluster.folder,
    )
    ending.callback(receiving.wait, 30)
    ending.callback(receiving.terminate)
    there = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'"
    wait_until(lambda: database.value(there) == 1, "the archiver streams")


@pytest.fixture
def start(serve: ServerFactory, pooler: PoolerFactory) -> Callable[[Case, Database], Server]:
    """Starts a server that goes to the database by the way of the case."""
    settings: dict[str, str] = {}

    def start(case: Case, database: Database) -> Server:
        port = database.cluster.port
        if not settings:
            match case.way:
                case "queries":
                    settings["QUERY_CONNECTION_STRING"] = pooler(database, port)
                case "pooler":
                    settings["POSTGRES_CONNECTION_STRING"] = pooler(database, port, replication=True)
                case "walreceiver":
                    url = f"{database.url()}?application_name=walreceiver"
                    settings["POSTGRES_CONNECTION_STRING"] = url
        return serve(database, **settings)

    return start


@pytest.fixture
def neighbours(
    request: pytest.FixtureRequest, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> Iterator[Neighbours]:
    case: Case = request.param
    database = database_factory(cluster=cluster_factory(programs=fetched(case.version)))
    fill(database, 100)
    with ExitStack() as ending:
        writer = ending.enter_context(writing(database))
        try:
            yield Neighbours(case, database, writer, ending)
        finally:
            choose(database.cluster, "")  # or the writer waits for a standby that has ended


def family(when: str) -> pytest.MarkDecorator:
    """Return the members of the family to be run: a few, and in `make test-all` all of them."""
    members = [
        pytest.param(case, marks=marks, id="-".join((*prefix, *case[:4])))
        for chosen, prefix, marks in (
            (QUICK, ("some",), [pytest.mark.slow]),
            (cases(), (), [pytest.mark.soak, pytest.mark.timeout(600)]),
        )
        for case in chosen
        if case.when == when
    ]
    return pytest.mark.parametrize("neighbours", members, indirect=True)


@family("while")
def test_no_commit_ever_waits_for_us(
    neighbours: Neighbours, start: Callable[[Case, Database], Server], gateway: GatewayFactory
) -> None:
    case, database, writer = neighbours.case, neighbours.database, neighbours.writer
    if case.beside != "after":
        neighbours.come()
    server = start(case, database)
    client = gateway(server.wait_ready())
    wait_streaming(server)
    if case.beside == "after":
        neighbours.come()
    others = cycle(OTHERS if case.way != "walreceiver" else ("", "nobody"))
    for names in case.names:
        neighbours.use(names)
        wait_until(lambda: "synchronous_standby" in reasons(server), "it says so", 10)
        wait_until(lambda: polls(server), "it polls")
        wait_until(lambda: database.value(f"{LOGICAL} AND active") == 0, "nobody reads the slot")
        with neighbours.unconfirmed():
            neighbours.follows(client)
        neighbours.use(next(others))
        wait_streaming(server)
        with neighbours.unconfirmed():
            neighbours.follows(client)
        assert "synchronous_standby" not in reasons(server)
    assert writer.longest < LONGEST
    assert server.metric("pads_cdc_audit_drift_total") == 0


@family("before")
def test_no_commit_waits_for_a_server_that_starts_where_it_would_be_chosen(
    neighbours: Neighbours, start: Callable[[Case, Database], Server], gateway: GatewayFactory
) -> None:
    """At first there is no slot, and none is made; later there is one, and it is not read."""
    case, database, writer = neighbours.case, neighbours.database, neighbours.writer
    neighbours.come()
    for made, names in enumerate(case.names):
        neighbours.use(names)
        with neighbours.unconfirmed():
            server = start(case, database).wait_ready()
            client = gateway(server)
            assert "synchronous_standby" in reasons(server)
            assert database.value(LOGICAL) == (1 if made else 0)
            wait_until(lambda: database.value(f"{LOGICAL} AND active") == 0, "nobody reads the slot")
            neighbours.follows(client)
        if not made:
            neighbours.use("")
            wait_streaming(server)
            neighbours.follows(client)
        client.stop()
        assert server.stop() == 0
    assert writer.longest < LONGEST


@pytest.mark.own_cluster
def test_it_starts_where_it_would_be_chosen_and_check_says_what_to_type(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Without a slot, since one that nobody may read would only hold back WAL."""
    fill(database, 100)
    with ephemeral_standby(database.cluster):
        choose(database.cluster, "*")
        server = serve(database).wait_ready()
        assert "synchronous_standby" in reasons(server)
        assert "name the physical standbys in it" in server.get("/healthz")[1]
        assert database.value(LOGICAL) == 0
        client = gateway(server)
        database.execute(CHANGE)
        wait_equal(client, database)
        report = pads_cdc("check", POSTGRES_CONNECTION_STRING=database.url())
        assert report.returncode == 1
        assert "name the physical standbys in it" in report.stdout
        choose(database.cluster, "walreceiver")
        wait_healthy(server)
        assert database.value(LOGICAL) == 1
        assert "synchronous_standby_names" not in report.stderr
        database.execute(CHANGE)
        wait_equal(client, database)


@pytest.mark.own_cluster
def test_a_cluster_that_waits_for_us_alone_is_told_so(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """There is nobody else of that name: commits wait until the setting is right, as without us."""
    fill(database, 100)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    choose(database.cluster, '"pads-cdc"')
    wait_until(lambda: "synchronous_standby" in reasons(server), "it says so")
    waits = threading.Thread(target=database.execute, args=(CHANGE,))
    waits.start()
    wait_until(lambda: database.value(f"SELECT count(*) {WAITING}") == 1, "a commit waits")
    choose(database.cluster, "")
    waits.join(30)
    wait_equal(client, database)
    wait_healthy(server)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.own_cluster
def test_a_commit_under_a_setting_that_we_have_not_seen_yet_is_never_released(
    database: Database, serve: ServerFactory, rounds: int
) -> None:
    """Nor one that waits for another standby already: its position was confirmed before.

    The setting goes from a standby that is not there to all: from no standby at all, Postgres itself may let
    the first commit go, before its checkpointer has seen the setting.
    """
    fill(database, 10)
    database.execute("CREATE TABLE others (number INT)")
    server = serve(database).wait_ready()
    levels = cycle(("on", "remote_write", "remote_apply"))
    reached = f"{LOGICAL} AND confirmed_flush_lsn >= %s"
    with closing(database.connect()) as one, closing(database.connect()) as two:
        for level in islice(levels, rounds):
            wait_healthy(server)
            wait_streaming(server)
            for session in (one, two):
                session.cursor().execute(f"SET synchronous_commit = {level}")
            try:
                choose(database.cluster, "nobody")
                commits = [waiting_commit(database, one)]
                end = database.value("SELECT pg_current_wal_lsn()")
                wait_until(partial(finds, database, reached, end), "its position is confirmed")
                choose(database.cluster, "*")
                while setting(two) != "*":
                    pass
                commits.append(commit(two))
                wait_until(lambda: "synchronous_standby" in reasons(server), "it says so")
                wait_until(lambda: database.value(f"{LOGICAL} AND active") == 0, "nobody reads the slot")
                alive = [each.is_alive() for each in commits]
                assert alive == [True, True], "we have released a commit that no standby has"
                assert database.value(f"SELECT count(*) {WAITING}") == 2
            finally:
                choose(database.cluster, "")
            for each in commits:
                each.join(30)
                assert not each.is_alive()


def finds(database: Database, query: str, value: str) -> bool:
    return bool(database.value(query, (value,)))


def setting(session: Connection) -> str:
    with session.cursor() as cursor:
        cursor.execute("SHOW synchronous_standby_names")
        [(names,)] = cursor.fetchall()
    return str(names)


def commit(session: Connection) -> threading.Thread:
    insert = "INSERT INTO others VALUES (1)"
    thread = threading.Thread(target=session.cursor().execute, args=(insert,), daemon=True)
    thread.start()
    return thread


def waiting_commit(database: Database, session: Connection) -> threading.Thread:
    """Return a commit that waits for a standby. Others may go first, before the setting is in force."""
    while True:
        thread = commit(session)
        while thread.is_alive():
            if database.value(f"SELECT count(*) {WAITING}") == 1:
                return thread


@pytest.mark.own_cluster
def test_a_slot_that_must_not_be_read_does_not_fill_the_disk(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    fill(database, 100)
    with ephemeral_standby(database.cluster):
        server = serve(database, MAX_RETAINED_WAL="8MB").wait_ready()
        client = gateway(server)
        wait_healthy(server)
        choose(database.cluster, "*")
        wait_until(lambda: "synchronous_standby" in reasons(server), "it says so")
        assert database.value(LOGICAL) == 1
        database.execute(
            "CREATE TABLE bulk AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g"
        )
        wait_until(lambda: database.value(LOGICAL) == 0, "the slot is dropped")
        assert (
            "MAX_RETAINED_WAL" in server.wait_log("source lost, reconnecting", reason="slot_lost")["message"]
        )
        database.execute(CHANGE)
        wait_equal(client, database)
        choose(database.cluster, "")
        wait_healthy(server)
        database.execute(CHANGE)
        wait_equal(client, database)
        assert server.metric("pads_cdc_audit_drift_total") == 0
