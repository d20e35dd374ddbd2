"""Signals that would end a process and are meant for something else: none of them does it harm.

SIGHUP asks a service to read its files again; ours reads them again by itself. Log rotation and people send
SIGUSR1 and SIGUSR2 to services of other kinds. (To `watch` and `demo` SIGHUP says that their terminal is
gone, and they end in good order.)
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def pass_by(*numbers: signal.Signals, then: Callable[[], object] = lambda: None) -> None:
    """Let these signals do nothing but call ``then``, which may interrupt anything; in the main thread.

    A handler, since what is ignored would be ignored by every program that we start as well.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the event loop, which it is handed to, is closed
            then()

    for number in numbers:
        signal.signal(number, handle)


def ignore_what_passes_by() -> None:
    """Ignore them from here on: the interpreter takes its handlers away before the process has ended."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
