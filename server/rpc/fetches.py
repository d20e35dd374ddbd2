"""Limits the memory of answers to fetches. Each answer is as large as the map, and is kept until the client
has taken it.

A frozen gateway takes nothing, and hundreds of gateways may fetch at the same time. So there is room for some
answers, and the next fetch waits until an answer has been taken or its connection has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc

_ROOM: Final = 256 * 2**20
"""Maximum size of all answers in progress, in bytes. Two answers may always be in progress."""
_LEAST: Final = 2
_COPIES: Final = 2
"""Number of copies of an answer in memory. gRPC makes a copy of its own."""


class Fetches:
    """Admits fetches in their order. Not thread-safe: it belongs to one event loop."""

    def __init__(self) -> None:
        self._under_way = 0
        self._size = 0
        """Size of the newest answer in bytes."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Wait until there is room for one more answer.

        The first call to wait is the first to be admitted.
        """
        if self._under_way >= self._most:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was granted at the same moment
                    self._end()
                raise
        else:
            self._under_way += 1
        ended: Any = lambda _: self._end()  # noqa: E731 - its type is a private one of the stubs
        context.add_done_callback(ended)

    def answered(self, size: int) -> None:
        """Record the size of an answer in bytes."""
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
