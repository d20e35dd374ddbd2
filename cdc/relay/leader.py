"""A relay's view of its leader: the leader's revision and position, and the staleness of the relay's map.

The leader sends its state in *heads*, and its changes in *lines*: unbroken chains of pages. `cdc.relay.pages`
defines both.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from cdc.freshness import Freshness, Positions
from cdc.lsn import Lsn
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.relay.pages import Head

HEAD_SECONDS: Final = 1.0
"""Interval, in seconds, at which a leader sends a head."""
_MARGIN: Final = 1.0
"""Maximum time from the making of a head to its arrival, in seconds."""


class LeaderFreshness(Freshness):
    """A relay's staleness: the leader's staleness plus the age of the leader's last head.

    A relay has no WAL, so the inherited positions are the leader's revisions. `positions` returns the WAL
    positions that the leader reported.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        super().__init__(clock)
        self._monotonic = clock
        self._wall = wall
        self._heads = threading.Lock()
        self._head: Head | None = None
        self._revision = Revision(0)
        self._waiting: list[tuple[float, Revision]] = []
        self.reached_at = 0.0
        """The last monotonic time at which this relay is known to have had the leader's newest revision."""
        self.heard_at: float | None = None
        """Monotonic time of the leader's last head; None before the first one."""

    def heard(self, head: Head, *, live: bool) -> None:
        """Apply a head of the leader. If it is ``live``, it has just been sent. Otherwise the broker had
        stored it, and its age is computed from the two wall clocks.
        """
        now = self._monotonic()
        age = 0.0 if live else max(0.0, self._wall() - head.at)
        with self._heads:
            self._head = head
            if live:
                self.heard_at = now
                self._waiting = [*self._waiting[-9:], (now - _MARGIN, head.revision)]
        self.reported(Lsn(head.revision), now - age - head.staleness)
        self._look()

    def arrived(self, revision: Revision) -> None:
        """Record that the map is now equal to the leader's map of this revision."""
        with self._heads:
            self._revision = revision
        self.applied(Lsn(revision))
        self._look()

    def other_line(self) -> None:
        """Forget all revisions, because the map now comes from another line of pages."""
        with self._heads:
            self._head, self._waiting, self._revision = None, [], Revision(0)
        self.rewound()

    @property
    def behind(self) -> int | None:
        """Number of revisions by which this relay is behind its leader; None while the leader is unknown."""
        with self._heads:
            return None if self._head is None else max(0, self._head.revision - self._revision)

    def positions(self) -> Positions:
        """Return the positions that the leader reported, in bytes of WAL."""
        with self._heads:
            head = self._head
        if head is None:
            return Positions(Lsn(0), Lsn(0), Lsn(0), Lsn(0))
        return Positions(head.server_end, head.position, head.position, Lsn(0))

    def _look(self) -> None:
        with self._heads:
            while self._waiting and self._waiting[0][1] <= self._revision:
                self.reached_at = max(self.reached_at, self._waiting.pop(0)[0])
