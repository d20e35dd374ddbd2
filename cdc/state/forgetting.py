"""Forgets deletes that are older than TOMBSTONE_RETENTION: ids that come and go must not fill the memory.

A tombstone has no date. Instead the newest revision is noted a few times in each retention, as a *mark*. When
a mark is as old as the retention, so is every tombstone up to its revision. No valid token needs these
tombstones, because tokens expire after the same time. But a token may be younger than its map, for example a
token from a relay that was cut off. So a token's revision is checked too (`Origin.forgotten`).

Example, with a retention of 24 hours: at 10:00 the newest revision is 500, and at 11:00 it is 620. On the
next day at 10:00 the tombstones up to 500 go, and at 11:00 those up to 620.

A process measures the age of a mark by the monotonic clock, so that no change of the wall clock matters. The
state file has the ages, and the wall clock's time. From one process to the next a mark ages by what the wall
clock has advanced, or not at all if it was set back.
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
"""Marks in each retention. Tombstones last longer than the retention by up to one part in so many."""


class Marks:
    """Which revision was the newest at which time."""

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
        """Set a mark, if it is time for one; returns whether it was. ``head`` is the newest revision."""
        now, marks = self._clock(), self._marks
        if math.isinf(self._retention) or (marks and now - marks[-1][0] < self._retention / _MARKS):
            return False
        while marks and marks[0][0] <= now - self._retention:
            self.due = max(self.due, marks.popleft()[1])
        marks.append((now, head))
        return True

    def clear(self) -> None:
        """Forget all marks: revisions begin anew."""
        self._marks.clear()
        self.due = Revision(0)

    def note(self) -> str:
        """Return the marks as text: the wall clock's time, and each mark's age and revision."""
        now = self._clock()
        return " ".join(
            [f"{self._wall():.3f}", *(f"{now - at:.3f}:{revision}" for at, revision in self._marks)]
        )

    def restore(self, note: str) -> None:
        """Take the marks of an earlier process, from `note`."""
        written, *marks = note.split()
        began = self._clock() - max(0.0, self._wall() - float(written))
        for age, _, revision in (mark.partition(":") for mark in marks):
            self._marks.append((began - float(age), Revision(int(revision))))


class Forgetting:
    """Sets marks, and forgets deletes when they are old enough. Owned by the applier's thread."""

    def __init__(self, store: Store, ledger: Ledger, origin: CurrentOrigin, marks: Marks) -> None:
        """Go on with the marks of the state file, if they are of the same epoch."""
        self._store = store
        self._ledger = ledger
        self._origin = origin
        self._marks = marks
        self._epoch = ledger.epoch
        epoch, _, note = ledger.kept.marks.partition(" ")
        if note and epoch == ledger.epoch:
            marks.restore(note)

    def step(self, *, leading: bool = True) -> None:
        """Set a mark, and forget what is old enough, if it is time for that.

        A standby server sets marks as well, so that a takeover does not begin the retention anew. It forgets
        when its leader does.
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
