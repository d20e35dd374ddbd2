"""Child processes that end with the benchmark, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnProcess

_spawn: Final = multiprocessing.get_context("spawn")
_PR_SET_PDEATHSIG: Final = 1

Pipe: Final = _spawn.Pipe


def start(run: Callable[..., None], *arguments: Any) -> SpawnProcess:
    """Run a function in its own process, which is killed when the calling thread ends."""
    process = _spawn.Process(target=_run, args=(run, arguments), daemon=True)
    process.start()
    return process


def _run(run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    run(*arguments)
