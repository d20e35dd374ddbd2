"""Decides when waiting tasks are tried again, and reports reads that fail.

A closed gate is checked often, since a commit usually becomes visible within microseconds. While the database
does not answer, attempts become rarer. Locks of other sessions, such as a migration's, are a trouble only if
they last.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cdc.errors import SourceError, gives_way
from cdc.requery.monotonic_reads import UNDELIVERED

if TYPE_CHECKING:
    from cdc.errors import PadsCdcError
    from cdc.observer import Observer

_WAIT_FIRST, _WAIT_MOST = 0.0005, 0.02
"""Initial and maximum number of seconds between checks of a closed gate."""
_RETRY_FIRST, _RETRY_MOST = 0.05, 2.0
"""Initial and maximum number of seconds between attempts while the database does not answer."""
_COME_BACK = 0.1
"""Seconds between attempts while other sessions hold locks on the tables."""
_PATIENCE = 5.0
"""Seconds for which other sessions may lock the tables before this is reported as a trouble. Most migrations
take less.
"""
_TROUBLE = "query"


class Attempts:
    """The time of the next attempt. Owned by the applier's thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.failing = False
        """Whether the last attempt failed."""
        self.undelivered = False
        """Whether the last attempt failed because the slot has to deliver more first."""
        self._next_at = 0.0
        self._pause, self._retry = _WAIT_FIRST, _RETRY_FIRST
        self._locked_since: float | None = None
        """Monotonic time since which reads have failed because of locks; None if they do not fail."""

    @property
    def due(self) -> bool:
        """Whether the waiting tasks may be tried now."""
        return time.monotonic() >= self._next_at

    @property
    def seconds_left(self) -> float:
        """The number of seconds until the next attempt."""
        return max(0.0, self._next_at - time.monotonic())

    @property
    def all_tried(self) -> bool:
        """Whether every waiting task has been tried."""
        return self._next_at > 0

    def added(self) -> None:
        """Record that there is a new task. It is tried at once, unless the database does not answer."""
        if not self.failing:
            self._next_at = 0.0

    def began(self) -> None:
        """Record that a read has begun, so that its task's gate was open."""
        self._pause = _WAIT_FIRST

    def shut(self) -> None:
        """Record that all gates were closed. Each time this happens, the pause becomes longer."""
        self._pause = min(self._pause * 1.5, _WAIT_MOST)
        self._next_at = time.monotonic() + self._pause

    def failed(self, error: PadsCdcError) -> None:
        """Record that a read failed."""
        self.failing = True
        self.undelivered = isinstance(error, SourceError) and error.reason == UNDELIVERED
        now = time.monotonic()
        if gives_way(error):
            self._locked_since = self._locked_since or now
            self._next_at = now + _COME_BACK
            if now - self._locked_since < _PATIENCE:
                return
        else:
            self._retry = min(self._retry * 2, _RETRY_MOST)
            self._next_at = now + self._retry
        self._observer.trouble(_TROUBLE, f"re-queries fail: {error}")

    def recovered(self) -> None:
        """Record that the database answers, and gives the locks that reads need."""
        if self.failing:
            self.failing = self.undelivered = False
            self._retry, self._locked_since = _RETRY_FIRST, None
            self._observer.trouble(_TROUBLE, None)
