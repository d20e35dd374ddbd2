"""SnapshotPermits at making snapshots: so many at a time, first come, first served.

A turn bounds work, not memory: what stalls does no work, so who waits for a stalled client for long gives
the turn back and asks again (see `server.rpc.endpoint_feed`).
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
        self._waiting: deque[Turn] = deque()

    def ask(self, wake: asyncio.Event) -> Turn:
        """Take a turn, or a place in the queue; ``wake`` is set when the turn comes."""
        turn = Turn(self, wake)
        self._waiting.append(turn)
        self._grant()
        return turn

    def _grant(self) -> None:
        while self._free and self._waiting:
            turn = self._waiting.popleft()
            self._free -= 1
            turn.held = True
            turn.wake.set()

    def _take_back(self, turn: Turn) -> None:
        if turn.held:
            turn.held = False
            self._free += 1
            self._grant()
        elif turn in self._waiting:
            self._waiting.remove(turn)


class Turn:
    """One client's."""

    __slots__ = ("_turns", "ended", "held", "wake")

    def __init__(self, turns: SnapshotPermits, wake: asyncio.Event) -> None:
        self._turns = turns
        self.wake = wake
        self.held = False
        """It has come, and was not given back."""
        self.ended = False

    def end(self) -> None:
        """Give the turn, or the place in the queue, back; doing it twice is fine."""
        self.ended = True
        self._turns._take_back(self)  # noqa: SLF001 (two halves of one thing)
