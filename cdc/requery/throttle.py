"""Limits how often short reads are made, so that they hardly slow down the database's writers.

Most of a short read's time is planning and round trips, whether it has one key or a hundred. At 1,000 commits
a second, one read for each commit would take a whole processor from the writers. So each read owes a pause,
and one statement reads the endpoints of all transactions that arrive during the pause. Time that passed
without a read, a moment ago, counts as a pause: at a moderate rate of commits none of them waits.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHARE = 1.0
"""A read owes a pause of this many times its own length, so that reads take at most half of the time."""
_SAVED = 0.02
"""Seconds without a read that count as pauses of later reads, at most."""
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
        """When the reads so far have had all their pauses. In the past, time is saved for later reads."""

    @contextmanager
    def timed(self, requery: Reads) -> Iterator[None]:
        """Measure a read. It owes a pause, unless it was only a part of a long read."""
        began, asked = time.monotonic(), requery.busy
        yield
        if asked and not requery.busy:
            now = time.monotonic()
            due = max(self._due, began - _SAVED) + (1 + _SHARE) * (now - began)
            self._due = min(due, now + _MOST)

    def rest(self, wait: Callable[[float], object]) -> None:
        """Wait until the next read is due. ``wait`` takes a number of seconds, and returns early when the
        thread is to end.
        """
        rest = self._due - time.monotonic()
        if rest > 0:
            wait(rest)
