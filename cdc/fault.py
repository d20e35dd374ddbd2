"""A fault of ours in one of the threads: said while it lasts, and no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.errors import PadsCdcError, fault_of_ours

if TYPE_CHECKING:
    from cdc.observer import Observer


class Fault:
    """Of one thread. What the database does wrong is no fault, and is said by whoever meets it."""

    def __init__(self, observer: Observer, thread: str) -> None:
        """``thread`` is the word for it in `/healthz`."""
        self._observer = observer
        self._key = f"fault_{thread}"
        self._lasts = False

    def met(self, error: Exception) -> None:
        """Say so, if this error is a fault."""
        if not isinstance(error, PadsCdcError):
            self._lasts = True
            self._observer.trouble(self._key, str(fault_of_ours(error)))

    def over(self) -> None:
        """Take it back: the thread has done its work again."""
        if self._lasts:
            self._lasts = False
            self._observer.trouble(self._key, None)
