"""What a client of the feed is sent that cannot resume by revision: a snapshot, or a part of one.

It is walked backwards, newest first, while the tail goes before it: what is revoked now never waits behind
what was revoked yesterday. Only when the walk back has ended and the tail has arrived at the head does the
client hold a map that existed; before that there is no cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.store.cursor import SCAN, Cursor, Part
from cdc.store.log import Place

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.store.log import Entry
    from cdc.store.store import Store


class Catchup:
    """Reads like a `Cursor`, and ends as one: once `done`, the tail is all there is. Not for two threads at
    once.
    """

    def __init__(self, store: Store, beyond: Lsn | None = None) -> None:
        """Hand out all live endpoints; or, given a position, the entries and tombstones that a transaction
        beyond it has named.
        """
        self._store = store
        self._beyond = beyond
        self.tail = Cursor(store, express=True)
        with store.lock:
            # The tail is younger than what stands before its place: together they are everything, once.
            self._back = Place(self.tail.index, store.places)
        self.done = False
        """What was there at the start has been handed out, or has moved and comes with the tail."""

    def read(self, limit: int) -> Part:
        """Take at most ``limit`` entries; never waits."""
        part = self.tail.read(limit)
        if part.entries or part.more:
            # More will always come from here, even if the tail has arrived: its cut is not the client's yet.
            return Part(part.entries, more=True, arrival=None) if not self.done else part
        if not self.done:
            entries = self._read_back(limit)
            return Part(entries, more=True, arrival=None)
        return part

    def finish(self) -> Cursor:
        """Go on with the tail alone."""
        with self._store.lock:
            self._back.leave()
        return self.tail

    def close(self) -> None:
        """Let the store forget this walk."""
        self.finish().close()

    def _read_back(self, limit: int) -> list[Entry]:
        store = self._store
        entries: list[Entry] = []
        with store.lock:
            stop = max(0, self._back.index - limit * SCAN)
            while self._back.index > stop and len(entries) < limit:
                self._back.index -= 1
                entry = store.log[self._back.index]
                if store.entries[entry.id] is entry and self._wants(entry):
                    entries.append(entry)
            self.done = self._back.index == 0
        return entries

    def _wants(self, entry: Entry) -> bool:
        return entry.payload is not None if self._beyond is None else entry.position > self._beyond
