"""Work in steps, so that whoever shares a thread with it has turns in between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]
"""Yields after each step of less than a millisecond; returns what the work led to."""

_TURN_SECONDS: Final = 0.001
"""How long others wait for us at most."""
_PAUSE_SECONDS: Final = 0.001
"""How long we wait for others then, at least. Where cores are short, the operating system makes a thread that
never sleeps wait for several milliseconds at once; it lets one through that sleeps half of the time.
"""
_LOOK_SECONDS: Final = 0.5
"""Between looks whether the event loop still runs."""


class AbandonedError(Exception):
    """The rest of the steps is not taken."""


def at_once(steps: Steps[_Result]) -> _Result:
    """Take all steps, here."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


class Turns:
    """Takes steps in an event loop, while another thread waits for their end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: Future[Any] = Future()

    def take(self, steps: Steps[_Result], *, hurry: bool = False) -> _Result:
        """Return once all steps were taken; called by one other thread. What a step raises is raised here.

        With ``hurry`` others have a round of the event loop after each turn, and else a whole pause.

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
            # Its loop may end without a word.
            if self._loop.is_closed() or (self._closed and not self._loop.is_running()):
                raise AbandonedError
        return ended.result()

    def close(self) -> None:
        """Take no further steps; whoever waits in `take` is let go, after a step that runs."""
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
                    # A turn that had to wait for a core took longer: others have as much to make up for.
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
