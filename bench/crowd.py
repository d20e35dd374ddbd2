"""Many subscribers in one process. They implement HTTP/2 themselves, because gRPC's clients would use all
CPU.

`bench.following` runs this. To the server, these are ordinary connections: they offer the largest possible
windows, answer settings and pings, and acknowledge checkpoints of the feed as `pads_cdc_client` does.
"""

from __future__ import annotations

import selectors
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pads_cdc_client.outbox import PACE
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from bench.following import now
from bench.subscribers import STREAM, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.following import Notebook

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK, _END_HEADERS = 1, 4
_CALL: Final = 1
"""The HTTP/2 stream of the call."""
_WINDOW: Final = 2**31 - 1
_INITIAL: Final = 65_535
"""Initial window of a connection."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SAMPLED: Final = 20
"""Maximum number of subscribers whose arrivals are noted."""
_FRAME: Final = 9
_MESSAGE: Final = 5


def feed(
    notebook: Notebook, port: int, count: int, *, token: bytes, stalled: int = 0, acknowledges: bool = True
) -> None:
    """Open the feed ``count`` times from a token, and note arrivals as ``subscriber/endpoint``.

    Arrivals are noted for 20 subscribers, evenly chosen, or for all if there are fewer. Another ``stalled``
    subscribers open the feed and read nothing.
    """
    opening = pb.WatchRequest(open=pb.Open(client_id="bench", resume_token=token)).SerializeToString()
    every = max(1, count // _SAMPLED)

    def take(peer: _Peer, message: bytes) -> None:
        response = pb.WatchResponse.FromString(message)
        if peer.number % every == 0:
            changes = response.batch.changes
            notebook.arrived([f"{peer.number}/{change.endpoint_id}" for change in changes], now())
        if acknowledges and response.batch.HasField("checkpoint"):
            peer.acknowledge(response.batch.token)

    _follow(notebook, port, count, WATCH, opening, take, stalled)


def old(notebook: Notebook, port: int, count: int) -> None:
    """Open the legacy contract's stream ``count`` times, and discard what arrives."""
    _follow(notebook, port, count, STREAM, b"", lambda _peer, _message: None, 0)


def sampled(count: int) -> int:
    """Return the number of subscribers whose arrivals `feed` notes."""
    return len(range(0, count, max(1, count // _SAMPLED)))


@dataclass(eq=False)
class _Peer:
    """One connection with one call."""

    number: int
    plain: socket.socket
    heard: bool = False
    """Handle a message."""
    acknowledged_at: float = 0.0
    _received: bytearray = field(default_factory=bytearray)
    _data: bytearray = field(default_factory=bytearray)

    @classmethod
    def call(cls, number: int, port: int, path: str, message: bytes, *, window: int) -> _Peer:
        """Connect, and send the call's headers and its first message."""
        peer = cls(number, socket.create_connection(("127.0.0.1", port)))
        peer.plain.sendall(_PREFACE)
        peer.send(_SETTINGS, 0, 0, struct.pack(">HI", 4, window))
        if window > _INITIAL:
            peer.send(_WINDOW_UPDATE, 0, 0, struct.pack(">I", window - _INITIAL))
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "127.0.0.1",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields.items())
        peer.send(_HEADERS, _END_HEADERS, _CALL, block)
        peer.say(message)
        return peer

    def say(self, message: bytes) -> None:
        """Send a message of the call; the call stays open."""
        self.send(_DATA, 0, _CALL, struct.pack(">BI", 0, len(message)) + message)

    def acknowledge(self, token: bytes) -> None:
        """Acknowledge a checkpoint of the feed, unless another one was acknowledged just before."""
        if now() - self.acknowledged_at >= PACE:
            self.acknowledged_at = now()
            self.say(pb.WatchRequest(acknowledge=pb.Acknowledge(token=token)).SerializeToString())

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Send a frame, which must be small enough for the socket's buffer."""
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
        self.plain.sendall(head + payload)

    def receive(self, take: Callable[[_Peer, bytes], None]) -> None:
        """Pass each message that has arrived to ``take``.

        Raises:
            ConnectionError: the server has closed the connection.

        """
        more = self.plain.recv(1 << 18)
        if not more:
            raise ConnectionError("the server closed a subscriber's connection")
        self._received += more
        received, place = self._received, 0
        while len(received) - place >= _FRAME:
            length = int.from_bytes(received[place : place + 3], "big")
            if len(received) - place < _FRAME + length:
                break
            kind, flags = received[place + 3], received[place + 4]
            payload = bytes(received[place + _FRAME : place + _FRAME + length])
            place += _FRAME + length
            if kind == _DATA:
                self._data += payload
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.send(kind, _ACK, 0, payload if kind == _PING else b"")
        del received[:place]
        self._messages(take)

    def _messages(self, take: Callable[[_Peer, bytes], None]) -> None:
        data, place = self._data, 0
        while len(data) - place >= _MESSAGE:
            length = int.from_bytes(data[place + 1 : place + _MESSAGE], "big")
            if len(data) - place < _MESSAGE + length:
                break
            self.heard = True
            take(self, bytes(data[place + _MESSAGE : place + _MESSAGE + length]))
            place += _MESSAGE + length
        del data[:place]


def _follow(
    notebook: Notebook,
    port: int,
    count: int,
    path: str,
    opening: bytes,
    take: Callable[[_Peer, bytes], None],
    stalled: int,
) -> None:
    with selectors.DefaultSelector() as selector:
        peers = [_Peer.call(number, port, path, opening, window=_WINDOW) for number in range(count)]
        idle = [_Peer.call(count + number, port, path, opening, window=_INITIAL) for number in range(stalled)]
        for peer in peers:
            selector.register(peer.plain, selectors.EVENT_READ, peer)
        waiting = set(peers)
        while True:
            for key, _ in selector.select():
                key.data.receive(take)
            if waiting:
                waiting = {peer for peer in waiting if not peer.heard}
                if not waiting:
                    notebook.following()
                    waiting.clear()
            del idle[stalled:]  # they live as long as this process


def _string(value: str) -> bytes:
    encoded = value.encode()
    return bytes((len(encoded),)) + encoded
