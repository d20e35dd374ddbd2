"""What a client of the old contract is sent, who cannot say what it holds: everything, and what is newest
always first.

The stream is a stack of stretches of the log. At the bottom lies everything that the client may lack; what is
published meanwhile is a new stretch on top. Each stretch is handed out from its newest entry to its oldest,
and the top one first: a revocation waits neither for the replay nor for the rest of a ripple, be it published
before or after it (`cdc.store.express`). An entry that has moved on is left to the stretch where it stands
now, so no id ever goes back on a stream.
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
"""Places that are searched for tombstones at a time: the lock is never held for long."""
_SEARCHED = 50_000
"""Places that one read searches for tombstones, which may be few among many."""
_DEPTH = 16
"""Stretches that are kept apart; more are joined, at the price of sending some entries twice."""


class Replay:
    """One stream's walk. Not for two threads at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.lock:
            # Tombstones are searched for in the log: each client would have a list of all of them otherwise.
            self._deletes = _Stretch(store, 0, len(store.log))
            self._left = len(store.tombstones)
            """Tombstones that there may still be."""
            self._everything = _Stretch(store, 0, len(store.log))
            self._newer: list[_Stretch] = []
            self._covered = Place(len(store.log), store.places)
            self._overtaking = Overtaking(store.express)
            self.revision = store.head
            """Up to here everything has been handed out, once `read` has returned nothing."""

    def read(self, limit: int) -> list[Entry]:
        """Take at most ``limit`` entries to send next; empty when there is nothing until the store wakes
        us, unless there is `more`.

        Raises:
            OutlivedError: the store has adopted another map.

        """
        entries: list[Entry] = []
        with self._store.lock:
            if self._covered.outlived:
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
        """Whether `read` may have more at once, though it found nothing: the log is still being searched."""
        return self._left > 0 and bool(self._deletes)

    def close(self) -> None:
        """Let the store forget this walk."""
        with self._store.lock:
            for stretch in (*self._newer, self._deletes, self._everything):
                stretch.forget()
            self._covered.leave()

    def _cover(self) -> None:
        """Put what was published since the last time on top."""
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
    """A piece of the log that is handed out from its end; guarded by the store's lock."""

    def __init__(self, store: Store, bottom: int, top: int) -> None:
        self._store = store
        self._bottom = Place(bottom, store.places)
        self.top = Place(top, store.places)

    def __bool__(self) -> bool:
        return self.top.index > self._bottom.index

    def take(self, limit: int, overtaking: Overtaking) -> list[Entry]:
        """Take the newest entries that are not dead, and were not handed out already; may be none though more
        are left.
        """
        store, top = self._store, self.top
        entries: list[Entry] = []
        stop = max(self._bottom.index, top.index - limit * SCAN)
        while top.index > stop and len(entries) < limit:
            top.index -= 1
            entry = store.log[top.index]
            if store.entries[entry.id] is entry and not overtaking.has_sent(entry):
                entries.append(entry)
        return entries

    def find_deletes(self, places: int, limit: int) -> list[Entry]:
        """Look for tombstones, the newest first, in so many places; may be none though more are left."""
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
        """Let the store forget both ends."""
        self._bottom.leave()
        self.top.leave()
