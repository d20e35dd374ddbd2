"""Accepts the connections of the HTTP port. Its rules make sure that health and metrics are answered even if
other clients misbehave.

If a client connects and sends no request, its connection is soon closed. The number of connections has a
limit. At the limit, a new connection replaces the one that has been idle for the longest time. If the process
has no descriptor left, a spare descriptor is released for the next connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST_SECONDS: Final = 10.0
"""Seconds that a new connection may take to send its first request."""
IDLE_SECONDS: Final = 90.0
"""Seconds that an answer and the next request may take together. Prometheus scrapes once a minute."""
_LOOK_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.05
"""Seconds between two attempts to accept a connection while no descriptor is left."""
_BACKLOG: Final = 128
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})
_NO_SUCH_ADDRESS: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class HttpListener:
    """Accepts connections in the running event loop. Not thread-safe."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], most: int) -> None:
        """``protocol`` makes the protocol of each connection.

        ``most`` is the maximum number of connections.
        """
        self._protocol = protocol
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._deadlines: dict[asyncio.Transport, float] = {}
        """For each connection, the time at which it is closed if it sends no request. The first connection
        has been idle for the longest time.
        """
        self._listening: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._spare: int | None = None
        """A descriptor that can be released for a new connection."""

    async def listen(self, host: str, port: int) -> int:
        """Listen on every address of a host, and return the port.

        Raises:
            OSError: the port is in use, or the host is not an address of this machine.

        """
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        refused: OSError | None = None
        for family, _, _, _, (name, _, *more) in dict.fromkeys(found):
            try:
                one = socket.create_server((name, port, *more), family=family, backlog=_BACKLOG)
            except OSError as error:
                refused = error
                if error.errno in _NO_SUCH_ADDRESS:
                    continue  # another address of the same name may belong to this machine
                break
            one.setblocking(False)
            self._listening.append(one)
            port = one.getsockname()[1]
        if refused is not None and (not self._listening or refused.errno not in _NO_SUCH_ADDRESS):
            await self.close()
            raise refused
        self._take_spare()
        self._tasks = [self._loop.create_task(self._accept(one)) for one in self._listening]
        self._tasks.append(self._loop.create_task(self._look()))
        return port

    async def close(self) -> None:
        """Accept no more connections. Open connections stay open until their protocols close them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._listening:
            one.close()
        self._give_up_spare()

    def requested(self, transport: asyncio.Transport) -> None:
        """Record that a request has arrived."""
        if self._deadlines.pop(transport, None) is not None:
            self._deadlines[transport] = self._loop.time() + IDLE_SECONDS

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            # Without a descriptor, `accept` fails even if no client waits. Wait for a client first, so that
            # no connection is closed for nothing.
            await self._somebody_waits(listening)
            try:
                accepted, _ = listening.accept()
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR and not self._give_up_spare():
                    self._cut_longest_idle()
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            accepted.setblocking(False)
            self._forget_closed()
            if len(self._deadlines) >= self._most:
                self._cut_longest_idle()
            try:
                transport, _ = await self._loop.connect_accepted_socket(self._protocol, accepted)
            except OSError:
                accepted.close()
            else:
                self._deadlines[transport] = self._loop.time() + REQUEST_SECONDS
            self._take_spare()

    async def _somebody_waits(self, listening: socket.socket) -> None:
        somebody = asyncio.Event()
        self._loop.add_reader(listening, somebody.set)
        try:
            await somebody.wait()
        finally:
            self._loop.remove_reader(listening)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._forget_closed()
            self._take_spare()
            now = self._loop.time()
            for transport in [one for one, deadline in self._deadlines.items() if deadline < now]:
                self._cut(transport)

    def _forget_closed(self) -> None:
        for transport in [one for one in self._deadlines if one.is_closing()]:
            del self._deadlines[transport]

    def _cut_longest_idle(self) -> None:
        for transport in self._deadlines:
            self._cut(transport)
            break

    def _cut(self, transport: asyncio.Transport) -> None:
        del self._deadlines[transport]
        transport.abort()

    def _take_spare(self) -> None:
        if self._spare is None:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # try again later
                self._spare = None

    def _give_up_spare(self) -> bool:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)
        return spare is not None
