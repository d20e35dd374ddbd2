"""Re-queries: reads of the mapping that say what they have seen.

A read is one READ COMMITTED transaction of three statements. The first asks which server this is and how far
it has replayed, the second locks the tables and their partitions, both *before* the third takes its snapshot:
one statement (a cursor) that returns the snapshot with the rows. All and the first rows come in one round
trip. A later promotion, another server behind a pooler,
or an older standby show in the evidence; nothing about the server is remembered from the last time.

Nothing relies on the session: settings are local to the transaction, so a pooler in transaction mode is fine.

Migrations go first. While a read waits for one lock it may hold others. A migration that holds the one and
waits for the others would be the deadlock's victim: a server looks for a cycle only once, after somebody has
waited for ``deadlock_timeout``. So a read waits for its locks for half of that in all, lets go of everything,
and comes back. A read that runs while somebody waits for its locks is ended (`cdc.postgres.lock_watch`), and
one whose reader is frozen or cut off is ended by the server (`_LIMITS`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg2
from psycopg2.extensions import AsIs

from cdc import lsn
from cdc.errors import Refusal, SourceError
from cdc.mapping.key_types import literal, parameter
from cdc.mapping.outside_types import OutsideType, search_path
from cdc.mapping.row_rule import TWICE, Oddity, OddRow, check_id, shown
from cdc.mapping.sql_text import tables
from cdc.postgres.column_types import ColumnTypes, as_bytes, as_printed, describe
from cdc.postgres.connection import cancel_soon
from cdc.postgres.encoding import Encoding
from cdc.postgres.errors import translate
from cdc.postgres.gate import Evidence, Snapshot
from cdc.postgres.session import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.mapping.mapping import Mapping as EndpointMapping
    from cdc.mapping.mapping import Rule
    from cdc.postgres.connection import Address

_Result = TypeVar("_Result")

Row = tuple[str, bytes | None]
"""An endpoint's id, and its payload, or None where the mapping has no such endpoint."""


FIRST_CHUNK = 1_000
"""Rows that come with the first round trip: most reads end there."""
CHUNK = 2_000
"""Rows a further round trip: a few milliseconds of work, so that others get their turn in between."""
_LOCAL_CHUNK = 200
"""Rows a round trip on a Unix socket. No setting of the server ends a statement that cannot write to one, so
all rows have to fit into its buffer (some 200 kB): then the server has finished, and waits for us.
"""

_BEFORE = """
SELECT pg_catalog.set_config('pads_cdc.before', pg_catalog.concat_ws(' ',
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN '-'
         ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)
         END,
    extract(epoch FROM pg_catalog.pg_postmaster_start_time()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') END
), true);
"""

_LIMITS = """
SELECT
    pg_catalog.set_config('pads_cdc.patience', pg_catalog.concat(least(0.5, greatest(
        0.25, pg_catalog.date_part('epoch', pg_catalog.interval_div(cycle, 2)))), 's'), true),
    pg_catalog.set_config('lock_timeout', pg_catalog.concat(least(0.4, greatest(
        0.001, pg_catalog.date_part('epoch', pg_catalog.interval_div(cycle, 2.5)))), 's'), true),
    CASE WHEN pg_catalog.strpos(pg_catalog.version(), '-linux') > 0
        THEN pg_catalog.set_config('client_connection_check_interval', '1s', true) END
FROM pg_catalog.current_setting('deadlock_timeout') AS given (setting)
CROSS JOIN LATERAL (SELECT given.setting::pg_catalog.interval AS cycle) AS deadlock;
"""
"""A lock is waited for less long than the server waits before it looks for deadlocks, and a statement of a
process that was killed goes on for a second. Not every system tells a server that its client has closed.
"""
_LOCK = """
SELECT pg_catalog.set_config('statement_timeout', pg_catalog.current_setting('pads_cdc.patience'), true);
{locks};
SELECT pg_catalog.set_config('statement_timeout', '60s', true);
"""
"""All locks of a read together are waited for as long as one."""


