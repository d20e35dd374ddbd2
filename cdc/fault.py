"""Reports a fault, an unexpected exception in one of our threads, for as long as it recurs."""

from __future__ import annotations

from typing import Protocol

from cdc.errors import PadsCdcError, fault_of_ours


class Troubles(Protocol):
    """The part of an `Observer` that receives faults."""

    def trouble(self, key: str, message: str | None) -> None:
        """Report a trouble. A ``message`` of None reports its end."""


class Fault:
    """The current fault of one thread. Database errors are not faults: whoever catches them reports them."""

    def __init__(self, observer: Troubles, thread: str) -> None:
        """``thread`` is the thread's name in `/healthz`."""
        self._observer = observer
        self._key = f"fault_{thread}"
        self._lasts = False

    def met(self, error: Exception) -> None:
        """Report an error if it is a fault."""
        if not isinstance(error, PadsCdcError):
            self._lasts = True
            self._observer.trouble(self._key, str(fault_of_ours(error)))

    def over(self) -> None:
        """Report the end of the fault, because the thread works again."""
        if self._lasts:
            self._lasts = False
            self._observer.trouble(self._key, None)
