"""The connections of a `cdc.postgres.database.Database`, and how other threads end the statements on them.

If another session waits for a transaction's locks, or if a statement runs on a frozen server, another thread
ends it by shutting the socket down. The reading thread then gets an error, closes the connection, and reads
again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg2

from cdc.errors import SourceError
from cdc.postgres.errors import translate
from cdc.postgres.prepared import PreparedStatements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.postgres.connection import Address


class Connections:
    """The connections to one server: idle ones, and those in use. Any thread may call any method."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection] = []
        self._prepared: dict[Connection, PreparedStatements | None] = {}
        """The prepared statements of each connection; None if a pooler may share the session."""
        self._ended: set[Connection] = set()
        """Connections that were cut because another session waits for their locks."""
        self._closed: set[Connection] = set()
        """Connections in use that are not to be kept, because they were opened before the last `close`."""
        self._closes = 0
        self.local = False
        """Whether the newest connection goes through a Unix socket."""
        self._busy: dict[Connection, float] = {}
        """Connections in use, each with the monotonic time at which its use began."""
        self.longest = 0.0
        """Duration of the longest transaction that has ended normally since `forget_longest`, in seconds."""
        self._running: dict[Connection, float] = {}
        """Connections on which a statement runs, each with the monotonic time at which the statement began.
        """
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Yield a cursor for a transaction of one round trip, which the caller begins. Commits at the end.

        Raises:
            SourceError, Refusal: raised instead of the driver's error.

        """
        connection = self.take()
        with self.or_closed(connection), self.running(connection) as cursor:
            yield cursor
            cursor.execute("COMMIT")
        self.give_back(connection)

    @contextmanager
    def or_closed(self, connection: Connection) -> Iterator[None]:
        """Close the connection if anything fails on it, and translate the driver's errors.

        Raises:
            SourceError, Refusal: raised instead of the driver's error.

        """
        try:
            yield
        except Exception as error:  # also errors of encoding, in either direction
            with self._lock:
                ended = connection in self._ended
            # The error is translated before the connection is closed, because the remedy names our role,
            # which only the open connection knows.
            ours = translate(error, self.address.setting) if isinstance(error, psycopg2.Error) else None
            self.discard(connection)
            if ended:
                text = "a read was ended so that another session gets a lock on a table of the mapping"
                raise SourceError("gave_way", text) from error
            if ours is not None:
                raise ours from error
            raise

    def take(self) -> Connection:
        """Return an idle connection, or a new one if none is idle."""
        with self._lock:
            kept, closes = self._idle.pop() if self._idle else None, self._closes
        connection = kept or self.address.connect()
        with self._lock:
            self._busy[connection] = time.monotonic()
            if closes != self._closes:
                self._closed.add(connection)
        if kept is None:
            self.local = (connection.info.host or "/").startswith(("/", "@"))
            with self.or_closed(connection), self.running(connection) as cursor:
                self._prepared[connection] = PreparedStatements.of(cursor)
        return connection

    def prepared(self, connection: Connection) -> PreparedStatements | None:
        """Return the prepared statements of a connection; None if a pooler may share the session."""
        return self._prepared[connection]

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next read, unless `close` was called since `take`. No transaction may be
        open on it.
        """
        with self._lock:
            kept = connection not in self._closed
            kept = kept and connection not in self._ended
            if kept:
                self.longest = max(self.longest, time.monotonic() - self._busy.pop(connection))
                self._idle.append(connection)
        if not kept:
            self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection whose state is unknown or which must not be used again."""
        with self._lock:
            self._busy.pop(connection, None)
            self._ended.discard(connection)
            self._closed.discard(connection)
            self._prepared.pop(connection, None)
        with suppress(psycopg2.Error):
            connection.close()

    @contextmanager
    def running(self, connection: Connection) -> Iterator[Cursor]:
        """Yield a cursor, and note the time for `cut_stalled`."""
        with self._lock:
            self._running[connection] = time.monotonic()
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            with self._lock:
                del self._running[connection]

    def cut_stalled(self, after: float) -> None:
        """Cut the connections on which a statement has run for longer than ``after`` seconds.

        The reading thread gets a SourceError. Without this, a read on a frozen server would never end: the
        server does not enforce its own timeout, and its kernel keeps the connection alive.
        """
        began_before = time.monotonic() - after
        with self._lock:  # under the lock no such connection is closed, so its descriptor is not reused
            for connection, began in self._running.items():
                if began < began_before:
                    _cut(connection)

    def age(self) -> float:
        """Return the age of the oldest open transaction, in seconds; 0.0 if there is none."""
        with self._lock:
            return max((time.monotonic() - began for began in self._busy.values()), default=0.0)

    def forget_longest(self) -> None:
        """Start to measure `longest` again."""
        self.longest = 0.0

    def give_way(self, after: float) -> None:
        """End the transactions that have been open for longer than ``after`` seconds, from another thread.

        The server releases their locks. The reading thread gets a SourceError, and reads again.
        """
        began_before = time.monotonic() - after
        with self._lock:  # under the lock no connection in use is closed
            for connection, began in self._busy.items():
                if began <= began_before:
                    self._ended.add(connection)
                    _cut(connection)

    def close(self) -> None:
        """Close all connections, because the server has changed or is shutting down. A connection in use is
        closed after its read.
        """
        with self._lock:
            idle, self._idle = self._idle, []
            self._closed |= self._busy.keys()
            self._closes += 1
        for connection in idle:
            self.discard(connection)


def _cut(connection: Connection) -> None:
    """Shut the socket down, so that both ends get an error. The thread that uses the connection closes it."""
    with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
