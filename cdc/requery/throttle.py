"""Limits how often short reads are made, so that they hardly slow down the database's writers.

Most of a short read's time is planning and round trips, whether it has one key or a hundred. At 1,000 commits
a second, one read for each commit would take a whole processor from the writers. So reads may take only a
share of the time. Once they have used it up, a pause follows, and one statement reads the endpoints of all
transactions that arrive during the pause. At a moderate rate of commits there is no pause.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHARE = 0.5
"""The share of the time that reads may take, unless `_MOST` makes their pauses shorter."""
_SAVED = 0.02
"""Seconds for which unused time is saved for later reads."""
_MOST = 0.005
"""Maximum length of a pause, in seconds, since a revocation may have to wait for it."""


class Reads(Protocol):
    """The reads that are throttled."""

    @property
    def busy(self) -> bool:
        """Whether any task is open."""


class Throttle:
    """Decides how long to pause between short reads. Not thread-safe."""

    def __init__(self) -> None:
        self._due = 0.0
        """The monotonic time at which the next read may begin. If it is in the past, time is saved."""

    @contextmanager
    def timed(self, requery: Reads) -> Iterator[None]:
        """Measure a read, which uses up time unless it is only a part of a long read."""
        began, asked = time.monotonic(), requery.busy
        yield
        if asked and not requery.busy:
            now = time.monotonic()
            due = max(self._due, began - _SAVED) + (now - began) / _SHARE
            self._due = min(due, now + _MOST)

    def rest(self, wait: Callable[[float], object]) -> None:
        """Wait until the next read is due. ``wait`` takes a number of seconds, and returns early when the
        thread is to end.
        """
        rest = self._due - time.monotonic()
        if rest > 0:
            wait(rest)
