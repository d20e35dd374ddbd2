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
            pairs, self._pairs = self._pairs, {}
            for one in pairs:
                with suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
        return len(pairs) // 2

    def passed(self, source: socket.socket, sink: socket.socket, content: bytes) -> None:
        """Called with bytes before they are passed on. Override it to look at them."""

    def _run(self) -> None:
        while not self._ended.is_set():
            if self.stalled:
                self._ended.wait(0.02)
                continue
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and not self.stalled:
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
            if content:
                self.passed(source, sink, content)
                sink.sendall(content)
        except OSError:
            content = b""
        if not content:
            with self._lock:
                for one in (source, sink):
                    self._pairs.pop(one, None)
                    with suppress(KeyError, ValueError):
                        self._selector.unregister(one)
                    one.close()
        elif self.bytes_per_second is not None:
            time.sleep(len(content) / self.bytes_per_second)
