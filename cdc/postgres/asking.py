"""Threads that ask a server again and again, each on a connection of its own."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2

from cdc.fault import Fault
from cdc.postgres.errors import translated

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.fault import Troubles
    from cdc.postgres.connection import Address


class Asking(threading.Thread, ABC):
    """A thread that asks until `stop`. After an error it closes the connection, and connects again for the
    next question.
    """

    def __init__(self, name: str, address: Address, observer: Troubles, interval: float) -> None:
        """``interval`` is the time from the start of one question to the start of the next, in seconds."""
        super().__init__(name=name, daemon=True)
        self._address = address
        self._interval = interval
        self._stopping = threading.Event()
        self._fault = Fault(observer, name.replace("-", "_"))
        self._connection: Connection | None = None

    @abstractmethod
    def _ask(self, connection: Connection) -> None:
        """Ask, and report the answer."""

    def _is_due(self) -> bool:
        """Return whether to ask now."""
        return True

    def _failed(self, error: Exception) -> None:
        """Report that there is no answer."""

    def stop(self) -> None:
        """Ask the thread to end. It ends at once, or as soon as the server has answered."""
        self._stopping.set()

    def run(self) -> None:
        """Ask until `stop`."""
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if self._is_due():
                    if self._connection is None:
                        self._connection = self._address.connect()
                    with translated(self._address.setting):
                        self._ask(self._connection)
                    self._fault.over()
            except Exception as error:  # noqa: BLE001 - the thread's boundary: it must not end silently
                self._fault.met(error)
                self._failed(error)
                self._close()
            self._stopping.wait(max(0.0, self._interval - (time.monotonic() - began)))
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()
