"""Real databases for the tests: each test clones its own from a template that holds a mapping's schema.

The session shares one cluster. A test that needs settings of its own, or restarts, crashes or freezes the
server, takes one from ``cluster_factory``: what it does to that meets nobody else.
"""

from __future__ import annotations

import itertools
import secrets
import subprocess
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier, Literal

from cdc.checks import Site
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as Queried
from cdc.replication import pgoutput, wal2json
from cdc.replication.publication_plan import repairs
from server.commands.demo.programs import Programs
from server.payload import encode
from tests.support import ON_DEBIAN, ROOT
from tests.support.cluster import ephemeral_cluster, ephemeral_standby

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg2.extensions import connection, cursor
    from psycopg2.sql import Composed

    from cdc.mapping.mapping import Mapping as MappingFolder
    from tests.support.cluster import Cluster

    Arguments = Sequence[Any] | Mapping[str, Any]

_OPTIONAL = {"18"}
NOT_TO_BE_HAD = 3
"""What scripts/fetch-postgres and scripts/fetch-pgbouncer exit with where the mirror lacks a version."""
DEADLINE = 30
"""Seconds after which a condition that should come soon counts as never."""

_numbers = itertools.count(1)


class Role(NamedTuple):
    """A role that may log in."""

    name: str
    password: str


@dataclass(frozen=True)
class Database:
    """One test's database. Its connections are in autocommit and are closed when the test ends."""

    cluster: Cluster
    name: str
    plugin: str
    """The one that its slots are to be read with."""
    mapping: str
    _closing: ExitStack = field(repr=False)

    def url(self, user: str = "postgres", password: str | None = None) -> str:
        """Return a connection string, by default the superuser's."""
        return self.cluster.url(self.name, user, password)

    def connect(self, user: str = "postgres", password: str | None = None) -> connection:
        """Open another session."""
        return self._closing.enter_context(closing(_connect(self.url(user, password))))

    def execute(self, statement: str, arguments: Arguments | None = None) -> None:
        """Run one or more statements in a session of their own; several together are one transaction."""
        with closing(_connect(self.url())) as session, session.cursor() as cursor:
            cursor.execute(statement, arguments)

    def set_up(self, mapping: MappingFolder, role: str | None = None, schema: str = "public") -> None:
        """Run the mapping's setup.sql, in one session, as an administrator would."""
        with closing(_connect(self.url())) as session, session.cursor() as cursor:
            for statement in mapping.setup_statements(schema, role):
                cursor.execute(statement)

    def rows(self, query: str, arguments: Arguments | None = None) -> list[tuple[Any, ...]]:
        """Return what one query finds, in a session of its own."""
        with closing(_connect(self.url())) as session, session.cursor() as cursor:
            cursor.execute(query, arguments)
            return cursor.fetchall()

    def value(self, query: str, arguments: Arguments | None = None) -> Any:
        """Return the single value that one query finds."""
        [[value]] = self.rows(query, arguments)
        return value

    def create_role(self, options: str = "") -> Role:
        """Create a role with LOGIN and ``options``; it ends with the database."""
        role = Role(f"{self.name}_role_{next(_numbers)}", secrets.token_urlsafe(16))
        create = SQL("CREATE ROLE {} LOGIN PASSWORD {} ").format(
            Identifier(role.name), Literal(role.password)
        )
        _administer(self.cluster, create + SQL(options))
        return role

    def publish(self, schema: str = "public", mapping: str | None = None) -> None:
        """Bring the publication up to the tables as they are, as `setup` would; with wal2json there is none.
        ``mapping`` is another one than the database was made for.

        Replica identities that a test chooses have to be covered, or Postgres takes no updates any more.
        """
        if self.plugin == pgoutput.NAME:
            publish(self.url(), mapping or self.mapping, schema)

    def unpublish(self) -> None:
        """Drop the publication."""
        self.execute("DROP PUBLICATION IF EXISTS pads_cdc")

    def on(self, cluster: Cluster) -> Database:
        """Return the same database as another server of the same history has it, such as a standby."""
        return replace(self, cluster=cluster)


class ClusterFactory(Protocol):
    """Makes a cluster that ends with the test."""

    def __call__(
        self, settings: Mapping[str, str] | None = None, *, programs: Programs | None = None
    ) -> Cluster: ...


