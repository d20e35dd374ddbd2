"""Permits for making snapshots. Their number is limited, and they are granted in the order of the requests.

A permit limits work, not memory. A stalled client causes no work. So if a client takes nothing for a long
time, its stream gives the permit back and asks again (see `server.rpc.endpoint_feed`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class SnapshotPermits:
    """Hands out permits. Not thread-safe: it belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[SnapshotPermit] = deque()

    def ask(self, wake: asyncio.Event) -> SnapshotPermit:
        """Return a permit, which may still wait in the queue. ``wake`` is set when it is granted."""
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
    """The permit of one client, granted or still waiting."""

    __slots__ = ("_permits", "ended", "held", "wake")

    def __init__(self, permits: SnapshotPermits, wake: asyncio.Event) -> None:
        self._permits = permits
        self.wake = wake
        self.held = False
        """Whether it has been granted and not been given back."""
        self.ended = False

    def end(self) -> None:
        """Give back the permit, or the place in the queue. It may be called twice."""
        self.ended = True
        self._permits._take_back(self)  # noqa: SLF001 (two halves of one thing)
