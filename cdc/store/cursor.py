"""Walks over the store: a subscriber is only a place in the log.

`Cursor` walks forward from a revision, for the tail of every stream. Its target is the store's head at the
start. If an endpoint changes again before the cursor has reached its entry, the new entry is beyond the
target, so the new head becomes the target. When the cursor arrives at its target, the returned entries lead
exactly from one map of the store to another. (PADS put every change into a queue for each client, which
filled up.)

Example: the log is a1 b2 c3, and a cursor starts after revision 0 with the target 3. It returns a1. Then b
changes, which makes the log a1 (b2) c3 b4. The cursor finds that b2 is dead, so its target becomes 4. It
returns c3 and b4, and has arrived at the map of revision 4.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from cdc.store.express import Overtaking
from cdc.store.log import OutlivedError, Place

if TYPE_CHECKING:
    from cdc.store.log import Entry
    from cdc.store.store import Cut, Store
    from cdc.units import Revision

SCAN = 4
"""Maximum number of entries that one read looks at, as a multiple of its limit. It never holds the lock for
long.
"""

_revision = attrgetter("revision")


@dataclass(frozen=True, slots=True)
class Part:
    """The entries of one step of a walk. No id is in it twice."""

    entries: list[Entry]
    more: bool
    """Whether the next read can return more without waiting."""
    arrival: Cut | None
    """The store's map, if the reader's map is equal to it after these entries; otherwise None."""

    @property
    def cut(self) -> Cut | None:
        """`arrival`, if that map is also consistent; otherwise None."""
        return self.arrival if self.arrival is not None and self.arrival.consistent else None


class Cursor(Place):
    """Walks forward over all entries after a revision, without an end. Not thread-safe."""

    __slots__ = ("_overtaking", "_target", "revision", "store")

    def __init__(self, store: Store, after: Revision | None = None, *, express: bool = False) -> None:
        """Start after revision ``after``, by default at the head.

        With ``express``, small changes are returned before other entries, as clients need. Without it,
        entries are returned in the order of their revisions.
        """
        self.store = store
        with store.lock:
            self.revision = store.head if after is None else after
            self._target: Revision | None = None
            self._overtaking = Overtaking(store.express) if express else None
            super().__init__(bisect_right(store.log, self.revision, key=_revision), store.places)

    def close(self) -> None:
        """Remove this walk from the store."""
        with self.store.lock:
            self.leave()

    def carry(self, index: int) -> None:
        """Move to another index. Dropped entries may have changed again, so the head becomes the target."""
        super().carry(index)
        if self._target is not None:
            self._target = self.store.head

    def read(self, limit: int) -> Part:
        """Return the next entries, at most ``limit``. Never waits.

        Raises:
            OutlivedError: the store has adopted another map, or has forgotten deletes that this walk still
                had to return.

        """
        store = self.store
        with store.lock:
            if self.outlived or self.revision < store.forgotten:
                raise OutlivedError
            if self._target is None:
                self._target = store.head
            log, overtaking = store.log, self._overtaking
            if overtaking is not None and (entries := self._overtake(overtaking, limit)):
                self._target = store.head  # the entries may be newer than the target
                return Part(entries, more=True, arrival=None)
            entries = self._walk(limit)
            if self.index < len(log) and log[self.index].revision <= self._target:
                return Part(entries, more=True, arrival=None)
            self.revision, self._target = self._target, None
            if overtaking is not None and self.index == len(log):
                overtaking.arrived()
            more = self.revision < store.head
            if more:  # the map of an older head is not kept, so the walk continues to the current head
                return Part(entries, more, arrival=None)
            return Part(entries, more, store.cut())

    def _overtake(self, overtaking: Overtaking, limit: int) -> list[Entry]:
        """Return entries of the express list, unless the next step reaches the end of the log anyway."""
        if len(self.store.log) - self.index > limit:
            return overtaking.take(limit, self.store.entries)
        overtaking.skip()
        return []

    def _walk(self, limit: int) -> list[Entry]:
        """Return the next live entries up to the target. If an entry is dead, the head becomes the target."""
        entries: list[Entry] = []
        log, live, overtaking = self.store.log, self.store.entries, self._overtaking
        stop = min(len(log), self.index + limit * SCAN)
        while self.index < stop and len(entries) < limit:
            entry = log[self.index]
            if self._target is None or entry.revision > self._target:
                break
            self.index += 1
            if live.get(entry.id) is not entry:
                self._target = self.store.head
            elif overtaking is None or not overtaking.has_sent(entry):
                entries.append(entry)
        return entries
