"""A read of the mapping: the evidence of its snapshot, and then its rows in chunks.

A read is one READ COMMITTED transaction of three statements. The first identifies the server, and returns how
far it has replayed WAL. The second locks the tables and their partitions. The third, a cursor, takes its
snapshot after the other two, and returns that snapshot with the rows. The evidence and the first rows arrive
in one round trip. No facts about the server are kept from one read to the next, so the evidence also shows a
promotion, another server behind a pooler, or a standby that is behind.

All settings are local to the transaction, so a pooler in transaction mode may be in between.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import psycopg2
from psycopg2.extensions import AsIs

from cdc.errors import Refusal, SourceError
from cdc.mapping.row_rule import TWICE, Oddity, OddRow, check_id, shown
from cdc.postgres import statements
from cdc.postgres.column_types import as_bytes
from cdc.postgres.encoding import Encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.postgres.connections import Connections
    from cdc.postgres.prepared import PreparedStatements

Row = tuple[str, bytes | None]
"""An endpoint's id and its payload. The payload is None if the mapping has no such endpoint."""

FIRST_CHUNK = 1_000
"""Maximum number of rows in the first round trip. Most reads need no other round trip."""
CHUNK = 2_000
"""Number of rows in each further round trip. They are a few milliseconds of work, so other reads do not wait
long.
"""
LOCAL_CHUNK = 200
"""Maximum number of rows in each round trip on a Unix socket. No setting of the server ends a statement that
cannot write to a Unix socket. So all rows of a round trip must fit into the socket's buffer (about 200 kB),
which lets the statement finish.
"""
_SLOW = 0.01
"""If a read by a prepared plan takes longer than this number of seconds, the plan is made again."""


def most_at_once(connections: Connections) -> int:
    """Return the maximum number of rows of one round trip."""
    return LOCAL_CHUNK if connections.local else CHUNK


class Read:
    """A read of some endpoints in one snapshot: first its evidence, then its rows in chunks."""

    def __init__(
        self,
        connections: Connections,
        statement: str,
        parameters: Mapping[str, Any],
        *,
        locks: str,
        names: str,
        encode: Callable[[tuple[Any, ...]], bytes],
        in_thread: Callable[[str, Callable[[], list[tuple[Any, ...]]]], Future[list[tuple[Any, ...]]]],
        first: int = FIRST_CHUNK,
        keep: bool = False,
    ) -> None:
        """Begin the read. The statement's first row is the evidence, and ``first`` more rows arrive with it.

        ``locks`` is `Mapping.locks`; only a statement that reads no table may do without. ``names`` sets the
        search path (`Database.names`). ``encode`` makes a payload from a row. ``in_thread`` calls a function
        in another thread. With ``keep`` the statement is prepared if the session allows it, and only the
        first rows can be read.
        """
        self._connections = connections
        self._encode = encode
        self._in_thread = in_thread
        self._connection: Connection | None = connections.take()
        self._ahead: Future[list[tuple[Any, ...]]] | None = None
        try:
            self._encoding = Encoding.of(self._connection)
        except Refusal:
            connections.discard(self._connection)
            raise
        prepared = connections.prepared(self._connection) if keep and self._encoding.utf8 else None
        if prepared is not None:
            first = LOCAL_CHUNK
            limited = f"{statement}\nLIMIT {first + 1}"
            rows = self._fetch_kept(prepared, limited, parameters, locks=locks, names=names)
        else:
            first = min(first, most_at_once(connections))
            begin = statements.begin(self._connection) + statements.unconverted(self._encoding) + names
            if locks:
                begin += statements.lock(locks)
            message = f"{begin}{statements.declare(statement)}{statements.fetch(first + 1)}"
            if not self._encoding.utf8:
                parameters = {name: AsIs(self._encoding.array(keys)) for name, keys in parameters.items()}
            rows = self._fetch(message, parameters)
        try:
            self.evidence = statements.evidence(rows.pop(0) if rows else (None,))
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
        size = min(size, most_at_once(self._connections))

        def fetch() -> list[tuple[Any, ...]]:
            return self._fetch(statements.fetch(size))

        rows, self._rows = self._rows or [], None
        if not rows and not self.complete:
            self._ahead = self._in_thread("fetch", fetch)
        return self._walk(rows, size, fetch)

    def _walk(
        self, rows: list[tuple[Any, ...]], size: int, fetch: Callable[[], list[tuple[Any, ...]]]
    ) -> Iterator[list[Row]]:
        if self._ahead is not None:
            rows = self._ahead.result()
            self.complete = len(rows) < size
        while rows:
            # The server prepares the next rows while these are encoded and compared.
            self._ahead = None if self.complete else self._in_thread("fetch", fetch)
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
        locks: str,
        names: str,
    ) -> list[tuple[Any, ...]]:
        """Begin a read with prepared statements in place of a cursor, and return its first rows."""
        began = time.monotonic()
        message = prepared.begin() + names
        first = (statements.AT_ONCE, locks, statements.IN_HASTE) if locks else ()
        for each in (statements.LIMITS, statements.BEFORE, *first):
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
