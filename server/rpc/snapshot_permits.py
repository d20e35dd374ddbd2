"""Permits for making snapshots: so many at a time, first come, first served.

A permit bounds work, not memory: what stalls does no work, so who waits for a stalled client for long gives
the permit back and asks again (see `server.rpc.endpoint_feed`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class SnapshotPermits:
    """Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[SnapshotPermit] = deque()

    def ask(self, wake: asyncio.Event) -> SnapshotPermit:
        """Take a permit, or a place in the queue; ``wake`` is set when the permit comes."""
        permit = SnapshotPermit(self, wake)
        self._waiting.append(permit)
        self._grant()
        return permit

    def _grant(self) -> None:
        while self._free and self._waiting:
            permit = self._waiting.popleft()
            self._free -= 1
            permit.held = True
            permit.wake.set()

    def _take_back(self, permit: SnapshotPermit) -> None:
        if permit.held:
            permit.held = False
            self._free += 1
            self._grant()
        elif permit in self._waiting:
            self._waiting.remove(permit)


class SnapshotPermit:
    """One client's."""

    __slots__ = ("_permits", "ended", "held", "wake")

    def __init__(self, permits: SnapshotPermits, wake: asyncio.Event) -> None:
        self._permits = permits
        self.wake = wake
        self.held = False
        """It has come, and was not given back."""
        self.ended = False

    def end(self) -> None:
        """Give the permit, or the place in the queue, back; doing it twice is fine."""
        self.ended = True
        self._permits._take_back(self)  # noqa: SLF001 (two halves of one thing)
