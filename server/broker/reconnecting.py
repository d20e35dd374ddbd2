"""The base class of threads that talk to the broker, and that connect again after each failure."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cdc.errors import PadsCdcError, fault_of_ours
from server.broker.connection import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

_RETRY_FIRST, _RETRY_MOST = 0.2, 5.0
"""Seconds between attempts to reconnect, at first and at most."""
_STOP_SECONDS: Final = 1.0


class Reconnecting(threading.Thread):
    """A thread with its own event loop. When a session with the broker ends, it begins the next one."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """End the thread. Blocks for at most a second."""
        self._stopping = True
        self._soon(self._interrupt)
        self.join(_STOP_SECONDS)

    def run(self) -> None:
        """Reconnect until `stop`."""
        with suppress(asyncio.CancelledError):
            asyncio.run(self._run())

    def _soon(self, call: Callable[[], object]) -> None:
        """Call a function in the event loop. Any thread may do this."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    async def _run(self) -> None:
        self._main, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        pause = _RETRY_FIRST
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._session()
            except asyncio.CancelledError:  # by `_interrupt`, or by the client at its end
                error: PadsCdcError = BrokerError("the connection to the broker has ended")
            except Exception as fault:  # noqa: BLE001 (the thread's boundary: it must not end silently)
                error = fault if isinstance(fault, PadsCdcError) else fault_of_ours(fault)
            else:
                continue
            if self._stopping:
                return
            self._lost(error)
            lasted = time.monotonic() - began > _RETRY_MOST
            pause = _RETRY_FIRST if lasted else min(pause * 2, _RETRY_MOST)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait for ``seconds``, or until `stop` is called."""
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._wake.clear()
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """Wait until `_wake` is set, but at most ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _interrupt(self) -> None:
        """End the session, because the thread has to stop. This implementation cancels the session's task."""
        if self._main is not None:
            self._main.cancel()

    async def _session(self) -> None:
        """Connect, and work until `stop` or until an error."""
        raise NotImplementedError

    def _lost(self, error: PadsCdcError) -> None:
        """Report why a session has ended."""
        raise NotImplementedError
