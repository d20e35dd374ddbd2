"""The proxy that simulates a bad network must not itself be a fault that no network has."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from tests.support.proxy import Proxy

_MORE_THAN_BUFFERS_HOLD = 64 * 2**20


def test_a_connection_that_nobody_reads_stops_no_other() -> None:
    """Our slot's stream may be full while the applier waits for an answer: that answer empties the stream."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname()[1]) as proxy,
        ThreadPoolExecutor() as pool,
    ):
        full, far_of_full = _connect(proxy, listener)
        other, far_of_other = _connect(proxy, listener)
        with full, far_of_full, other, far_of_other:
            writing = pool.submit(far_of_full.sendall, bytes(_MORE_THAN_BUFFERS_HOLD))
            for _ in range(100):
                other.sendall(b"?")
                assert far_of_other.recv(1) == b"?"
                far_of_other.sendall(b"!")
                assert other.recv(1) == b"!"
            assert not writing.done()
            arrived = 0
            while arrived < _MORE_THAN_BUFFERS_HOLD:
                arrived += len(full.recv(2**20))
            writing.result(10)


def _connect(proxy: Proxy, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(("127.0.0.1", proxy.port), 10)
    far, _ = listener.accept()
    far.settimeout(10)
    return near, far
