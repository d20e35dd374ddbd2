"""Turns Ctrl-C into a flag that the main thread polls, instead of an exception that may be raised anywhere.

This is for commands that have to print a summary or remove a database whenever they are stopped.
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
    """Block the terminal's signals (Ctrl-C, hang-up) while the context lasts.

    Use it to start a program that must survive these signals. Until the program has its own session, it is in
    the terminal's process group, and the signals would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupt:
    """Handles SIGINT, SIGTERM and SIGHUP while its context lasts. Use it in the main thread.

    After the first signal they are ignored for the rest of the process, which is about to end.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether a signal has arrived. It stays True."""
        # This is a SimpleQueue, because its put() may interrupt its own get(). The lock inside a
        # threading.Event may be held by the thread that the signal interrupts.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # the signal is ignored already, because we run under nohup
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            # A second Ctrl-C must not turn a clean end into a traceback, or change the exit code.
            signal.signal(number, signal.SIG_IGN if self.requested else before)

    def wait(self, seconds: float | None = None) -> bool:
        """Block for ``seconds``, or until a signal arrives. Return whether a signal has ever arrived."""
        if not self.requested:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
        return self.requested

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._wake.put(None)
