"""Re-queries: reads of the mapping, each with the evidence of its snapshot.

A read is one READ COMMITTED transaction of three statements. The first identifies the server, and returns how
far it has replayed WAL. The second locks the tables and their partitions. The third, a cursor, takes its
snapshot after the other two, and returns that snapshot with the rows. The evidence and the first rows arrive
in one round trip. No facts about the server are kept from one read to the next, so the evidence also shows a
promotion, another server behind a pooler, or a standby that is behind.

All settings are local to the transaction, so a pooler in transaction mode may be in between.

Migrations go first. While a read waits for one lock it may hold others. A migration that holds the first lock
and waits for the others would become the deadlock's victim, because a server looks for deadlocks only after a
session has waited for ``deadlock_timeout``. So a read waits for all of its locks for half of that time, then
releases everything and tries again. A running read is ended when another session waits for its locks
(`cdc.postgres.lock_watch`). If the reader is frozen or cut off, the server ends the read (`_LIMITS`).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg2
from psycopg2.extensions import AsIs

from cdc import lsn
from cdc.errors import PadsCdcError, Refusal, SourceError
from cdc.mapping.key_types import literal, parameter
from cdc.mapping.outside_types import OutsideType, search_path
from cdc.mapping.row_rule import TWICE, Oddity, OddRow, check_id, shown
from cdc.mapping.sql_text import tables
from cdc.postgres.column_types import ColumnTypes, as_bytes, as_printed, describe
from cdc.postgres.connections import Connections
from cdc.postgres.encoding import Encoding
from cdc.postgres.gate import Evidence, Snapshot
from cdc.postgres.prepared import MOST_KEYS, PreparedStatements, blames, forbids
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
"""An endpoint's id and its payload. The payload is None if the mapping has no such endpoint."""


FIRST_CHUNK = 1_000
"""Maximum number of rows in the first round trip. Most reads need no other round trip."""
CHUNK = 2_000
"""Number of rows in each further round trip. They are a few milliseconds of work, so other reads do not wait
long.
"""
_LOCAL_CHUNK = 200
"""Maximum number of rows in each round trip on a Unix socket. No setting of the server ends a statement that
cannot write to a Unix socket. So all rows of a round trip must fit into the socket's buffer (about 200 kB),
which lets the statement finish.
"""

_BEFORE = """
SELECT pg_catalog.set_config('pads_cdc.before', pg_catalog.concat_ws(' ',
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN '-'
         ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)
         END,
    extract(epoch FROM pg_catalog.pg_postmaster_start_time()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') END
), true)
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
CROSS JOIN LATERAL (SELECT given.setting::pg_catalog.interval AS cycle) AS deadlock
"""
"""Sets time limits: a read waits for a lock for less than ``deadlock_timeout``, and on systems that notify a
server of a closed connection, a statement ends within a second after its client has gone.
"""
_IMPATIENT = """
SELECT pg_catalog.set_config('statement_timeout', pg_catalog.current_setting('pads_cdc.patience'), true)
"""
"""Sets a time limit for all locks of a read together."""
_PATIENT = """
SELECT pg_catalog.set_config('statement_timeout', '60s', true)
"""
_IN_HASTE = """
SELECT pg_catalog.set_config('statement_timeout', '250ms', true)
"""
"""Sets a time limit for a prepared plan, which may have been made for smaller tables and may take minutes
instead of a millisecond.
"""
_SLOW = 0.01
"""If a read by a prepared plan takes longer than this number of seconds, the plan is made again."""
_ONE_BY_ONE = 60.0
"""If a statement failed because it was prepared, it is planned for each read during this number of seconds.
"""


@dataclass(frozen=True)
class ParentRows:
    """The pairs of row id and parent that a query lists, and the server that listed them."""

    rows: Sequence[tuple[str, str | None]]
    before: Evidence
    """The evidence of a snapshot that may be older than that of the rows, from the same transaction."""
    after: Evidence
    """The evidence of a snapshot that may be newer, from the same transaction."""


