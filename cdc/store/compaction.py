"""Compacts the store's log in small steps. A shorter log is built while walks continue in the current one.

If an entry dies after it was copied, it stays in the log until the next compaction. Entries that are appended
during the compaction are copied at its end. Then all places are moved to the same entries in the new log.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cdc.store.log import Entry, Place


class Compaction:
    """One compaction of one log.

    Until its end, the log may only be appended to. Used by the writer's thread.
    """

    def __init__(self, log: list[Entry]) -> None:
        self._old = log
        self._end = len(log)
        self._next = 0
        self._kept = array("Q")
        """For each entry of the new log, its index in the old log."""
        self._log: list[Entry] = []

    def step(self, live: Mapping[str, Entry], places: int) -> bool:
        """Look at the next ``places`` entries and copy the live ones. Return True after the last one."""
        start, self._next = self._next, min(self._next + places, self._end)
        slice_ = self._old[start : self._next]
        kept = [index for index, entry in enumerate(slice_) if live.get(entry.id) is entry]
        self._kept.extend([start + index for index in kept])
        self._log.extend([slice_[index] for index in kept])
        return self._next == self._end

    def finish(self, log: list[Entry], places: Collection[Place]) -> list[Entry]:
        """Return the shorter log, and move the walks to it. It includes the entries that were appended during
        the compaction.

        The caller holds the store's lock.
        """
        for place in places:
            beyond = max(0, place.index - self._end)
            place.carry(bisect_left(self._kept, place.index) + beyond)
        self._log.extend(log[self._end :])
        return self._log
