"""The walk for a client of the legacy contract, which cannot report its map: it is sent everything, newest
first.

The walk is a stack of stretches of the log. The bottom stretch is the whole log at the start. Entries that
are published later become new stretches on top. The top stretch is sent first, and each stretch from its
newest entry to its oldest. So a revocation waits neither for the replay nor for the rest of a ripple, whether
the ripple was published before or after it (`cdc.store.express`). If an endpoint has changed again, only its
newest state is sent, so a stream never returns to an older state of an endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.store.cursor import SCAN
from cdc.store.express import Overtaking
from cdc.store.log import OutlivedError, Place

if TYPE_CHECKING:
    from cdc.store.log import Entry
    from cdc.store.store import Store

_SLICE = 2_000
"""Number of entries that are searched for tombstones while the lock is held, so that it is never held for
long.
"""
_SEARCHED = 50_000
"""Maximum number of entries that one read searches for tombstones, which may be rare."""
_DEPTH = 16
"""Maximum number of separate newer stretches. If there are more, they are joined, and some entries may be
sent twice.
"""


class Replay:
    """The walk of one stream. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.lock:
            # Tombstones are searched for in the log, since a list of them for each client would take memory.
            self._deletes = _Stretch(store, 0, len(store.log))
            self._left = len(store.tombstones)
            """Upper limit of the tombstones that have not been found yet."""
            self._everything = _Stretch(store, 0, len(store.log))
            self._newer: list[_Stretch] = []
            self._covered = Place(len(store.log), store.places)
            self._overtaking = Overtaking(store.express)
            self.revision = store.head
            """When `read` has returned an empty list, all entries up to this revision have been sent."""
            self._told = store.forgotten
            """All deletes up to this revision have been returned, or were forgotten before the walk began."""

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries to send, at most ``limit``. If the list is empty, wait for the store,
        unless there is `more`.

        Raises:
            OutlivedError: the store has adopted another map, or has forgotten deletes that this walk still
                had to return.

        """
        entries: list[Entry] = []
        with self._store.lock:
            if not self._newer and not self.more:
                self._told = self.revision
            if self._covered.outlived or self._told < self._store.forgotten:
                raise OutlivedError
            self._cover()
            entries = self._overtaking.take(limit, self._store.entries)
            while self._newer and not entries:
                entries = self._newer[-1].take(limit, self._overtaking)
                if not self._newer[-1]:
                    self._newer.pop().forget()
        if not entries and self.more:
            entries = self._take_deletes(limit)
        while not entries and not self.more and self._everything:
            with self._store.lock:
                taken = self._everything.take(limit, self._overtaking)
                entries = [entry for entry in taken if entry.payload is not None]
        if not entries and not self.more:
            self._overtaking.arrived()
        return entries

    @property
    def more(self) -> bool:
        """Whether `read` should be called again at once after an empty list, because the search has not
        ended.
        """
        return self._left > 0 and bool(self._deletes)

    def close(self) -> None:
        """Remove this walk from the store."""
        with self._store.lock:
            for stretch in (*self._newer, self._deletes, self._everything):
                stretch.forget()
            self._covered.leave()

    def _cover(self) -> None:
        """Put the entries that were published since the last call onto the stack, as a new stretch."""
        store = self._store
        self.revision = store.head
        if self._covered.index == len(store.log):
            return
        if len(self._newer) < _DEPTH:
            self._newer.append(_Stretch(store, self._covered.index, len(store.log)))
        else:
            self._newer[-1].top.index = len(store.log)
        self._covered.index = len(store.log)

    def _take_deletes(self, limit: int) -> list[Entry]:
        found: list[Entry] = []
        for _ in range(0, _SEARCHED, _SLICE):
            if found or not self.more:
                break
            with self._store.lock:
                found = self._deletes.find_deletes(_SLICE, limit)
        self._left -= len(found)
        return found


class _Stretch:
    """A stretch of the log, which is sent from its end to its start; guarded by the store's lock."""

    def __init__(self, store: Store, bottom: int, top: int) -> None:
        self._store = store
        self._bottom = Place(bottom, store.places)
        self.top = Place(top, store.places)

    def __bool__(self) -> bool:
        return self.top.index > self._bottom.index

    def take(self, limit: int, overtaking: Overtaking) -> list[Entry]:
        """Return the newest live entries that have not been sent. The list may be empty even if the stretch
        has not ended.
        """
        store, top = self._store, self.top
        entries: list[Entry] = []
        stop = max(self._bottom.index, top.index - limit * SCAN)
        while top.index > stop and len(entries) < limit:
            top.index -= 1
            entry = store.log[top.index]
            if store.entries.get(entry.id) is entry and not overtaking.has_sent(entry):
                entries.append(entry)
        return entries

    def find_deletes(self, places: int, limit: int) -> list[Entry]:
        """Search the next ``places`` entries for tombstones, newest first. The list may be empty even if the
        stretch has not ended.
        """
        store, top = self._store, self.top
        found: list[Entry] = []
        stop = max(self._bottom.index, top.index - places)
        while top.index > stop and len(found) < limit:
            top.index -= 1
            entry = store.log[top.index]
            if entry.payload is None and store.tombstones.get(entry.id) is entry:
                found.append(entry)
        return found

    def forget(self) -> None:
        """Remove both ends from the store."""
        self._bottom.leave()
        self.top.leave()