class DatabaseFactory(Protocol):
    """Makes a database with a mapping's schema, by default in the session's cluster; ends with the test."""

    def __call__(self, mapping: str = "grove", *, cluster: Cluster | None = None) -> Database: ...


@dataclass(frozen=True)
class Replicated:
    """A primary and its streaming standby."""

    primary: Cluster
    standby: Cluster

    def wait_replayed(self) -> None:
        """Return when the standby has replayed what the primary has written until now."""
        with (
            closing(_connect(self.primary.url())) as primary,
            closing(_connect(self.standby.url())) as standby,
            primary.cursor() as ask_primary,
            standby.cursor() as ask_standby,
        ):
            ask_primary.execute("SELECT pg_current_wal_lsn()")
            [end] = ask_primary.fetchall()
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                ask_standby.execute("SELECT pg_last_wal_replay_lsn() >= %s", end)
                if ask_standby.fetchall() == [(True,)]:
                    return
                time.sleep(0.01)
        raise AssertionError(f"the standby has not replayed {end[0]} within {DEADLINE} s")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The session's cluster: do not restart it, and change no settings."""
    with ephemeral_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_factory() -> Iterator[ClusterFactory]:
    """Clusters of a test's own."""
    with ExitStack() as clusters:

        def make(settings: Mapping[str, str] | None = None, *, programs: Programs | None = None) -> Cluster:
            return clusters.enter_context(ephemeral_cluster(settings, programs=programs))

        yield make


@pytest.fixture
def database_factory(request: pytest.FixtureRequest, plugin: str) -> Iterator[DatabaseFactory]:
    """Databases of a test's own; slots and prepared transactions that they leave behind are removed."""
    with ExitStack() as databases:

        def make(mapping: str = "grove", *, cluster: Cluster | None = None) -> Database:
            if cluster is not None:  # it ends as a whole, and may be down by then
                return _clone(databases, cluster, mapping, plugin)
            return make_database(databases, request.getfixturevalue("cluster"), mapping, plugin)

        yield make


def make_database(ending: ExitStack, cluster: Cluster, mapping: str, plugin: str = wal2json.NAME) -> Database:
    """Make a database that ends with the context."""
    database = _clone(ending, cluster, mapping, plugin)
    ending.callback(drop_database, database)
    return database


def _clone(ending: ExitStack, cluster: Cluster, mapping: str, plugin: str) -> Database:
    database = Database(cluster, f"test_{next(_numbers)}", plugin, mapping, ending)
    template = _ensure_template(cluster, mapping, plugin)
    clone = SQL("CREATE DATABASE {} TEMPLATE {}")
    _administer(cluster, clone.format(Identifier(database.name), Identifier(template)))
    return database


