"""The common parts of all benchmarks: a cluster for each run, a database for each benchmark, and servers."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg2

from bench.portal import Portal
from bench.served import Served
from cdc.replication import wal2json
from server.commands.demo.cluster import ephemeral_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from bench.sizes import Sizes
    from server.commands.demo.cluster import Cluster

_Value = TypeVar("_Value")

DEADLINE: Final = 300.0
"""Seconds after which a missing result is an error."""
PLAN: Final = "plan"
"""The plan whose ripple is measured."""

_SETTINGS: Final = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    # Autovacuum and checkpoints at random times would slow down only one contender. New tables are vacuumed.
    "autovacuum": "off",
    "max_connections": "200",
}
_QUIET: Final = {"AUDIT_INTERVAL": "1h"}
"""Settings that prevent audits, which would distort the measurements. `bench.idle` measures audits."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database that belongs to one benchmark."""

    cluster: Cluster
    name: str
    portal: Portal
    _closing: ExitStack = field(repr=False)

    @property
    def url(self) -> str:
        """The connection string. It contains a password, so do not print it."""
        return self.cluster.url(self.name)

    def connect(self) -> connection:
        """Open a session in autocommit, which ends with the database."""
        session = self._closing.enter_context(closing(psycopg2.connect(self.url)))
        session.autocommit = True
        return session

    def execute(self, statement: str, arguments: Any = None) -> None:
        """Run statements in a new session."""
        with closing(psycopg2.connect(self.url)) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(statement, arguments)

    def value(self, query: str, arguments: Any = None) -> Any:
        """Return the single value of a query."""
        with closing(psycopg2.connect(self.url)) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(query, arguments)
            [[value]] = cursor.fetchall()
            return value

    def wal_end(self) -> str:
        """Return the LSN up to which WAL is flushed."""
        return str(self.value("SELECT pg_current_wal_flush_lsn()"))

    @contextmanager
    def slot(self, name: str, plugin: str = wal2json.NAME) -> Iterator[str]:
        """Create a slot like that of the server."""
        self.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (name, plugin))
        try:
            yield name
        finally:
            self.drop_slots(name)

    def drop_slots(self, name: str = "") -> None:
        """Drop a slot, or all slots of the database, after their readers have gone."""
        chosen = "FROM pg_replication_slots WHERE database = current_database() AND %s IN ('', slot_name)"
        # A reader may have ended only just now, and Postgres may not have detected it yet.
        held = f"SELECT count(*) {chosen} AND active"
        wait_until(lambda: self.value(held, (name,)) == 0, "nobody reads the slots")
        self.execute(f"SELECT pg_drop_replication_slot(slot_name) {chosen}", (name,))


class Rig:
    """One run's cluster with its databases. ``say`` reports progress."""

    def __init__(self, cluster: Cluster, folder: Path, sizes: Sizes, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.sizes = sizes
        self.say = say
        self._folder = folder
        self._templates: dict[int, tuple[str, Portal]] = {}

    @contextmanager
    def database(self, endpoints: int) -> Iterator[Database]:
        """Create a new portal with this number of endpoints. The first portal of each size takes longer."""
        template, portal = self._template(endpoints)
        name = f"bench_{next(_numbers)}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        with ExitStack() as sessions:
            database = Database(self.cluster, name, portal, sessions)
            yield database
            database.drop_slots()
        self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def serve(self, database: Database, *, wait: bool = True, **settings: str) -> Iterator[Served]:
        """Run a server until the context ends. It has its own state file, unless ``settings`` name one.

        Returns when the server is ready or, without ``wait``, when it listens.
        """
        folder = self._folder / f"server_{next(_numbers)}"
        folder.mkdir()
        self.say("our server starts")
        source = {"POSTGRES_CONNECTION_STRING": database.url, "STATE_FILE": str(folder / "state")}
        with Served("serve", folder, _QUIET | source | settings) as served:
            if wait:
                served.wait_ready(DEADLINE)
            else:
                wait_until(served.listens, "the server listens")
            yield served

    @contextmanager
    def relay(self, **settings: str) -> Iterator[Served]:
        """Run a relay; return when it is ready."""
        folder = self._folder / f"relay_{next(_numbers)}"
        folder.mkdir()
        self.say("a relay starts")
        with Served("relay", folder, settings) as served:
            served.wait_ready(DEADLINE)
            yield served

    @contextmanager
    def authorize(self, feed: str, *, wait: bool = True) -> Iterator[Served]:
        """Run an authorizer; return when it is ready or, without ``wait``, when it listens."""
        self.say("an authorizer starts")
        with Served("authorize", self.folder("authorizer"), {"FEED_ADDRESSES": feed}) as served:
            if wait:
                served.wait_ready(DEADLINE)
            else:
                wait_until(served.listens, "the authorizer listens")
            yield served

    def folder(self, name: str) -> Path:
        """Create a folder that is removed after the run."""
        made = self._folder / f"{name}_{next(_numbers)}"
        made.mkdir()
        return made

    @contextmanager
    def broker(self) -> Iterator[str]:
        """Run a NATS server with JetStream; return its address."""
        folder = self._folder / f"nats_{next(_numbers)}"
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        config = folder / "nats.conf"
        config.write_text(f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {folder} }}\n")
        program = Path(sys.executable).with_name("nats-server")
        command = ["setpriv", "--pdeathsig", "TERM", str(program), "-c", str(config)]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,  # noqa: S603 (all of it is ours)
        ):
            try:
                wait_until(lambda: _listens(port), "the broker listens")
                yield f"nats://127.0.0.1:{port}"
            finally:
                process.terminate()

    def state_file(self) -> Path:
        """Return a path for a new state file."""
        return self._folder / f"state_{next(_numbers)}"

    def version(self) -> str:
        """Return PostgreSQL's version."""
        return str(self._administer("SELECT split_part(current_setting('server_version'), ' ', 1)")[0][0])

    def _template(self, endpoints: int) -> tuple[str, Portal]:
        if endpoints not in self._templates:
            self.say(f"making {endpoints:,} endpoints")
            plans = {PLAN: self.sizes.plan} | {f"plan_{count}": count for count in self.sizes.ripples}
            if endpoints < self.sizes.small:
                plans = {}
            elif endpoints < self.sizes.endpoints:
                plans = {PLAN: self.sizes.plan}
            portal, name = Portal(endpoints, plans), f"portal_{endpoints}"
            self._administer(f"CREATE DATABASE {name}")
            with closing(psycopg2.connect(self.cluster.url(name))) as session:
                session.autocommit = True
                portal.fill(session)
            self._templates[endpoints] = name, portal
        return self._templates[endpoints]

    def _administer(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.cluster.url())) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def rig(sizes: Sizes, folder: Path, say: Callable[[str], None]) -> Iterator[Rig]:
    """Run the cluster of a run until the context ends."""
    with ephemeral_cluster(_SETTINGS) as cluster:
        yield Rig(cluster, folder, sizes, say)


def wait_until(
    condition: Callable[[], _Value], what: str, *, every: float = 0.005, deadline: float = DEADLINE
) -> _Value:
    """Return the condition's first true value. It is evaluated every ``every`` seconds.

    Raises:
        TimeoutError: the condition did not become true.

    """
    until = time.monotonic() + deadline
    waiting = threading.Event()
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {deadline:.0f} s: {what}")
        waiting.wait(every)
    return value


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
