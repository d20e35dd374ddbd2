"""Asks the query server once a second how far it has replayed, where it is another one than the slot's.

Apart from the slot's probe: a query server that is frozen must not look like a source that is.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2

from cdc import lsn
from cdc.fault import Fault
from cdc.postgres.connection import cancel_soon
from cdc.postgres.errors import translated
from cdc.postgres.session import ask

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.freshness import Freshness
    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address

_INTERVAL = 1.0


class ReplayProbe(threading.Thread):
    """Runs until `stop`. Of a primary, and of a server that does not answer, nothing is known."""

    def __init__(self, address: Address, query: str, freshness: Freshness, observer: Observer) -> None:
        """``query`` is `WalEnd`."""
        super().__init__(name="replay-probe", daemon=True)
        self._address = address
        self._query = query
        self._freshness = freshness
        self._observer = observer
        self._stopping = threading.Event()
        self._fault = Fault(observer, "replay_probe")
        self._connection: Connection | None = None

    def stop(self) -> None:
        """End the thread, even while it waits for an answer."""
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            cancel_soon(connection)

    def run(self) -> None:
        """Ask until `stop`."""
        while not self._stopping.is_set():
            began = time.monotonic()
            replayed = None
            try:
                replayed = self._ask()
                self._fault.over()
            except Exception as error:  # noqa: BLE001 - the thread's boundary: it must not end without a word
                self._fault.met(error)
                self._close()
            self._freshness.replayed(replayed)
            self._stopping.wait(max(0.0, _INTERVAL - (time.monotonic() - began)))
        self._close()

    def _ask(self) -> Lsn | None:
        if self._connection is None:
            self._connection = self._address.connect()
        with translated(self._address.setting):
            [(end, timeline)] = ask(self._connection, self._query)
        return lsn.parse(end) if timeline is None and end is not None else None

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()