@pytest.fixture
def database(
    request: pytest.FixtureRequest, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> Database:
    """One database with the schema of the mapping ``grove``, its tables empty. It is in the session's
    cluster, or with the mark ``own_cluster`` in a cluster that no other test uses.
    """
    own = request.node.get_closest_marker("own_cluster") is not None
    return database_factory(cluster=cluster_factory() if own else None)


@cache
def fetched(version: str) -> Programs:
    """Return PostgreSQL 17 or 18 with wal2json, fetched beside the system's; a failure is no skip, except
    that a mirror may not have the newest, and that of another distribution none.
    """
    fetch = subprocess.run(
        [ROOT / "scripts/fetch-postgres", version], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if fetch.returncode == NOT_TO_BE_HAD and (version in _OPTIONAL or not ON_DEBIAN):
        pytest.skip(fetch.stderr.strip().splitlines()[-1])
    if fetch.returncode != 0:
        pytest.fail(f"scripts/fetch-postgres {version}: {fetch.stderr.strip()}")
    return Programs(Path(fetch.stdout.strip()))


@pytest.fixture(scope="session")
def programs17() -> Programs:
    """PostgreSQL 17: the oldest that decodes on a standby."""
    return fetched("17")


@pytest.fixture
def standby17(cluster_factory: ClusterFactory) -> Iterator[Replicated]:
    """A primary of PostgreSQL 17 and a standby of it, on which slots can be read."""
    primary = cluster_factory(programs=fetched("17"))
    with ephemeral_standby(primary) as standby:
        yield Replicated(primary, standby)


@pytest.fixture(params=["17", "18"])
def replicated(request: pytest.FixtureRequest, cluster_factory: ClusterFactory) -> Iterator[Replicated]:
    """A primary and a standby of it, on which slots can be read, of each version that does that and that we
    can have.
    """
    primary = cluster_factory(programs=fetched(request.param))
    with ephemeral_standby(primary) as standby:
        yield Replicated(primary, standby)


def drop_database(database: Database) -> None:
    """Drop the database with what would keep it (prepared transactions, slots, sessions) and its roles."""
    cluster, name = database.cluster, database.name
    for (gid,) in database.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        database.execute("ROLLBACK PREPARED %s", (gid,))
    with closing(_connect(cluster.url())) as session, session.cursor() as cursor:
        # A reader that a test has left behind would otherwise be back before its slot is dropped. One whose
        # session had begun before this may still create a slot, at any time until the database is gone.
        cursor.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(name)))
        deadline = time.monotonic() + DEADLINE
        while not _drop_with_slots(cursor, name):
            if time.monotonic() > deadline:
                raise AssertionError(f"the slots of {name} stay in use")
            time.sleep(0.01)
        cursor.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", (f"{name}_role_",))
        for (role,) in cursor.fetchall():
            cursor.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def _connect(url: str) -> connection:
    """Open a session in which nothing waits for ever: libpq lets no test's timeout through."""
    session = psycopg2.connect(url, options=f"-c statement_timeout={DEADLINE}s")
    session.autocommit = True
    return session


def _administer(cluster: Cluster, statement: Composed) -> None:
    """Run a statement about a whole database or role, such as cannot be run inside that database."""
    with closing(_connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute(statement)


def _ensure_template(cluster: Cluster, mapping: str, plugin: str) -> str:
    """Return the name of the database with the mapping's schema, made at the first use in this cluster."""
    folder = ROOT / "sql" / mapping
    template = f"template_{folder.name}_{plugin}"
    with closing(_connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", (template,))
        if cursor.fetchone() is not None:
            return template
        cursor.execute(SQL("CREATE DATABASE {}").format(Identifier(template)))
    with closing(_connect(cluster.url(template))) as session, session.cursor() as cursor:
        cursor.execute(load(mapping).schema)
    if plugin == pgoutput.NAME:
        publish(cluster.url(template), mapping)
    return template


@contextmanager
def site_of(
    url: str,
    mapping: str = "grove",
    schema: str = "public",
    publication: str = "pads_cdc",
    *,
    makes_views: bool = False,
) -> Iterator[Site]:
    """Return what the checks ask about a database. It remembers its answers."""
    address = Address(lambda: url, "POSTGRES_CONNECTION_STRING")
    with closing(Queried(address, load(mapping), schema, encode)) as queried:
        yield Site(
            source=address,
            database=queried,
            queries=server_queries(),
            schema=schema,
            slot_name="pads_cdc",
            publication_name=publication,
            makes_views=makes_views,
        )


def publish(url: str, mapping: str = "grove", schema: str = "public", publication: str = "pads_cdc") -> None:
    """Make the publication that pgoutput needs, or mend it."""
    with site_of(url, mapping, schema, publication) as site:
        planned = repairs(publication, site.publication, site.tables, site.database.mapping)
    with closing(_connect(url)) as session, session.cursor() as cursor:
        for repair in planned:
            if not repair.by_hand:
                cursor.execute(repair.remedy.replace("%", "%%"), ())


def _drop_with_slots(cursor: cursor, database: str) -> bool:
    """Drop the slots that nobody reads and end the readers of the others, then the database; tells whether
    it is gone.
    """
    try:
        cursor.execute(
            """
            SELECT CASE
                WHEN active_pid IS NULL THEN pg_drop_replication_slot(slot_name) IS NULL
                ELSE pg_terminate_backend(active_pid)
            END
            FROM pg_replication_slots
            WHERE database = %s
            """,
            (database,),
        )
        cursor.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(database)))
    except (psycopg2.errors.ObjectInUse, psycopg2.errors.UndefinedObject):
        return False  # a slot is in use, or came or went meanwhile
    return True
