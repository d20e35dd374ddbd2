"""Ends statements on a frozen server, which cannot end them itself. Otherwise the applier would wait for
ever.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc.postgres.connections import Connections

_LIMIT = 75.0
"""Seconds after which a statement must be stuck, since `statement_timeout` is 60 s."""
_TICK = 1.0
"""Seconds between two checks."""


class QueryWatchdog(threading.Thread):
    """A thread that looks for stuck statements each second, until `stop`. It never waits for the server."""

    def __init__(self, connections: Connections, limit: float = _LIMIT) -> None:
        super().__init__(name="hang-up", daemon=True)
        self._connections = connections
        self._limit = limit
        self._stopping = threading.Event()

    def run(self) -> None:
        """End stuck statements until `stop`."""
        while not self._stopping.wait(min(_TICK, self._limit)):
            self._connections.cut_stalled(self._limit)

    def stop(self) -> None:
        """Ask the thread to end. It ends at once."""
        self._stopping.set()
