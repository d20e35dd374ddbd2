"""Many clients that keep their connections open and never read from them."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from tests.plugins.server import DEADLINE, wait_until
from tests.support.http2 import DATA, SETTINGS, Connection

if TYPE_CHECKING:
    from collections.abc import Callable


_WINDOW = 65_535


class Strangers:
    """TCP connections that send some bytes once, or none, and never read."""

    def __init__(self, port: int, say: bytes = b"") -> None:
        self._port = port
        self._say = say
        self._sockets: list[socket.socket] = []

    def come(self, count: int) -> None:
        """Open ``count`` more connections."""
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", self._port), DEADLINE)
            one.setblocking(False)
            with suppress(OSError):
                one.send(self._say)
            self._sockets.append(one)

    @property
    def open(self) -> int:
        """Number of connections that the server has not closed."""
        return sum(map(_stands, self._sockets))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()


def _stands(one: socket.socket) -> bool:
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Stalled:
    """gRPC clients that answer pings, so they look alive, but never enlarge their windows of 64 KiB."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._closed = threading.Event()
        self.connections: list[Connection] = []
        self._answering = threading.Thread(target=self._answer)
        self._answering.start()

    def connect(self, count: int, call: Callable[[Connection], None] = lambda _: None) -> None:
        """Let ``count`` clients connect and make a call. Returns once the server has answered them all."""
        for _ in range(count):
            plain = socket.create_connection(("127.0.0.1", self._port), DEADLINE)
            connection = Connection(plain)
            call(connection)
            plain.setblocking(False)
            self.connections.append(connection)
            self._selector.register(plain, selectors.EVENT_READ, connection)
        self.wait(SETTINGS)

    def wait(self, kind: int = DATA, count: int | None = None) -> None:
        """Wait until ``count`` clients (by default all) have received a frame of this kind."""
        wanted = len(self.connections) if count is None else count
        wait_until(lambda: self._met(kind) >= wanted, f"frames of the kind {kind}", 10 * DEADLINE)

    def wait_full(self) -> None:
        """Wait until the windows of all clients are full."""

        def full(one: Connection) -> bool:
            return sum(len(payload) for kind, _, payload in tuple(one.frames) if kind == DATA) >= _WINDOW

        wait_until(lambda: all(map(full, self.connections)), "all windows are full", 10 * DEADLINE)

    def _met(self, kind: int) -> int:
        return sum(any(each == kind for each, _, _ in tuple(one.frames)) for one in self.connections)

    def _answer(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(0.1):
                if not key.data.pump():
                    self._selector.unregister(key.fileobj)

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._answering.join(DEADLINE)
        for connection in self.connections:
            connection.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
