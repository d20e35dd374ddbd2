"""Ctrl-C as a question that the main thread asks, not an exception that hits it anywhere.

For commands that have something to finish (a summary) or to clean up (a database) whenever they are stopped.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep what a terminal sends (Ctrl-C, its end) back for as long as the context lasts.

    For starting a program that must outlive them: between its fork and its own session it is still in the
    terminal's process group, and would die of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupt:
    """Takes SIGINT, SIGTERM and SIGHUP (no more terminal) over while its context lasts; in the main thread.

    Once one has come, they are ignored for the rest of the process: it is about to end.
    """

    def __init__(self) -> None:
        self.requested = False
        """Somebody wants us to stop; it stays so."""
        # A SimpleQueue, because its put() may interrupt its own get(). The lock inside threading.Event may be
        # held by the very thread that the signal interrupts.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            # Whoever hits Ctrl-C again must not turn a clean end into a traceback, or change its exit code.
            signal.signal(number, signal.SIG_IGN if self.requested else before)

    def wait(self, seconds: float | None = None) -> bool:
        """Block for so long, or until a signal comes, and tell whether one has ever come."""
        if not self.requested:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
        return self.requested

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._wake.put(None)
