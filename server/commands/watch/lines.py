"""What has happened, as it is shown: on a screen in cells, elsewhere as a line of text; never a key."""

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
"""Lines that wait to be shown: a screen needs some dozens, a slow pipe gets the newest."""


def now() -> datetime:
    """Return the time with the zone of people here."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class Line:
    """Something that happened."""

    what: str
    """``upsert``, ``delete``, or words."""
    rest: tuple[str, ...] = ()
    """What follows it in a line of text."""
    cells: tuple[str, ...] = ()
    """What follows it on a screen, where there is less room; none for words, which take all of it."""
    at: datetime = field(default_factory=now)

    @classmethod
    def of_change(cls, endpoint_id: str, after: GatewayEndpoint | None) -> Self:
        """Tell of an endpoint that is another one now, or gone."""
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
    """Lines on their way from the thread that reads to the one that shows."""

    def __init__(self, first: Line) -> None:
        self._lock = threading.Lock()
        self._new: deque[Line] = deque([first], _KEPT)

    def add(self, line: Line) -> None:
        """Have it shown."""
        with self._lock:
            self._new.append(line)

    def take(self) -> list[Line]:
        """Return those since the last time."""
        with self._lock:
            lines = list(self._new)
            self._new.clear()
        return lines
