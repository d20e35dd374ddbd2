"""The HTTP port's connections: who asks nothing goes, who asks is answered, also without a descriptor."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from cdc.freshness import Freshness
from cdc.store.store import Store
from server.observe import http, http_listener
from server.observe.health import Health
from tests.plugins.server import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def serve(visit: Callable[[int], Awaitable[None]], most: int = 3) -> None:
    """Run ``visit`` with the port of a server that takes ``most`` connections."""

    async def main() -> None:
        health = Health(Store(), Freshness())
        server = await http.start(
            host="127.0.0.1", port=0, most=most, registry=CollectorRegistry(), health=health
        )
        try:
            await asyncio.wait_for(visit(server.port), DEADLINE)
        finally:
            await server.stop()

    asyncio.run(main())


class Client:
    """A connection that is made when it is asked for; its descriptor is there before."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)

    async def connect(self, port: int) -> Client:
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", port))
        return self

    async def say(self, what: bytes) -> None:
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._socket, what)

    async def answered(self, what: bytes = LIVE) -> bool:
        """Ask; False where the connection is cut off instead."""
        await self.say(what)
        answer = await self._read()
        assert not answer or answer.startswith(b"HTTP/1.1 200 OK")
        return bool(answer)

    async def cut(self) -> None:
        """Return once it is cut off."""
        assert await self._read() == b""

    async def _read(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """Connections to be made."""
    made = [Client() for _ in range(8)]
    yield made
    for one in made:
        one.close()


def test_who_was_idle_for_longest_makes_room(clients: list[Client]) -> None:
    async def visit(port: int) -> None:
        first, second, third, fourth, fifth, *_ = clients
        for one in (first, second, third):
            assert await (await one.connect(port)).answered()
        assert await first.answered(), "it is not the one that was idle for longest any more"
        assert await (await fourth.connect(port)).answered()
        await second.cut()
        assert await first.answered()
        assert await (await fifth.connect(port)).answered()
        await third.cut()

    serve(visit)


def test_a_request_that_does_not_end_is_cut_off(
    clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(http_listener, "_LOOK_SECONDS", 0.05)

    async def visit(port: int) -> None:
        silent, slow, busy, *_ = [await one.connect(port) for one in clients[:3]]
        assert await busy.answered()

        async def trickle() -> None:
            await slow.say(LIVE[:-2])
            while True:
                await slow.say(b"X: y\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        await silent.cut()
        await slow.cut()
        trickling.cancel()
        assert await busy.answered(), "who has asked once may ask again later"

    serve(visit)


def test_one_that_waits_too_long_for_its_next_request_is_cut_off(
    clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(http_listener, "_LOOK_SECONDS", 0.05)

    async def visit(port: int) -> None:
        assert await (await clients[0].connect(port)).answered()
        await clients[0].cut()

    serve(visit)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take all descriptors that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0] + 10, 64), hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


def test_with_no_descriptor_left_one_after_the_other_is_answered(clients: list[Client]) -> None:
    """Others took them: the spare one does for the first, who then makes room for the next."""

    async def visit(port: int) -> None:
        first, second, third, *_ = clients
        with no_descriptor_left():
            assert await (await first.connect(port)).answered()
            assert await first.answered()
            assert await (await second.connect(port)).answered()
            await first.cut()
            second.close()
            assert await (await third.connect(port)).answered()

    serve(visit, most=100)
