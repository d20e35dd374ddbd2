"""The requests that a client sends on one stream: the opening, then its newest acknowledgement."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_TICK = 0.5
"""Seconds between two checks whether the server is still alive."""
PACE = 0.1
"""Minimum time between acknowledgements, in seconds. An acknowledgement includes all earlier ones."""

_Request = TypeVar("_Request", pb.WatchRequest, pb.MirrorRequest)


class Outbox(Generic[_Request]):
    """An iterator of requests for gRPC, which reads it in a separate thread. It ends after `close`."""

    def __init__(self, opening: _Request, tick: Callable[[], None], pace: float = PACE) -> None:
        """Begin with ``opening``. ``tick`` is called twice a second, in gRPC's thread."""
        self._pace = pace
        self._next: _Request | None = opening
        self._tick = tick
        self._closed = threading.Event()
        self._changed = threading.Condition()

    def put(self, acknowledge: _Request) -> None:
        """Send this request. It replaces an acknowledgement that still waits to be sent. Does not block."""
        with self._changed:
            if self._next is None or self._next.HasField("acknowledge"):
                self._next = acknowledge
                self._changed.notify()

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()
        with self._changed:
            self._changed.notify()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Request:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed.is_set(), _TICK)
                request, self._next = self._next, None
            if request is not None:
                if request.HasField("acknowledge"):
                    self._closed.wait(self._pace)
                return request
            self._tick()
        raise StopIteration


class LoopOutbox:
    """Like `Outbox`, but for `grpc.aio`, which reads the requests in the event loop."""

    def __init__(self, opening: pb.WatchRequest, tick: Callable[[], None]) -> None:
        """Begin with ``opening``. ``tick`` is called twice a second, in the loop."""
        self._next = opening
        self._tick = tick
        self._changed = asyncio.Event()

    def put(self, acknowledge: pb.WatchRequest) -> None:
        """Send this request. It replaces an acknowledgement that still waits to be sent."""
        self._next = acknowledge
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[pb.WatchRequest]:
        yield self._next
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), _TICK)
            except TimeoutError:
                self._tick()
                continue
            await asyncio.sleep(PACE)
            self._changed.clear()
            yield self._next