class Database:
    """The server that is queried. One thread reads, and has rows fetched ahead; `cancel` may come from
    another.
    """

    def __init__(
        self,
        address: Address,
        mapping: EndpointMapping,
        schema: str,
        encode: Callable[[tuple[Any, ...]], bytes],
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """``encode`` makes the payload from the mapping's fixed columns.

        ``wake`` is called, from other threads, when something is there that was waited for (`Read.waiting`).
        """
        self.address = address
        self.mapping = mapping.within(schema)
        self.schema = schema
        self._names: str | None = None
        self.encode = encode
        self.wake = wake
        self._idle: list[Connection] = []
        self._ended: set[Connection] = set()
        """Those that were cut so that somebody who waits for their locks can go on."""
        self._closed: set[Connection] = set()
        """Those that are in use, and not to be kept: they were asked for before the last `close`."""
        self._closes = 0
        self._local = False
        """The newest connection goes through a Unix socket."""
        self._busy: dict[Connection, float] = {}
        """Those that somebody uses, and since when (monotonic)."""
        self.longest = 0.0
        """Seconds that the longest transaction took which ran to its end, since `forget_longest`."""
        self._running: dict[Connection, float] = {}
        """What a statement runs on, and since when (monotonic)."""
        self._lock = threading.Lock()
        self._types: ColumnTypes | None = None

    def read(self, keys: Mapping[str, Collection[str]] | None = None, *, at_once: bool = True) -> Read:
        """Read what the keys affect (by kind), or with None the whole mapping.

        Blocks until the first rows are there; unless they are wanted ``at_once``, only until the snapshot is
        known (see `Read.waiting`). The caller holds the evidence against its gate before it uses a row, and
        closes the read.

        Raises:
            SourceError, Refusal: nothing was read; never to be taken for a delete.

        """
        if keys is None:
            self._names = None
        types = self.types
        if keys is None:
            statement, parameters = self.mapping.full(types.columns, types.id_type), {}
        else:
            statement = self.mapping.compose(keys, types.columns, types.id_type)
            parameters = {
                parameter(kind): [literal(kind, value) for value in values] for kind, values in keys.items()
            }
        first = FIRST_CHUNK if at_once else 0
        return Read(self, f"{self.names()}{self._locks}{_declare(statement)}", parameters, first)

    @property
    def _locks(self) -> str:
        return _LOCK.format(locks=self.mapping.locks)

    def open(self) -> Future[Read]:
        """Have a read of the whole mapping opened in another thread: its first rows may take a while.

        Whether it or a read that begins meanwhile is the newer one nobody knows.
        """
        return self.in_thread("open", self.read)

    def in_thread(self, name: str, work: Callable[[], _Result]) -> Future[_Result]:
        """Do work in a thread of its own, and wake who waits for it.

        The thread is a daemon: a frozen server must not keep the process from ending.
        """
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                done.set_exception(error)
            self.wake()

        threading.Thread(target=run, name=name, daemon=True).start()
        return done

    @property
    def at_once(self) -> int:
        """A read of fewer rows has all of them with its first round trip."""
        return min(FIRST_CHUNK, self.most_at_once)

    @property
    def most_at_once(self) -> int:
        """A round trip brings no more rows."""
        return _LOCAL_CHUNK if self._local else CHUNK

    def evidence(self) -> Evidence:
        """Ask what a read would see now, without reading.

        Raises:
            SourceError, Refusal: the server does not answer.

        """
        with Read(self, _declare(self.mapping.header), {}) as read:
            return read.evidence

    def parents(self, rules: Collection[Rule]) -> dict[Rule, list[tuple[str, str]]]:
        """Read ``row id -> parent`` for each rule. Blocks for the whole of it.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        found: dict[Rule, list[tuple[str, str]]] = {}
        for rule in rules:
            if rule.parents is not None:
                found[rule] = self._all_parents(self.mapping.queries[rule.parents])
        return found

    def _all_parents(self, query: str) -> list[tuple[str, str]]:
        """Return the row ids and keys that a query lists, as the slot names them."""
        declare = f"{self.names()}{self._locks}{_declare(self.types.list_as_printed(query))}"
        connection = self.take()
        found: list[tuple[str, str]] = []
        with self.or_closed(connection):
            encoding = Encoding.of(connection)
            begin, key = self.begin(connection) + _unconverted(encoding), encoding.key
            with self.running(connection) as cursor:
                cursor.execute(begin + declare, {})
            more = True
            while more:
                with self.running(connection) as cursor:
                    as_bytes(cursor)
                    cursor.execute(f"FETCH FORWARD {self.most_at_once} FROM pads_cdc_read")
                    found += ((key(as_printed(row)), key(as_printed(parent))) for row, parent in cursor)
                    more = cursor.rowcount > 0
            with self.running(connection) as cursor:
                cursor.execute("COMMIT")
        self.give_back(connection)
        return found

    def names(self) -> str:
        """Return what a statement of the mapping begins with where its columns have types of other schemas.

        It is looked up anew for each read of everything.

        Raises:
            Refusal: somebody else could have operators run there. SourceError: nobody answers.

        """
        names = self._names
        if names is None:
            types = self.outside_types()
            for one in types:
                if one.fault is not None:
                    raise Refusal(f"{one}; {one.remedy}")
            path = search_path(types)
            names = self._names = f"SET LOCAL search_path = {path};\n".replace("%", "%%") if path else ""
        return names

    def outside_types(self) -> list[OutsideType]:
        """Look for columns whose types have their operators in other schemas than ``pg_catalog``.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        columns = tables(self.mapping.schema)
        parameters = {
            "schema": self.mapping.db_schema,
            "tables": list(self.mapping.reads),
            "columns": [f"{table}.{column}" for table in self.mapping.reads for column in columns[table]],
        }
        return [OutsideType(*row) for row in self.query(self.mapping.outside_types, parameters)]

    def query(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement of ours in the same setting as the reads, and return all rows.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        connection = self.take()
        with self.or_closed(connection), self.running(connection) as cursor:
            cursor.execute(self.begin(connection) + statement, {**(parameters or {})})
            rows = cursor.fetchall()
            cursor.execute("COMMIT")
        self.give_back(connection)
        return rows

    def plan(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Have a statement planned as a read's, without reading.

        Raises:
            SourceError, Refusal: it cannot be.

        """
        names, connection = self.names(), self.take()
        with self.or_closed(connection), self.running(connection) as cursor:
            begin = self.begin(connection) + names
            cursor.execute(f"{begin}{self._locks}{_declare(statement)}", {**parameters})
            cursor.execute("COMMIT")
        self.give_back(connection)

    @property
    def types(self) -> ColumnTypes:
        """The types of what the mapping reads, by which statements are composed.

        They are looked up before the first read, and then when somebody had them forgotten.

        Raises:
            SourceError, Refusal: they cannot be looked up.

        """
        if (known := self._types) is not None:
            return known
        names, connection = self.names(), self.take()
        with self.or_closed(connection), self.running(connection) as cursor:
            cursor.execute(self.begin(connection) + names + self._locks, {})
            types = self._types = describe(self.mapping, cursor)
            cursor.execute("COMMIT")
        self.give_back(connection)
        return types

    def forget_types(self) -> None:
        """Have `types` look anew: the tables may be others by now."""
        self._types = None

    @contextmanager
    def or_closed(self, connection: Connection) -> Iterator[None]:
        """Close the connection if anything fails on it, and translate what the driver says.

        Raises:
            SourceError, Refusal: of the driver's errors.

        """
        try:
            yield
        except Exception as error:  # also what is no text in our encoding, in either direction
            with self._lock:
                ended = connection in self._ended
            # Before it is closed: what to type names our role, which a closed connection does not know.
            ours = translate(error, self.address.setting) if isinstance(error, psycopg2.Error) else None
            self.discard(connection)
            if ended:
                text = "a read was ended so that somebody gets a lock on a table of the mapping"
                raise SourceError("gave_way", text) from error
            if ours is not None:
                raise ours from error
            raise

    def begin(self, connection: Connection) -> str:
        """Return the statements that a read begins with; to be executed together with what follows."""
        return f"{begin(connection)}{_LIMITS}{_BEFORE}"

    def take(self) -> Connection:
        """Return a connection that nobody uses."""
        with self._lock:
            connection, closes = self._idle.pop() if self._idle else None, self._closes
        connection = connection or self.address.connect()
        self._local = (connection.info.host or "/").startswith(("/", "@"))
        with self._lock:
            self._busy[connection] = time.monotonic()
            if closes != self._closes:
                self._closed.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection without a transaction for the next read, unless `close` has come since."""
        with self._lock:
            kept = connection not in self._closed
            kept = kept and connection not in self._ended
            if kept:
                self.longest = max(self.longest, time.monotonic() - self._busy.pop(connection))
                self._idle.append(connection)
        if not kept:
            self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection that is in doubt."""
        with self._lock:
            self._busy.pop(connection, None)
            self._ended.discard(connection)
            self._closed.discard(connection)
        with suppress(psycopg2.Error):
            connection.close()

    @contextmanager
    def running(self, connection: Connection) -> Iterator[Cursor]:
        """Note how long the statements take that are executed here."""
        with self._lock:
            self._running[connection] = time.monotonic()
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            with self._lock:
                del self._running[connection]

    def cut_stalled(self, after: float) -> None:
        """Cut the connections on which something has run for longer than ``after`` seconds, from another
        thread; who waits there gets a SourceError.

        A server that is frozen ends no statement at its timeout, and its kernel answers for it.
        """
        began_before = time.monotonic() - after
        with self._lock:  # nothing that runs is closed meanwhile, so that the descriptor is its own
            for connection, began in self._running.items():
                if began < began_before:
                    _cut(connection)

    def age(self) -> float:
        """Return for how long the oldest transaction has been open, in seconds; 0.0 if there is none."""
        with self._lock:
            return max((time.monotonic() - began for began in self._busy.values()), default=0.0)

    def forget_longest(self) -> None:
        """Measure `longest` anew from now on."""
        self.longest = 0.0

    def give_way(self, after: float) -> None:
        """End the transactions that have been open for longer than ``after`` seconds, from another thread.

        The server lets go of their locks. Whoever reads there gets a SourceError, and does it again.
        """
        began_before = time.monotonic() - after
        with self._lock:  # nothing that is in use is closed meanwhile
            for connection, began in self._busy.items():
                if began < began_before:
                    self._ended.add(connection)
                    _cut(connection)

    def cancel(self) -> None:
        """End what is being read, from another thread; that read raises a SourceError."""
        with self._lock:
            busy = tuple(self._busy)
        for connection in busy:
            cancel_soon(connection)

    def close(self) -> None:
        """Keep no connection of those that there are: the server is another one now, or shuts down."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._closed |= self._busy.keys()
            self._closes += 1
        for connection in idle:
            connection.close()


class Read:
    """One statement's snapshot of some endpoints: first its evidence, then its rows, in chunks."""

    def __init__(
        self,
        database: Database,
        declare: str,
        parameters: Mapping[str, Sequence[str]],
        first: int = FIRST_CHUNK,
    ) -> None:
        """Begin; ``first`` rows come with the evidence, which is the first row of the statement itself."""
        self._database = database
        self._encode = database.encode
        self._connection: Connection | None = database.take()
        try:
            self._encoding = Encoding.of(self._connection)
        except Refusal:
            database.discard(self._connection)
            raise
        first = min(first, database.most_at_once)
        begin = database.begin(self._connection) + _unconverted(self._encoding)
        statement = f"{begin}{declare}FETCH FORWARD {first + 1} FROM pads_cdc_read"
        if self._encoding.utf8:
            rows = self._fetch(statement, parameters)
        else:
            arrays = {name: AsIs(self._encoding.array(keys)) for name, keys in parameters.items()}
            rows = self._fetch(statement, arrays)
        header = rows.pop(0) if rows else (None,)
        if header[0] is None:
            self.close()
            raise SourceError("no_evidence", "a re-query came without its snapshot: it cannot be trusted")
        self.evidence = _evidence(header)
        self.complete = len(rows) < first
        """Whether all rows have been handed over, with the first chunk or by now."""
        self.odd: dict[str, Oddity | None] = {}
        """What is odd about the rows of the newest chunk, by id. None: no row has that id, which is none that
        an endpoint can have.
        """
        self.again: set[str] = set()
        """The ids of the newest chunk that have come more than once."""
        self.passed: set[str] = set()
        """The ids that were met and passed over."""
        self._passed_over: set[str] = set()
        self._left_out: set[str] = set()
        """Ids whose rows are odd, so that they are not in the store for another one to be compared with."""
        self._rows: list[tuple[Any, ...]] | None = rows
        self._ahead: Future[list[tuple[Any, ...]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chunks(self, size: int = CHUNK) -> Iterator[list[Row]]:
        """Walk the rows. Each step may block for as long as the server takes for ``size`` rows.

        Raises:
            SourceError, Refusal: the rest cannot be had; what was handed over so far is true nevertheless.

        """
        size = min(size, self._database.most_at_once)

        def fetch() -> list[tuple[Any, ...]]:
            return self._fetch(f"FETCH FORWARD {size} FROM pads_cdc_read")

        rows, self._rows = self._rows or [], None
        if not rows and not self.complete:
            self._ahead = self._database.in_thread("fetch", fetch)
        return self._walk(rows, size, fetch)

    def _walk(
        self, rows: list[tuple[Any, ...]], size: int, fetch: Callable[[], list[tuple[Any, ...]]]
    ) -> Iterator[list[Row]]:
        if self._ahead is not None:
            rows = self._ahead.result()
            self.complete = len(rows) < size
        while rows:
            # The server makes the next rows while these are encoded and compared.
            self._ahead = None if self.complete else self._database.in_thread("fetch", fetch)
            yield self._encoded(rows)
            if self._ahead is None:
                break
            rows = self._ahead.result()
            self.complete = len(rows) < size
        self.close()

    def pass_over(self, ids: Collection[str]) -> None:
        """Hand out no more rows of these ids: this read is not the one to judge them."""
        self._passed_over.update(ids)

    def _encoded(self, rows: list[tuple[Any, ...]]) -> list[Row]:
        """Return ids and payloads, each id once, and note what is odd."""
        encode, encoded = self._encode, []
        odd = self.odd = {}
        if not self._encoding.utf8:
            rows = [tuple(map(self._encoding.in_utf8, row)) for row in rows]
        for row in rows:
            try:
                if row[3]:
                    payload = encode(row[4:])
                else:
                    payload = None
                    check_id("endpoint_id", row[2])
                encoded.append((row[2].decode(), payload))
            except OddRow as error:
                name = row[2].decode() if error.named else shown(row[2])
                odd[name] = error.oddity if row[3] else None
                if error.named:
                    encoded.append((name, error.payload))
        self.again = set()
        if self._passed_over:
            encoded = self._without(encoded, odd)
        if self._left_out or odd or len(dict(encoded)) < len(encoded):
            return self._once(encoded)
        return encoded

    def _without(self, rows: list[Row], odd: dict[str, Oddity | None]) -> list[Row]:
        """Return the rows without those that are passed over."""
        met = self._passed_over.intersection(name for name, _ in rows)
        self.passed |= met
        for name in met:
            odd.pop(name, None)
        return [row for row in rows if row[0] not in met]

    def _once(self, rows: list[Row]) -> list[Row]:
        """Return each id once. Of rows that contradict each other nobody knows which one counts, and so none
        does.
        """
        once: dict[str, bytes | None] = {}
        for endpoint_id, payload in rows:
            if endpoint_id in once or endpoint_id in self._left_out:
                self.again.add(endpoint_id)
                if once.get(endpoint_id) != payload:
                    payload, self.odd[endpoint_id] = None, TWICE  # noqa: PLW2901
            once[endpoint_id] = payload
        self._left_out.update(name for name in self.odd if once.get(name, b"") is None)
        return list(once.items())

    @property
    def waiting(self) -> bool:
        """Whether the next step of `chunks` would have to wait for the server."""
        return self._ahead is not None and not self._ahead.done()

    def close(self) -> None:
        """End the transaction, after what is being fetched. Closing early is fine; so is closing twice."""
        connection = self._take_connection()
        if connection is None:
            return
        try:
            with self._database.running(connection) as cursor:
                cursor.execute("COMMIT")
        except psycopg2.Error:  # what was handed over is true; the next read will find out what is wrong
            self._database.discard(connection)
        else:
            self._database.give_back(connection)

    def discard(self) -> None:
        """Close the read, and its connection: that server is not to be asked again.

        The transaction ends in good order, so that a pooler keeps its own connection.
        """
        connection = self._take_connection()
        if connection is not None:
            with suppress(psycopg2.Error), self._database.running(connection) as cursor:
                cursor.execute("COMMIT")
            self._database.discard(connection)

    def _take_connection(self) -> Connection | None:
        if self._ahead is not None:
            wait((self._ahead,))
        connection, self._connection = self._connection, None
        return connection

    def _fetch(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        connection = self._connection
        if connection is None:
            raise SourceError("closed", "the read was closed")
        try:
            with self._database.or_closed(connection), self._database.running(connection) as cursor:
                as_bytes(cursor)
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        except BaseException:
            self._connection = None
            raise


def _declare(statement: str) -> str:
    return f"DECLARE pads_cdc_read NO SCROLL CURSOR FOR {statement};\n"


def _cut(connection: Connection) -> None:
    """Hang up, so that both ends notice; the connection is closed by whoever uses it."""
    with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _unconverted(encoding: Encoding) -> str:
    """Return the statement after which rows of this transaction come as the database holds them."""
    return "" if encoding.utf8 else "SET LOCAL client_encoding = 'SQL_ASCII';"


def _evidence(header: tuple[bytes, ...]) -> Evidence:
    snapshot, seen, before = (text.decode() for text in header[:3])
    system, timeline, instance, *replayed = before.split(" ")
    ends = [lsn.parse(end) for end in seen.split(" ")]
    return Evidence(
        system=system,
        timeline=None if timeline == "-" else int(timeline, 16),
        instance=instance,
        replayed=lsn.parse(replayed[0]) if replayed else None,
        snapshot=Snapshot.parse(snapshot),
        seen=ends[0],
        flushed=ends[1],
        bound=ends[2],
    )
