"""Work that is done in steps, so that other work in the same event loop can run in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")
Steps = Generator[None, None, _Result]
"""A generator that yields after each step of less than a millisecond, and returns the result of the work."""

_TURN_SECONDS: Final = 0.001
"""Maximum duration of the steps of one turn, in seconds. Other work in the event loop waits for a turn's end.
"""
_PAUSE_SECONDS: Final = 0.001
"""Minimum number of seconds between two turns. If there are few cores and a thread never sleeps, the
operating system suspends it for several milliseconds at a time. It does not suspend a thread that sleeps half
of the time.
"""
_STEP: Final = 8
"""Number of endpoints in one step. A step takes some 25 us."""


def portions(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Cut the items into lists; one step processes one list."""
    iterator = iter(items)
    while portion := list(islice(iterator, _STEP)):
        yield portion


def at_once(steps: Steps[_Result]) -> _Result:
    """Take all steps in this thread, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


async def in_turns(steps: Steps[_Result], hurry: Callable[[], bool]) -> _Result:
    """Take all steps in the running event loop, a turn at a time, and return the result.

    After each turn, other work can run: for a whole pause, or only for one round of the loop if ``hurry()``
    is true.
    """
    began = time.perf_counter()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
        if (took := time.perf_counter() - began) > _TURN_SECONDS:
            # A turn that had to wait for a core took longer, so other work gets a longer pause too.
            await asyncio.sleep(0 if hurry() else max(_PAUSE_SECONDS, took))
            began = time.perf_counter()
