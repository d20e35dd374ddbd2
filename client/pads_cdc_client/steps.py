"""Work in steps, so that other work in the same thread has turns in between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]
"""A generator that yields after each step of less than a millisecond, and returns the result of the work."""

_TURN_SECONDS: Final = 0.001
"""Maximum seconds of steps in one turn; other work in the event loop waits for it."""
_PAUSE_SECONDS: Final = 0.001
"""Minimum seconds between two turns. With few cores, the operating system makes a thread that never sleeps
wait for several milliseconds at a time, but not a thread that sleeps half of the time.
"""
_LOOK_SECONDS: Final = 0.5
"""Seconds between two checks whether the event loop still runs."""


class AbandonedError(Exception):
    """The remaining steps will not be taken."""


def at_once(steps: Steps[_Result]) -> _Result:
    """Take all steps in this thread, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


class Turns:
    """Takes steps in an event loop, while another thread waits for their result."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: Future[Any] = Future()

    def take(self, steps: Steps[_Result], *, hurry: bool = False) -> _Result:
        """Return the result once all steps have been taken. An error of a step is raised here.

        Call it in one thread other than the loop's. With ``hurry`` the event loop does one round of other
        work after each turn; otherwise it has a whole pause for other work.

        Raises:
            AbandonedError: `close` was called, or the event loop has ended.

        """
        ended: Future[_Result] = Future()
        with self._lock:
            if self._closed or self._loop.is_closed():
                raise AbandonedError
            self._under_way = ended
            self._loop.call_soon_threadsafe(self._turn, steps, ended, hurry)
        while not wait((ended,), _LOOK_SECONDS).done:
            # The loop may end without an error.
            if self._loop.is_closed() or (self._closed and not self._loop.is_running()):
                raise AbandonedError
        return ended.result()

    def close(self) -> None:
        """Take no further steps. A thread that waits in `take` gets an error, after the step that is
        running.
        """
        with self._lock:
            self._closed = True
            if self._loop.is_running() and not _runs_here(self._loop):
                self._loop.call_soon_threadsafe(self._abandon)
            else:
                self._abandon()

    def _abandon(self) -> None:
        if not self._under_way.done():
            self._under_way.set_exception(AbandonedError())

    def _turn(self, steps: Steps[_Result], ended: Future[_Result], hurry: bool) -> None:
        began = time.perf_counter()
        try:
            while not ended.done():  # a step may have called `close`
                next(steps)
                if (took := time.perf_counter() - began) > _TURN_SECONDS:
                    # A turn that had to wait for a core took longer, so other work gets a longer pause too.
                    pause = 0.0 if hurry else max(_PAUSE_SECONDS, took)
                    self._loop.call_later(pause, self._turn, steps, ended, hurry)
                    return
        except StopIteration as end:
            if not ended.done():
                ended.set_result(end.value)
        except BaseException as error:  # noqa: BLE001 (raised again by `take`)
            if not ended.done():
                ended.set_exception(error)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
