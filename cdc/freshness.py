"""Freshness: the applier's positions, and the staleness of the map.

Staleness is the time since the map last included every transaction up to an end of WAL that the *server
itself* had reported. It is not derived from the stream, because a silent stream looks the same when nothing
happens and when the connection is dead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Positions:
    """All positions at one moment.

    ``server_end`` is the newest end of WAL that the slot's server reported. The other positions are ours. A
    position is 0 while it is unknown.
    """

    server_end: Lsn
    received: Lsn
    applied: Lsn
    confirmed: Lsn
    replayed: Lsn | None = None
    """The position up to which the query server has replayed WAL; None if it is the slot's server, a primary,
    or unreachable.
    """


class Freshness:
    """The positions and the staleness. All threads share one instance, and a lock keeps each reading
    consistent.

    The clock is monotonic, because a wall clock that jumps must not make a stale map look fresh.
    """

    _KEEP = 3600
    """Maximum number of reported ends of WAL that are kept until the map reaches them: one a second for an
    hour. Dropping older ones can only overstate staleness.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._exact_at: float | None = None
        self._reported: deque[tuple[float, Lsn]] = deque(maxlen=self._KEEP)
        self._server_end = self._received = self._applied = self._confirmed = Lsn(0)
        self._replayed: Lsn | None = None
        self._lossy = False
        """Whether changes of some table never arrive, so that the stream alone does not keep the map exact.
        """
        self._heard_at = self._started

    def silence(self) -> float:
        """Seconds since the slot's server last answered, or since the start."""
        with self._lock:
            return self._clock() - self._heard_at

    def reported(self, server_end: Lsn, asked_at: float) -> None:
        """Record an end of WAL that the slot's server reported. ``asked_at`` is the monotonic time just
        before the server was asked.
        """
        with self._lock:
            self._server_end = server_end
            self._heard_at = asked_at
            self._reported.append((asked_at, server_end))
            self._settle()

    def received(self, lsn: Lsn) -> None:
        """Record that the stream has been read up to ``lsn``."""
        with self._lock:
            self._received = max(self._received, lsn)

    def applied(self, lsn: Lsn, *, lossy: bool = False) -> None:
        """Record that every transaction up to ``lsn`` is in the store. ``lossy`` says that the map may still
        be inexact, because changes of some table never arrive.
        """
        with self._lock:
            self._lossy = lossy
            self._applied = max(self._applied, lsn)
            self._received = max(self._received, lsn)
            self._settle()

    def confirmed(self, lsn: Lsn) -> None:
        """Record the position up to which the slot was confirmed."""
        with self._lock:
            self._confirmed = max(self._confirmed, lsn)

    def replayed(self, lsn: Lsn | None) -> None:
        """Record the position up to which the query server has replayed WAL; None if it is a primary or does
        not answer.
        """
        with self._lock:
            self._replayed = lsn

    def exact(self, at: float) -> None:
        """Record that a reconcile that began at the monotonic time ``at`` has been applied."""
        with self._lock:
            self._exact_at = max(at, self._exact_at or at)

    def rewound(self) -> None:
        """Forget all positions, because the server has another history after a restore or a failover."""
        with self._lock:
            self._reported.clear()
            self._server_end = self._received = self._applied = self._confirmed = Lsn(0)

    def positions(self) -> Positions:
        """Read all positions at one moment."""
        with self._lock:
            return Positions(
                self._server_end,
                self._received,
                self._applied,
                self._confirmed,
                self._replayed,
            )

    def staleness(self) -> float:
        """Seconds since the map was last known to be exact, or since the start if it never was; 0.0 while it
        is caught up.
        """
        with self._lock:
            if self._exact_at is None:
                return self._clock() - self._started
            age = self._clock() - self._exact_at
            behind = self._reported[0][0] if self._reported else None
            if self._lossy:
                return age
            # Every reported end has been reached, and the newest report is recent.
            return 0.0 if behind is None and age <= self.FRESH_SECONDS else age

    def stream_behind(self) -> float:
        """Seconds since the server reported the oldest end of WAL that is not applied yet; 0.0 if there is
        none.
        """
        with self._lock:
            return self._clock() - self._reported[0][0] if self._reported else 0.0

    FRESH_SECONDS = 2.5
    """The server is asked each second. While the newest report is younger than this and the map has reached
    it, staleness is 0.
    """

    def _settle(self) -> None:
        while self._reported and self._reported[0][1] <= self._applied:
            at, _ = self._reported.popleft()
            if not self._lossy:
                self._exact_at = max(at, self._exact_at or at)
