"""A standard error that never blocks, so that a log without a reader does not stop the server.

A write to a pipe that nobody reads, or to a terminal that was stopped by Ctrl-S, blocks for ever. It would
block the thread that logs, such as the event loop or the reader of the slot. So a line is written at once
only if there is room. This is the usual case, and a process that dies right afterwards has lost nothing. If
there is no room, the line waits in a bounded queue. While the queue is full, lines are dropped and counted. A
thread writes the queue when there is room, and then reports the number of missing lines.

C libraries (gRPC) write to the same descriptor by themselves. `unblock` makes their writes fail instead of
wait.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
import stat
import struct
import sys
import threading
import time
from atexit import register
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_QUEUED: Final = 2**20
"""Maximum size of the queued lines, in bytes."""
_LOOK: Final = 1.0
"""Seconds between two attempts to write to a full descriptor, if the kernel does not wake us."""
_AGAIN: Final = 0.01
"""Seconds until the next attempt, if the descriptor refused a write although it had room."""
_FINISH: Final = 0.5
"""Maximum time that the end of the process waits until queued lines are written, in seconds."""
_SOCKET_WAIT: Final = struct.pack("ll", 0, 10_000)
"""Maximum time that a library's write waits if the descriptor is a socket, as (seconds, microseconds)."""


class LogWriter(io.TextIOBase):
    """A stream for log lines. Thread-safe. Only `finish` blocks."""

    def __init__(
        self,
        descriptor: int,
        on_dropped: Callable[[int], object],
        *,
        at_once: bool = True,
        queued: int = _QUEUED,
    ) -> None:
        """Write to ``descriptor``, and queue up to ``queued`` bytes while it is full.

        ``on_dropped`` is called with the number of missing lines as soon as there is room, in another thread.
        Without ``at_once`` every line goes through the queue, which is needed if writes to the descriptor can
        block.
        """
        super().__init__()
        self._descriptor = descriptor
        self._on_dropped = on_dropped
        self._at_once = at_once
        self._most = queued
        self._queue: deque[bytes] = deque()
        self._size = 0
        """Bytes in the queue."""
        self._missing = 0
        """Number of lines that were dropped since the last report of missing lines."""
        self.dropped = 0
        """Number of lines that were dropped since the start."""
        self._changed = threading.Condition()
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # a plain attribute in the stubs
        """Return the encoding of the text."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor, for libraries that write to it directly."""
        return self._descriptor

    def write(self, text: str, /) -> int:
        """Write, queue or drop a line. Return its length, as files do."""
        line = rest = text.encode(errors="backslashreplace")
        with self._changed:
            if self._at_once and not self._queue:
                rest = self._put(line)
            # Dropped lines form one gap at the end of the queue, so the report can be written where they are
            # missing.
            room = not self._missing and self._size + len(rest) <= self._most
            if rest and (room or len(rest) < len(line)):
                self._queue.append(rest)
                self._size += len(rest)
                self._changed.notify_all()
            elif rest:
                self._missing += 1
                self.dropped += 1
        return len(text)

    def finish(self, within: float = _FINISH) -> None:
        """Wait until the queue is written, but at most ``within`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue, within)

    def _put(self, data: bytes) -> bytes:
        """Write as much as there is room for, and return the rest.

        The rest is empty if the reader has gone.
        """
        while data and self._room.poll(0):
            try:
                # A pipe with room accepts this amount as a whole, without other processes' lines in between.
                written = os.write(self._descriptor, data[: select.PIPE_BUF])
            except BlockingIOError:
                break
            except OSError:
                return b""
            data = data[written:]
        return data

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                first = self._queue[0]
            if not self._room.poll(_LOOK * 1000):
                continue
            rest = self._put(first)  # no other thread writes while there is a queue
            if rest == first:
                time.sleep(_AGAIN)
            self._written(len(first) - len(rest), rest)

    def _written(self, bytes_: int, rest: bytes) -> None:
        with self._changed:
            self._size -= bytes_
            if rest:
                self._queue[0] = rest
                return
            self._queue.popleft()
            missing = 0
            if not self._queue:
                missing, self._missing = self._missing, 0
                self._changed.notify_all()
        if missing:
            self._on_dropped(missing)


def standard_error(on_dropped: Callable[[int], object]) -> LogWriter:
    """Replace Python's own standard error, whose writes can block. Queued lines are written at the exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno()
    writer = LogWriter(descriptor, on_dropped, at_once=unblock(descriptor))
    register(writer.finish)
    sys.stderr = cast("TextIO", writer)
    return writer


def unblock(descriptor: int) -> bool:
    """Make writes to ``descriptor`` fail instead of block. Return False if a write can still block.

    The flag O_NONBLOCK belongs to the open file, which a shell or another program may share with us. So a
    pipe or a terminal is opened again. If a pipe belongs to another user (as in a container), this may be
    refused, and the shared file keeps the flag until we exit. A regular file needs no flag, since a write to
    it never waits for a reader.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(descriptor)) as shared, suppress(OSError):
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SOCKET_WAIT)
        return True
    if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
        return True
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        if os.isatty(descriptor):
            return False
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        register(fcntl.fcntl, descriptor, fcntl.F_SETFL, flags)
    else:
        os.dup2(own, descriptor)
        os.close(own)
    return True
