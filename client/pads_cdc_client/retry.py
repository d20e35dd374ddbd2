"""What to do after a stream has ended: the protocol's table of status codes, and the time to wait."""

from __future__ import annotations

import enum
import random
from typing import Final

import grpc

_FIRST, _MOST, _LATE = 0.2, 30.0, 60.0
"""Seconds between attempts: at first, at most, and where an operator has to act."""


class Remedy(enum.Enum):
    """The client's reaction to a status code."""

    RETRY = enum.auto()
    """Retry soon, at another server if there is one."""
    BACK_OFF = enum.auto()
    """Retry in a minute: an operator has to change something first."""
    STOP = enum.auto()
    """Do not retry: this client has a bug."""


_REMEDIES: Final = {
    grpc.StatusCode.UNAUTHENTICATED: Remedy.BACK_OFF,
    grpc.StatusCode.PERMISSION_DENIED: Remedy.BACK_OFF,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Remedy.BACK_OFF,
    grpc.StatusCode.UNIMPLEMENTED: Remedy.BACK_OFF,
    grpc.StatusCode.INVALID_ARGUMENT: Remedy.STOP,
}


def remedy(code: grpc.StatusCode) -> Remedy:
    """Return the remedy for a status code.

    For a code that is not in the table, the remedy is a retry. This includes OK, because a feed has no end.
    """
    return _REMEDIES.get(code, Remedy.RETRY)


class Backoff:
    """Waits that double each time, with jitter, so that a thousand gateways do not reconnect at the same
    moment.
    """

    def __init__(self, first: float = _FIRST, most: float = _MOST, late: float = _LATE) -> None:
        """``first`` is the first wait, ``most`` the longest one, ``late`` that of `Remedy.BACK_OFF`, all in
        seconds.
        """
        self._first = first
        self._most = most
        self._late = late
        self._next = first

    def wait(self, remedy: Remedy) -> float:
        """Return the number of seconds to wait now."""
        bound = self._late if remedy is Remedy.BACK_OFF else self._next
        self._next = min(self._next * 2, self._most)
        return random.uniform(bound / 2, bound)  # noqa: S311 (spreads load, guards nothing)

    def succeeded(self) -> None:
        """Record a success: the next wait is the first wait again."""
        self._next = self._first
