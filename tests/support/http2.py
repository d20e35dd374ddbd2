"""A minimal HTTP/2 client, to send what no client library would send."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.plugins.server import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = 1


class Connection:
    """A connection that acknowledges settings and pings. It sends nothing else unless a method is called."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self._received = b""
        self.frames: list[tuple[int, int, bytes]] = []
        """The frames received, in order: (type, flags, payload)."""
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(SETTINGS, 0, 0, b"")

    def call(
        self,
        stream: int,
        path: bytes,
        *headers: tuple[bytes, bytes],
        message: bytes = b"",
        more: bool = False,
    ) -> None:
        """Open a stream and send a message. With ``more`` the client's side of the stream stays open."""
        fields = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *headers,
        )
        block = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)
        self._send(HEADERS, 4, stream, block)
        self._send(DATA, 0 if more else 1, stream, struct.pack(">BI", 0, len(message)) + message)

    def ping(self) -> None:
        """Send a ping."""
        self._send(PING, 0, 0, bytes(8))

    def wait(self, kind: int, what: bytes = b"", *, flags: int = 0, count: int = 1) -> bytes:
        """Wait for the ``count``th frame of this kind with these flags whose payload contains ``what``.

        Returns the payload.
        """
        until = time.monotonic() + DEADLINE
        while True:
            found = [
                payload
                for of, has, payload in self.frames
                if of == kind and has & flags == flags and what in payload
            ]
            if len(found) >= count:
                return found[count - 1]
            assert self._receive(until - time.monotonic()), f"closed after {self.frames}"

    def wait_end(self) -> None:
        """Wait until the server has closed the connection."""
        until = time.monotonic() + DEADLINE
        while self._receive(until - time.monotonic()):
            pass

    def pump(self) -> bool:
        """Read what has arrived on a non-blocking socket. Returns False if the connection is closed."""
        try:
            return self._take()
        except BlockingIOError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self, seconds: float) -> bool:
        assert seconds > 0, f"only these within {DEADLINE:.0f} s: {self.frames}"
        self._socket.settimeout(seconds)
        return self._take()

    def _take(self) -> bool:
        try:
            more = self._socket.recv(65536)
        except ConnectionResetError:
            more = b""
        self._received += more
        while len(self._received) >= 9 and len(self._received) >= 9 + (
            length := int.from_bytes(self._received[:3], "big")
        ):
            kind, flags = self._received[3], self._received[4]
            payload = self._received[9 : 9 + length]
            self.frames.append((kind, flags, payload))
            self._received = self._received[9 + length :]
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._send(kind, ACK, 0, payload if kind == PING else b"")
        return bool(more)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
        # The server may have closed the connection already. The bytes that it sent before can still be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(head + payload)


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    """Connect in plaintext."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as plain:
        yield Connection(plain)


def _string(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value
