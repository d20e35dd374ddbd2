"""What to do when a stream has ended: the table of the protocol, and how long to wait."""

from __future__ import annotations

import enum
import random
from typing import Final

import grpc


class Remedy(enum.Enum):
    """What a status asks of the client."""

    RETRY = enum.auto()
    """Soon, elsewhere if there is an elsewhere: servers come and go."""
    BACK_OFF = enum.auto()
    """Later: somebody has to change something, and may do so without telling us."""
    STOP = enum.auto()
    """Never: this client has a bug."""


_REMEDIES: Final = {
    grpc.StatusCode.UNAUTHENTICATED: Remedy.BACK_OFF,
    grpc.StatusCode.PERMISSION_DENIED: Remedy.BACK_OFF,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Remedy.BACK_OFF,
    grpc.StatusCode.UNIMPLEMENTED: Remedy.BACK_OFF,
    grpc.StatusCode.INVALID_ARGUMENT: Remedy.STOP,
}


def remedy(code: grpc.StatusCode) -> Remedy:
    """Look a status up; every other one is worth a retry, also OK: a feed has no end."""
    return _REMEDIES.get(code, Remedy.RETRY)


class Backoff:
    """Waits that double, with jitter so that a thousand gateways do not come back at the same moment."""

    def __init__(self, first: float = 0.2, most: float = 30.0, late: float = 60.0) -> None:
        """Take the first wait, the longest, and the one until somebody has changed something, in seconds."""
        self._first = first
        self._most = most
        self._late = late
        self._next = first

    def wait(self, remedy: Remedy) -> float:
        """Return how long to wait now, in seconds."""
        bound = self._late if remedy is Remedy.BACK_OFF else self._next
        self._next = min(self._next * 2, self._most)
        return random.uniform(bound / 2, bound)  # noqa: S311 (spreads load, guards nothing)

    def succeeded(self) -> None:
        """Begin with the first wait again."""
        self._next = self._first
