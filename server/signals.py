"""Handles signals that would end the process by default, although their senders do not intend this.

SIGHUP asks a service to read its files again; ours does so by itself. Log rotation and people send SIGUSR1
and SIGUSR2 to other kinds of services. (For `watch` and `demo`, SIGHUP means that their terminal has gone,
and they end cleanly.)
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def pass_by(*numbers: signal.Signals, then: Callable[[], object] = lambda: None) -> None:
    """Make these signals do nothing but call ``then``. The call is made in the main thread, between any two
    instructions.

    This installs a handler and does not ignore the signals, because programs that we start would inherit
    ignored signals, but do not inherit handlers.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the event loop that would run it is closed
            then()

    for number in numbers:
        signal.signal(number, handle)


def stop_waking() -> None:
    """Stop signals from waking the event loop of the main thread, which is about to close.

    A signal wakes the loop by a write to a socket. The loop closes this socket before it removes its signal
    handlers, and Python reports each signal in between on standard error, as a failed write.
    """
    signal.set_wakeup_fd(-1)


def ignore_what_passes_by() -> None:
    """Ignore these signals at the end, since the interpreter removes its handlers before the process has
    ended.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
