"""Answers to fetches that are under way: each is as large as the map, and takes memory until it was taken.

A gateway that is frozen takes nothing, and hundreds may come at once. So there is room for some answers, and
the next fetch waits until one was taken, or its connection has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc

_ROOM: Final = 256 * 2**20
"""Bytes that answers under way may take, unless it is two answers that take more."""
_LEAST: Final = 2
_COPIES: Final = 2
"""gRPC has a copy of its own of what it sends."""


class Fetches:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._under_way = 0
        self._size = 0
        """Bytes of the newest answer."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Return when there is room for one more answer; first come, first served."""
        if self._under_way >= self._most:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it came at the same moment
                    self._end()
                raise
        else:
            self._under_way += 1
        ended: Any = lambda _: self._end()  # noqa: E731 - its type is a private one of the stubs
        context.add_done_callback(ended)

    def answered(self, size: int) -> None:
        """Note how large an answer is now."""
        self._size = size

    @property
    def _most(self) -> int:
        return max(_LEAST, _ROOM // (_COPIES * self._size or 1))

    def _end(self) -> None:
        self._under_way -= 1
        while self._waiting and self._under_way < self._most:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._under_way += 1
