"""Followers of the database, ours and others. Each runs in its own process, and notes the arrival of each
change.

The clock is monotonic; on Linux all processes share it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from bench.served import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection

DEADLINE: Final = 300.0
"""Seconds after which a missing arrival is an error."""

# A process with gRPC's threads or with connections must not be forked.
_spawn: Final = multiprocessing.get_context("spawn")


class Notebook:
    """The follower's notes: the time of each endpoint's first arrival since the last `mark`."""

    def __init__(self) -> None:
        self._arrivals: dict[str, float] = {}
        self._wanted = -1
        self._following_since: float | None = None
        self._changed = threading.Condition()

    def following(self) -> None:
        """Declare that everything from now on will be noted."""
        with self._changed:
            self._following_since = now()
            self._changed.notify_all()

    def arrived(self, endpoints: Iterable[str], at: float) -> None:
        """Record that these endpoints arrived at a time by ``time.monotonic``. Only the first arrival of each
        is kept.
        """
        arrivals = self._arrivals
        for endpoint in endpoints:
            if endpoint not in arrivals:
                arrivals[endpoint] = at
        if 0 <= self._wanted <= len(arrivals):
            with self._changed:
                self._changed.notify_all()

    def answer(self, command: str, count: int, seconds: float) -> Any:
        """Execute a command of the other process."""
        with self._changed:
            match command:
                case "following":
                    self._changed.wait_for(lambda: self._following_since is not None, seconds)
                    return self._following_since
                case "mark":
                    self._arrivals = {}
                    return True
                case "wait":
                    self._wanted = count
                    if not self._changed.wait_for(lambda: len(self._arrivals) >= count, seconds):
                        return None
                    self._wanted = -1
                    # In the order of arrival. The list is copied at once, because the other thread continues.
                    return list(self._arrivals.values())[count - 1]
        return dict(self._arrivals)


class Follower:
    """Runs ``follow(notebook, ...)``, which never returns, in a process until the context ends."""

    def __init__(self, follow: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Start the process. ``follow`` and its arguments are pickled."""
        self._pipe, other = _spawn.Pipe()
        self._process = _spawn.Process(
            target=_run, args=(other, partial(follow, **options), arguments), daemon=True
        )
        self._process.start()
        other.close()
        self._name = follow.__name__
        self._server: int | None = None
        self.following_since = 0.0
        """The time from which it notes everything; 0 before it has reported this time."""

    def __enter__(self) -> Self:
        try:
            self.following_since = self._ask("following")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def cpu_seconds(self) -> float:
        """Return the CPU time of its process, or of the server that `charge` named."""
        return cpu_seconds(self._server or self._process.pid or 0)

    def charge(self, server: int) -> None:
        """Count the CPU time of this server's process instead of the client's."""
        self._server = server

    def mark(self) -> None:
        """Forget all arrivals."""
        self._ask("mark")

    def wait(self, count: int, seconds: float = DEADLINE) -> float:
        """Wait until ``count`` endpoints (at least one) have arrived. Return the arrival time of the last
        one.

        Raises:
            TimeoutError: the endpoints did not arrive within ``seconds``.

        """
        at: float = self._ask("wait", count, seconds)
        return at

    def arrivals(self) -> dict[str, float]:
        """Return the time of each endpoint's first arrival."""
        arrived: dict[str, float] = self._ask("arrivals")
        return arrived

    def _ask(self, command: str, count: int = 0, seconds: float = DEADLINE) -> Any:
        self._pipe.send((command, count, seconds))
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self._name}: the process has ended, see above") from None
        if answer is None:
            raise TimeoutError(f"{self._name}: not within {seconds:.0f} s: {command} {count or ''}")
        return answer


def _run(pipe: Connection, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    notebook = Notebook()
    threading.Thread(target=_follow, args=(notebook, follow, arguments), daemon=True).start()
    while True:
        try:
            pipe.send(notebook.answer(*pipe.recv()))
        except (EOFError, BrokenPipeError):
            os._exit(0)  # the parent has gone; gRPC's threads need no cleanup


def _follow(notebook: Notebook, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        follow(notebook, *arguments)
    finally:
        # It should not end by itself. Its traceback, if any, has been printed.
        threading.Timer(0.2, os._exit, (1,)).start()


def now() -> float:
    """Return the time by the clock of the arrivals."""
    return time.monotonic()
