"""Ends reads while another session waits for their locks, so that migrations go first.

A read holds ACCESS SHARE on the mapping's tables, which conflicts only with ACCESS EXCLUSIVE. So a migration
waits for the read, and all other sessions wait behind the migration, even to read or write one row. A read of
a million endpoints takes seconds. So such a read is ended, which releases its locks at once, and is repeated
after the migration.

With constant migrations, no long read would ever finish. So each time a read is ended, the next read may hold
its locks for longer, up to some seconds. When a read as long as the ended ones has finished, the time is
short again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cdc.postgres.asking import Asking
from cdc.postgres.session import ask

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.fault import Troubles
    from cdc.postgres.connections import Connections

_TICK = 0.5
"""Seconds between two queries for waiting sessions. Reads that are younger than this are not ended."""
_PATIENCE_FIRST, _PATIENCE_MOST = 0.5, 2.5
"""Initial and maximum number of seconds that a session has to wait before reads are ended for it."""
_FORGET = 60.0
"""Seconds after the last ended read until the initial patience applies again."""


class LockWatch(Asking):
    """A thread that looks for waiting sessions while a read lasts, on its own connection, until `stop`."""

    def __init__(self, connections: Connections, query: str, observer: Troubles) -> None:
        """``query`` is the text of the query `Blocked`."""
        super().__init__("lock-watch", connections.address, observer, _TICK)
        self._connections = connections
        self._query = query
        self._patience = _PATIENCE_FIRST
        self._ended_at = time.monotonic()
        self._ended_age = 0.0
        """Age of the longest ended read when it was ended, in seconds."""

    def _is_due(self) -> bool:
        return self._connections.age() >= _TICK

    def _ask(self, connection: Connection) -> None:
        now, connections = time.monotonic(), self._connections
        if connections.longest >= self._ended_age or now - self._ended_at > _FORGET:
            self._patience, self._ended_age = _PATIENCE_FIRST, 0.0
        [(blocked,)] = ask(connection, self._query, {"patience": self._patience})
        if blocked:
            self._ended_at, self._ended_age = now, max(self._ended_age, connections.age())
            self._patience = min(2 * self._patience, _PATIENCE_MOST)
            connections.forget_longest()
            connections.give_way(_TICK)
