"""Forgets deletes that are older than TOMBSTONE_RETENTION. Otherwise ids that come and go would fill the
memory.

A tombstone has no date. Instead the newest revision is noted several times in each retention time, as a
*mark*. When a mark is older than the retention time, every tombstone up to the mark's revision is older too.
No valid token needs these tombstones, because tokens expire after the same time. But a token may be younger
than its map, for example if it comes from a relay that was cut off. So a token's revision is checked too
(`Origin.forgotten`).

Example with a retention time of 24 hours: at 10:00 the newest revision is 500, and at 11:00 it is 620. On the
next day the tombstones up to 500 are removed at 10:00, and those up to 620 at 11:00.

A process measures the age of a mark by the monotonic clock, so that changes of the wall clock do not matter.
The state file contains the ages and the wall clock's time. When the next process starts, the ages grow by the
time that the wall clock has advanced, or do not grow if the wall clock was set back.
"""

from __future__ import annotations

import math
import time
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.state.ledger import Ledger
    from cdc.state.origin import CurrentOrigin
    from cdc.store.store import Store

_MARKS = 24
"""Number of marks in each retention time. Its inverse is the maximum fraction of the retention time by which
a tombstone is kept too long.
"""


class Marks:
    """The marks: pairs of a time and the newest revision at that time."""

    def __init__(
        self,
        retention: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``retention`` is in seconds; with ``math.inf`` nothing is ever due."""
        self._retention = retention
        self._clock = clock
        self._wall = wall
        self._marks: deque[tuple[float, Revision]] = deque()
        self.due = Revision(0)
        """Every change up to this revision is at least as old as the retention."""

    def set(self, head: Revision) -> bool:
        """Set a mark if one is due. Return whether a mark was set. ``head`` is the newest revision."""
        now, marks = self._clock(), self._marks
        if math.isinf(self._retention) or (marks and now - marks[-1][0] < self._retention / _MARKS):
            return False
        while marks and marks[0][0] <= now - self._retention:
            self.due = max(self.due, marks.popleft()[1])
        marks.append((now, head))
        return True

    def clear(self) -> None:
        """Forget all marks, because a new epoch's revisions begin."""
        self._marks.clear()
        self.due = Revision(0)

    def note(self) -> str:
        """Return the marks as text: the wall clock's time, and each mark's age and revision."""
        now = self._clock()
        return " ".join(
            [f"{self._wall():.3f}", *(f"{now - at:.3f}:{revision}" for at, revision in self._marks)]
        )

    def restore(self, note: str) -> None:
        """Adopt the marks of an earlier process from its `note`."""
        written, *marks = note.split()
        began = self._clock() - max(0.0, self._wall() - float(written))
        for age, _, revision in (mark.partition(":") for mark in marks):
            self._marks.append((began - float(age), Revision(int(revision))))


class Forgetting:
    """Sets marks, and forgets deletes that are old enough. Owned by the applier's thread."""

    def __init__(self, store: Store, ledger: Ledger, origin: CurrentOrigin, marks: Marks) -> None:
        """Continue with the marks of the state file if they belong to the current epoch."""
        self._store = store
        self._ledger = ledger
        self._origin = origin
        self._marks = marks
        self._epoch = ledger.epoch
        epoch, _, note = ledger.kept.marks.partition(" ")
        if note and epoch == ledger.epoch:
            marks.restore(note)

    def step(self, *, leading: bool = True) -> None:
        """If a mark is due, set it and forget the deletes that are old enough.

        A standby server sets marks as well, so that the retention time does not start again after a takeover.
        It forgets deletes when its leader does.
        """
        epoch, store = self._ledger.epoch, self._store
        if epoch != self._epoch:  # the revisions may be another server's
            self._epoch = epoch
            self._marks.clear()
        if not self._marks.set(store.head):
            return
        self._ledger.note(marks=f"{epoch} {self._marks.note()}")
        if not leading:
            return
        due = self._marks.due
        newest = max(map(attrgetter("position"), store.tombstones_up_to(due)), default=None)
        if newest is not None:
            self._ledger.note(forgotten=due)
            self._origin.forgets(due, newest)  # before they are gone, since other threads judge tokens
            store.forget(due)
