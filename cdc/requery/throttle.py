"""How often short reads are made: never at the writers' cost.

Most of a short read is planning and round trips, the same for one key or a hundred. At 1,000 commits a
second, read one by one, that would take a processor from those who commit. So a rest follows each one, and
what comes meanwhile is read with one statement. A commit that comes alone finds nobody resting.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHARE = 2.0
"""A rest is that many times as long as the read before it: reads take a third of the time at most."""
_MOST = 0.005
"""Seconds that a rest lasts at most, since somebody's revocation may wait for it."""


class Reads(Protocol):
    """What is to be read."""

    @property
    def busy(self) -> bool:
        """Whether there is any of it left."""


class Throttle:
    """Used by the applier's thread alone."""

    def __init__(self) -> None:
        self._until = 0.0

    @contextmanager
    def timed(self, requery: Reads) -> Iterator[None]:
        """Time what is read here; after a part of a long read there is no rest."""
        began, asked = time.monotonic(), requery.busy
        yield
        if asked and not requery.busy:
            now = time.monotonic()
            self._until = now + min(_SHARE * (now - began), _MOST)

    def rest(self, wait: Callable[[float], object]) -> None:
        """Wait until the next read is due; ``wait`` takes seconds, and returns early when all of it ends."""
        rest = self._until - time.monotonic()
        if rest > 0:
            wait(rest)
