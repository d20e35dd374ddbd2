"""Events in the form in which they are shown: in cells on a screen, or as lines of text. They never contain a
key.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from server.commands.watch.endpoint import auth, auth_short, capacity, limits, plan, printable, throughput

if TYPE_CHECKING:
    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

_KEPT: Final = 10_000
"""Maximum number of lines that wait to be shown. A screen needs some dozens; a slow pipe gets the newest
ones.
"""


def now() -> datetime:
    """Return the current time in the local time zone."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class Line:
    """One event."""

    what: str
    """``upsert``, ``delete``, or a text."""
    rest: tuple[str, ...] = ()
    """The other parts of a line of text."""
    cells: tuple[str, ...] = ()
    """The other cells of the row on a screen, which has less room. Empty for a text, which takes the whole
    row.
    """
    at: datetime = field(default_factory=now)

    @classmethod
    def of_change(cls, endpoint_id: str, after: GatewayEndpoint | None) -> Self:
        """Make a line for an endpoint that was changed, or removed if ``after`` is None."""
        shown = printable(endpoint_id)
        if after is None:
            return cls("delete", (shown,), (shown, "", "", "", ""))
        return cls(
            "upsert",
            (shown, auth(after), plan(after), limits(after)),
            (shown, auth_short(after), plan(after), throughput(after), capacity(after)),
        )

    def __str__(self) -> str:
        return f"{self.at:%H:%M:%S.%f}"[:-3] + "  " + "  ".join((self.what, *self.rest))


class Lines:
    """A queue of lines from the thread that reads to the thread that shows."""

    def __init__(self, first: Line) -> None:
        self._lock = threading.Lock()
        self._new: deque[Line] = deque([first], _KEPT)

    def add(self, line: Line) -> None:
        """Add a line to show."""
        with self._lock:
            self._new.append(line)

    def take(self) -> list[Line]:
        """Return the lines since the last call."""
        with self._lock:
            lines = list(self._new)
            self._new.clear()
        return lines
