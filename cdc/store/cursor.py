"""Walks over the store: a subscriber is a place in the log, nothing more.

`Cursor` walks forward from a revision, for the tail of every stream. A walk is a *cut*: it aims at the head
of the moment, and when an entry that it has not reached yet moves beyond that head, it aims at the new head.
So when it arrives, what it has handed out is the difference between two maps that existed (PADS handed out
every step, in a queue that filled up).
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
"""Dead places that one read may pass over, in multiples of its limit: the lock is never held for long."""

_revision = attrgetter("revision")


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of a walk, no id twice."""

    entries: list[Entry]
    more: bool
    """More can be read at once."""
    arrival: Cut | None
    """Set when, after these entries, the reader holds what the store holds."""

    @property
    def cut(self) -> Cut | None:
        """Set when the reader then holds a map that existed."""
        return self.arrival if self.arrival is not None and self.arrival.consistent else None


class Cursor(Place):
    """Walks forward over everything after a revision, for ever. Not for two threads at once."""

    __slots__ = ("_overtaking", "_target", "revision", "store")

    def __init__(self, store: Store, after: Revision | None = None, *, express: bool = False) -> None:
        """Stand behind revision ``after``; the present head if None.

        ``express`` is for a client, which wants a revocation before the rest of a ripple: without it entries
        come in the order of their revisions.
        """
        self.store = store
        with store.lock:
            self.revision = store.head if after is None else after
            self._target: Revision | None = None
            self._overtaking = Overtaking(store.express) if express else None
            super().__init__(bisect_right(store.log, self.revision, key=_revision), store.places)

    def close(self) -> None:
        """Let the store forget this walk."""
        with self.store.lock:
            self.leave()

    def carry(self, index: int) -> None:
        """Stand at another index; what was dropped may have moved on, so the walk aims at the new head."""
        super().carry(index)
        if self._target is not None:
            self._target = self.store.head

    def read(self, limit: int) -> Part:
        """Take at most ``limit`` entries; never waits.

        Raises:
            OutlivedError: the store has adopted another map.

        """
        store = self.store
        with store.lock:
            if self.outlived:
                raise OutlivedError
            if self._target is None:
                self._target = store.head
            log, overtaking = store.log, self._overtaking
            if overtaking is not None and (entries := self._overtake(overtaking, limit)):
                self._target = store.head  # of a revision beyond what the walk aims at, perhaps
                return Part(entries, more=True, arrival=None)
            entries = self._walk(limit)
            if self.index < len(log) and log[self.index].revision <= self._target:
                return Part(entries, more=True, arrival=None)
            self.revision, self._target = self._target, None
            if overtaking is not None and self.index == len(log):
                overtaking.arrived()
            more = self.revision < store.head
            if more:  # what an older head was like is not kept; the walk to the present one follows at once
                return Part(entries, more, arrival=None)
            return Part(entries, more, store.cut())

    def _overtake(self, overtaking: Overtaking, limit: int) -> list[Entry]:
        """Take what goes before its turn; nothing if all that there is comes now in any case."""
        if len(self.store.log) - self.index > limit:
            return overtaking.take(limit, self.store.entries)
        overtaking.skip()
        return []

    def _walk(self, limit: int) -> list[Entry]:
        """Take the next entries up to the target, and aim at the head if one of them has moved on."""
        entries: list[Entry] = []
        log, live, overtaking = self.store.log, self.store.entries, self._overtaking
        stop = min(len(log), self.index + limit * SCAN)
        while self.index < stop and len(entries) < limit:
            entry = log[self.index]
            if self._target is None or entry.revision > self._target:
                break
            self.index += 1
            if live[entry.id] is not entry:
                self._target = self.store.head
            elif overtaking is None or not overtaking.has_sent(entry):
                entries.append(entry)
        return entries
