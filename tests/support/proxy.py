"""A TCP proxy that simulates a bad network to the database: it cuts, stalls or slows down connections."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_READ = 64 * 1024


class Proxy:
    """Listens on a port of 127.0.0.1 and passes bytes on to another, in a thread of its own."""

    def __init__(self, target: int, *others: int) -> None:
        """New connections go to ``target`` and ``others`` (all are ports) in turn."""
        self.target = target
        """The port to which new connections go. Open connections keep theirs until they are cut."""
        self._others = others
        self._accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._unsent: dict[socket.socket, bytes] = {}
        """The bytes that a full socket has not taken yet. Until it has taken them, its own pair is not read.
        The other connections go on, since a full socket may be emptied only after an answer on one of them.
        """
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = threading.Event()
        self.stalled = False
        """Whether to pass nothing on and close nothing, like a router that drops packets."""
        self.refusing = False
        """Whether to close new connections at once."""
        self.bytes_per_second: float | None = None
        """The maximum speed; None is no limit."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10)
        self.cut()
        self._listener.close()
        self._selector.close()

    def cut(self) -> int:
        """Close every connection on both sides. Returns the number of connections."""
        with self._lock:
            ends = tuple(self._pairs)
            self._drop(*ends)
        return len(ends) // 2

    def passed(self, source: socket.socket, sink: socket.socket, content: bytes) -> None:
        """Called with bytes before they are passed on. Override it to look at them."""

    def _run(self) -> None:
        while not self._ended.is_set():
            if self.stalled:
                self._ended.wait(0.02)
                continue
            for key, events in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and not self.stalled:
                    if events & selectors.EVENT_WRITE:
                        self._send(key.fileobj)
                    if events & selectors.EVENT_READ:
                        self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self.refusing:
            near.close()
            return
        try:
            targets = (self.target, *self._others)
            self._accepted += 1
            far = socket.create_connection(("127.0.0.1", targets[self._accepted % len(targets)]))
        except OSError:
            near.close()
            return
        with self._lock:
            self._pairs[near], self._pairs[far] = far, near
            for one in (near, far):
                self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        with self._lock:
            sink = self._pairs.get(source)
        if sink is None:
            return
        limit = _READ if self.bytes_per_second is None else max(1, int(self.bytes_per_second / 50))
        try:
            content = source.recv(limit)
        except OSError:
            content = b""
        if not content:
            with self._lock:
                self._drop(source, sink)
            return
        self.passed(source, sink, content)
        with self._lock:
            self._unsent[sink] = content
        self._send(sink)
        if self.bytes_per_second is not None:
            time.sleep(len(content) / self.bytes_per_second)

    def _send(self, sink: socket.socket) -> None:
        """Send what the socket takes now. While it does not take everything, its pair is not read."""
        with self._lock:
            source, content = self._pairs.get(sink), self._unsent.pop(sink, b"")
            if source is None:
                return
            with suppress(BlockingIOError):
                try:
                    content = content[sink.send(content, socket.MSG_DONTWAIT) :]
                except ConnectionError:
                    self._drop(sink, source)
                    return
            if content:
                self._unsent[sink] = content
            for one in (sink, source):
                self._watch(one)

    def _watch(self, one: socket.socket) -> None:
        wanted = selectors.EVENT_WRITE if one in self._unsent else 0
        if self._pairs[one] not in self._unsent:
            wanted |= selectors.EVENT_READ
        key = self._selector.get_map().get(one)
        if key is None and wanted:
            self._selector.register(one, wanted)
        elif key is not None and not wanted:
            self._selector.unregister(one)
        elif key is not None and key.events != wanted:
            self._selector.modify(one, wanted)

    def _drop(self, *pair: socket.socket) -> None:
        for one in pair:
            self._pairs.pop(one, None)
            self._unsent.pop(one, None)
            with suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()
