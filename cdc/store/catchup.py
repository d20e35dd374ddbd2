"""The walk for a client of the feed that cannot resume by revision: a snapshot, or a part of one.

It goes backwards through the log, newest first, and new entries (the tail) are sent before older ones. So a
new revocation never waits behind older entries. The client has a consistent map only when the backward walk
has ended and the tail has arrived at the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.store.cursor import SCAN, Cursor, Part
from cdc.store.log import OutlivedError, Place

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.store.log import Entry
    from cdc.store.store import Store


class Catchup:
    """A walk that is read like a `Cursor`. Once it is `done`, only the tail is left. Not thread-safe."""

    def __init__(self, store: Store, beyond: Lsn | None = None) -> None:
        """Walk over all live endpoints. With ``beyond``, walk over the entries and tombstones whose positions
        are beyond it.
        """
        self._store = store
        self._beyond = beyond
        self.tail = Cursor(store, express=True)
        with store.lock:
            # All entries before the tail's place belong to the backward walk, and all others to the tail.
            self._back = Place(self.tail.index, store.places)
            self._forgotten = store.forgotten
        self.done = False
        """Whether the backward walk has ended."""

    def read(self, limit: int) -> Part:
        """Return the next entries, at most ``limit``. Never waits.

        Raises:
            OutlivedError: the store has adopted another map, or has forgotten deletes that this walk still
                had to return.

        """
        part = self.tail.read(limit)
        if part.entries or part.more:
            # Even if the tail has arrived, the client's map is still incomplete.
            return Part(part.entries, more=True, arrival=None) if not self.done else part
        if not self.done:
            entries = self._read_back(limit)
            return Part(entries, more=True, arrival=None)
        return part

    def finish(self) -> Cursor:
        """End the backward walk, and return the tail."""
        with self._store.lock:
            self._back.leave()
        return self.tail

    def close(self) -> None:
        """Remove this walk from the store."""
        self.finish().close()

    def _read_back(self, limit: int) -> list[Entry]:
        store = self._store
        entries: list[Entry] = []
        with store.lock:
            # With a negative `beyond` the walk is for a standby server, which drops its old map and so needs
            # no old deletes.
            if self._beyond is not None and self._beyond >= 0 and self._forgotten < store.forgotten:
                raise OutlivedError
            stop = max(0, self._back.index - limit * SCAN)
            while self._back.index > stop and len(entries) < limit:
                self._back.index -= 1
                entry = store.log[self._back.index]
                if store.entries.get(entry.id) is entry and self._wants(entry):
                    entries.append(entry)
            self.done = self._back.index == 0
        return entries

    def _wants(self, entry: Entry) -> bool:
        return entry.payload is not None if self._beyond is None else entry.position > self._beyond
