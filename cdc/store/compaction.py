"""Compacting the store's log little by little: a shorter one is made beside it while it goes on being walked.

What dies after it was copied stays a dead place until the next time; what is appended meanwhile is taken
over at the end. Walks stand on places of the old log until then, and are carried to where they stand in the
new one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cdc.store.log import Entry, Place


class Compaction:
    """Of one log, which may only grow meanwhile. Owned by the writer's thread."""

    def __init__(self, log: list[Entry]) -> None:
        self._old = log
        self._end = len(log)
        self._next = 0
        self._kept = array("Q")
        """Indexes in the old log of what is in the new one."""
        self._log: list[Entry] = []

    def step(self, live: Mapping[str, Entry], places: int) -> bool:
        """Look at so many more places, and keep those that are live; True once all have been looked at."""
        start, self._next = self._next, min(self._next + places, self._end)
        slice_ = self._old[start : self._next]
        kept = [index for index, entry in enumerate(slice_) if live[entry.id] is entry]
        self._kept.extend([start + index for index in kept])
        self._log.extend([slice_[index] for index in kept])
        return self._next == self._end

    def finish(self, log: list[Entry], places: Collection[Place]) -> list[Entry]:
        """Return the shorter log with what was appended meanwhile, and carry the walks to it.

        To be called under the store's lock.
        """
        for place in places:
            beyond = max(0, place.index - self._end)
            place.carry(bisect_left(self._kept, place.index) + beyond)
        self._log.extend(log[self._end :])
        return self._log