class Database:
    """The query server, from which the mapping is read. Only one thread reads; other threads fetch rows for
    it in advance. Any thread may end a statement that runs on the `connections`.
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

        ``wake`` is called from another thread when a read no longer has to wait (`Read.waiting`).
        """
        self.address = address
        self.connections = Connections(address)
        self.mapping = mapping.within(schema)
        self.schema = schema
        self._names: str | None = None
        self.encode = encode
        self.wake = wake
        self._not_kept: dict[str, float] = {}
        """Statements that failed because they were prepared, each with the monotonic time until which it is
        not prepared again.
        """
        self._composed: dict[tuple[str, ...], str] = {}
        """Statements by the kinds of their keys. They are valid for the current `types`."""
        self._types: ColumnTypes | None = None

    def read(self, keys: Mapping[str, Collection[str]] | None = None, *, at_once: bool = True) -> Read:
        """Read the endpoints that keys stand for, or the whole mapping if ``keys`` is None. ``keys`` are by
        kind.

        Blocks until the first rows arrive. Without ``at_once``, blocks only until the snapshot is known (see
        `Read.waiting`). The caller must check the evidence against its gate before it uses a row, and must
        close the read.

        Raises:
            SourceError, Refusal: nothing was read. This does not mean that the endpoints are deleted.

        """
        if keys is None:
            self._names = None
        types = self.types
        if keys is None:
            statement, parameters = self.mapping.full(types.columns, types.id_type), {}
        else:
            kinds = tuple(sorted(keys))
            if kinds not in self._composed:
                self._composed[kinds] = self.mapping.compose(kinds, types.columns, types.id_type)
            statement = self._composed[kinds]
            parameters = {parameter(kind): [literal(kind, value) for value in keys[kind]] for kind in kinds}
            if at_once and sum(map(len, keys.values())) <= MOST_KEYS:
                return self._read_few(statement, parameters)
        return Read(self, statement, parameters, first=FIRST_CHUNK if at_once else 0)

    def _read_few(
        self, statement: str, parameters: Mapping[str, Sequence[str]], *, locks: bool = True
    ) -> Read:
        """Read a few rows with a prepared statement, or with an ordinary one if it cannot be prepared."""
        if time.monotonic() < self._not_kept.get(statement, 0.0):
            return Read(self, statement, parameters, locks=locks)
        try:
            read = Read(self, statement, parameters, keep=True, locks=locks)
        except PadsCdcError as error:
            if not blames(error):
                raise
            read = Read(self, statement, parameters, locks=locks)
            if forbids(error):
                self._not_kept[statement] = time.monotonic() + _ONE_BY_ONE
        if read.complete:
            return read
        read.close()  # an id has very many rows, which need a cursor
        return Read(self, statement, parameters, locks=locks)

    @property
    def locks(self) -> str:
        """The statements that lock the tables of a read."""
        return f"{_IMPATIENT};{self.mapping.locks};{_PATIENT};"

    def open(self) -> Future[Read]:
        """Open a read of the whole mapping in another thread, because its first rows may take long.

        If another read starts before the result is available, the order of the two snapshots is unknown.
        """
        return self.in_thread("open", self.read)

    def in_thread(self, name: str, work: Callable[[], _Result]) -> Future[_Result]:
        """Run ``work`` in a new thread, and call `wake` when it is done.

        The thread is a daemon, so that a frozen server cannot keep the process from ending.
        """
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the future raises it
                done.set_exception(error)
            self.wake()

        threading.Thread(target=run, name=name, daemon=True).start()
        return done

    @property
    def at_once(self) -> int:
        """A read of fewer rows than this number needs only one round trip."""
        return min(FIRST_CHUNK, self.most_at_once)

    @property
    def most_at_once(self) -> int:
        """Maximum number of rows of one round trip."""
        return _LOCAL_CHUNK if self.connections.local else CHUNK

    def evidence(self) -> Evidence:
        """Return the evidence that a read would have now.

        Raises:
            SourceError, Refusal: the server does not answer.

        """
        with self._read_few(self.mapping.header, {}, locks=False) as read:
            return read.evidence

    def parents(self, rules: Collection[Rule]) -> dict[Rule, ParentRows]:
        """Read the pairs of row id and parent for each rule. Blocks until all pairs are read.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        found: dict[Rule, ParentRows] = {}
        for rule in rules:
            if rule.parents is not None:
                found[rule] = self._all_parents(self.mapping.queries[rule.parents])
        return found

    def _all_parents(self, query: str) -> ParentRows:
        """Return the row ids and parents that a query lists, printed as the slot prints them. A parent that
        is NULL is None.
        """
        locks, declare = f"{self.names()}{self.locks}", _declare(self.types.list_as_printed(query))
        connections = self.connections
        connection = connections.take()
        found: list[tuple[str, str | None]] = []
        with connections.or_closed(connection):
            encoding = Encoding.of(connection)
            begin, key = self.begin(connection) + _unconverted(encoding), encoding.key
            with connections.running(connection) as cursor:
                before = self._present(cursor, begin + locks)
                cursor.execute(declare, {})
            more = True
            while more:
                with connections.running(connection) as cursor:
                    as_bytes(cursor)
                    cursor.execute(_fetch(self.most_at_once))
                    found += (
                        (key(as_printed(row)), None if parent is None else key(as_printed(parent)))
                        for row, parent in cursor
                    )
                    more = cursor.rowcount > 0
            with connections.running(connection) as cursor:
                after = self._present(cursor)
                cursor.execute("COMMIT")
        connections.give_back(connection)
        return ParentRows(found, before, after)

    def _present(self, cursor: Cursor, begin: str = "") -> Evidence:
        """Return the evidence of a new snapshot within a transaction. ``begin`` are its first statements."""
        as_bytes(cursor)
        cursor.execute(begin + self.mapping.header, {})
        return _evidence(cursor.fetchone() or (None,))

    def names(self) -> str:
        """Return the statement that sets the search path for types of other schemas. It is empty if there are
        no such types.

        The types are looked up again for each read of the whole mapping.

        Raises:
            Refusal: another role could replace an operator in such a schema.
            SourceError: the server does not answer.

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
        """Return the types of the mapping's columns whose operators are in other schemas than ``pg_catalog``.

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
        """Run one of our own statements with the settings of a read, and return all rows.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        with self.connections.transaction() as cursor:
            cursor.execute(self.begin(cursor.connection) + statement, {**(parameters or {})})
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def plan(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Make the server plan a statement as it would for a read, without reading any row.

        Raises:
            SourceError, Refusal: the server cannot plan it.

        """
        names = self.names()
        with self.connections.transaction() as cursor:
            begin = self.begin(cursor.connection) + names
            cursor.execute(f"{begin}{self.locks}{_declare(statement)}", {**parameters})

    @property
    def types(self) -> ColumnTypes:
        """The types of the mapping's columns, which decide how statements are composed.

        They are looked up before the first read, and again after `forget_types`.

        Raises:
            SourceError, Refusal: the types cannot be looked up.

        """
        if (known := self._types) is not None:
            return known
        names = self.names()
        with self.connections.transaction() as cursor:
            cursor.execute(self.begin(cursor.connection) + names + self.locks, {})
            types = self._types = describe(self.mapping, cursor)
        return types

    def forget_types(self) -> None:
        """Look up `types` again at the next read, since the tables may have changed."""
        self._types = None
        self._composed.clear()
        self._not_kept.clear()

    def begin(self, connection: Connection) -> str:
        """Return the first statements of a read, to be sent in one round trip with the next ones."""
        return f"{begin(connection)}{_LIMITS};{_BEFORE};"

    def close(self) -> None:
        """Close all connections, because the server has changed or is shutting down. A connection in use is
        closed after its read.
        """
        self.connections.close()


class Read:
    """A read of some endpoints in one snapshot: first its evidence, then its rows in chunks."""

    def __init__(
        self,
        database: Database,
        statement: str,
        parameters: Mapping[str, Any],
        first: int = FIRST_CHUNK,
        *,
        keep: bool = False,
        locks: bool = True,
    ) -> None:
        """Begin the read. The statement's first row is the evidence, and ``first`` more rows arrive with it.

        With ``keep`` the statement is prepared if the session allows it, and only the first rows can be read.
        Only a statement that reads no table may do without ``locks``.
        """
        self._database = database
        self._connections = connections = database.connections
        self._encode = database.encode
        self._names = database.names() if locks else ""  # may query the server, on another connection
        self._connection: Connection | None = connections.take()
        self._ahead: Future[list[tuple[Any, ...]]] | None = None
        try:
            self._encoding = Encoding.of(self._connection)
        except Refusal:
            connections.discard(self._connection)
            raise
        prepared = connections.prepared(self._connection) if keep and self._encoding.utf8 else None
        if prepared is not None:
            first = _LOCAL_CHUNK
            rows = self._fetch_kept(prepared, f"{statement}\nLIMIT {first + 1}", parameters, locks=locks)
        else:
            first = min(first, database.most_at_once)
            begin = database.begin(self._connection) + _unconverted(self._encoding)
            if locks:
                begin += self._names + database.locks
            message = f"{begin}{_declare(statement)}{_fetch(first + 1)}"
            if not self._encoding.utf8:
                parameters = {name: AsIs(self._encoding.array(keys)) for name, keys in parameters.items()}
            rows = self._fetch(message, parameters)
        try:
            self.evidence = _evidence(rows.pop(0) if rows else (None,))
        except SourceError:
            self.close()
            raise
        self.complete = len(rows) < first
        """Whether all rows have been fetched from the server."""
        self.odd: dict[str, Oddity | None] = {}
        """The odd rows of the newest chunk, by id. The value is None for a requested id that is invalid and
        that no row has.
        """
        self.again: set[str] = set()
        """The ids of the newest chunk that the read has returned more than once."""
        self.passed: set[str] = set()
        """The ids that were skipped although the server returned rows for them."""
        self._passed_over: set[str] = set()
        """The ids to skip."""
        self._left_out: set[str] = set()
        """Ids of odd rows that were left out. They are kept here because the store does not have them, so
        another row of the same id could not be detected there.
        """
        self._rows: list[tuple[Any, ...]] | None = rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chunks(self, size: int = CHUNK) -> Iterator[list[Row]]:
        """Yield the rows in chunks. Each step may block until the server has returned ``size`` rows.

        Raises:
            SourceError, Refusal: the remaining rows cannot be read. The rows so far are valid.

        """
        size = min(size, self._database.most_at_once)

        def fetch() -> list[tuple[Any, ...]]:
            return self._fetch(_fetch(size))

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
            # The server prepares the next rows while these are encoded and compared.
            self._ahead = None if self.complete else self._database.in_thread("fetch", fetch)
            yield self._encoded(rows)
            if self._ahead is None:
                break
            rows = self._ahead.result()
            self.complete = len(rows) < size
        self.close()

    def pass_over(self, ids: Collection[str]) -> None:
        """Skip all further rows of these ids, because another read determines these endpoints."""
        self._passed_over.update(ids)

    def _encoded(self, rows: list[tuple[Any, ...]]) -> list[Row]:
        """Return ids and payloads, each id once, and record the odd rows."""
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
        """Return the rows without the rows of the ids to skip."""
        met = self._passed_over.intersection(name for name, _ in rows)
        self.passed |= met
        for name in met:
            odd.pop(name, None)
        return [row for row in rows if row[0] not in met]

    def _once(self, rows: list[Row]) -> list[Row]:
        """Return each id once. If the rows of one id differ, it is unknown which one is right, so none of
        them is served.
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
        """Whether the next step of `chunks` would block."""
        return self._ahead is not None and not self._ahead.done()

    def close(self) -> None:
        """End the transaction, after the current fetch of rows. May be called early, and more than once."""
        connection = self._take_connection()
        if connection is None:
            return
        try:
            with self._connections.running(connection) as cursor:
                cursor.execute("COMMIT")
        except psycopg2.Error:  # the rows so far are valid, and the next read will report the error
            self._connections.discard(connection)
        else:
            self._connections.give_back(connection)

    def discard(self) -> None:
        """End the transaction and close the connection, so that the next read connects again.

        The transaction ends with a COMMIT, so a pooler keeps its own connection to the server.
        """
        connection = self._take_connection()
        if connection is not None:
            with suppress(psycopg2.Error), self._connections.running(connection) as cursor:
                cursor.execute("COMMIT")
            self._connections.discard(connection)

    def _take_connection(self) -> Connection | None:
        if self._ahead is not None:
            wait((self._ahead,))
        connection, self._connection = self._connection, None
        return connection

    def _fetch_kept(
        self,
        prepared: PreparedStatements,
        statement: str,
        parameters: Mapping[str, Sequence[str]],
        *,
        locks: bool,
    ) -> list[tuple[Any, ...]]:
        """Begin a read with prepared statements in place of a cursor, and return its first rows."""
        began = time.monotonic()
        message = prepared.begin() + self._names
        first = (_IMPATIENT, self._database.mapping.locks, _IN_HASTE) if locks else ()
        for each in (_LIMITS, _BEFORE, *first):
            message += prepared.execute(each)
        rows = self._fetch(message + prepared.execute(statement, tuple(parameters)), parameters)
        if time.monotonic() - began > _SLOW:
            prepared.outdate(statement)
        return rows

    def _fetch(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        connection = self._connection
        if connection is None:
            raise SourceError("closed", "the read was closed")
        try:
            with self._connections.or_closed(connection), self._connections.running(connection) as cursor:
                as_bytes(cursor)
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        except BaseException:
            self._connection = None
            raise


def _declare(statement: str) -> str:
    return f"DECLARE pads_cdc_read NO SCROLL CURSOR FOR {statement};\n"


def _fetch(rows: int) -> str:
    return f"FETCH FORWARD {rows} FROM pads_cdc_read"


def _unconverted(encoding: Encoding) -> str:
    """Return the statement that makes the server send this transaction's rows in the database's encoding."""
    return "" if encoding.utf8 else "SET LOCAL client_encoding = 'SQL_ASCII';"


def _evidence(header: tuple[Any, ...]) -> Evidence:
    """Return the evidence in a statement's first row.

    Raises:
        SourceError: there is none, for example because the server has just been promoted.

    """
    if header[0] is None:
        raise SourceError("no_evidence", "a re-query returned no snapshot, so it cannot be trusted")
    snapshot, seen, before = (text.decode() for text in header[:3])
    system, timeline, instance, *replayed = before.split(" ")
    written, flushed, bound, shown, *within = seen.split(" ")
    return Evidence(
        system=system,
        timeline=None if timeline == "-" else int(timeline, 16),
        instance=instance,
        replayed=lsn.parse(replayed[0]) if replayed else None,
        snapshot=Snapshot.parse(snapshot),
        seen=lsn.parse(written),
        flushed=lsn.parse(flushed),
        bound=lsn.parse(bound),
        shown=lsn.parse(shown),
        flushed_within=float(within[0]) if within else 0.0,
    )
