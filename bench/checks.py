"""Callers of an authorizer, each in its own process. They use gRPC as Envoy does, or HTTP through Envoy."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from pads_cdc_client import EndpointFeed

from bench import children
from bench.following import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from bench.following import Notebook

    _Check = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

_CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"
_DROPPED_SECONDS: Final = 10.0
"""The duration that is noted for a check without an answer."""
_UNDER_WAY: Final = 32
"""Number of concurrent checks of a busy Envoy."""
_HEADERS: Final = {
    "portal-application-id": "",
    "authorization": "",
    ":authority": "api.example",
    "user-agent": "bench",
    "content-type": "application/json",
}

Call = tuple[str, str]
"""An endpoint and its key."""


def saturate(target: str, calls: Sequence[Call], seconds: float) -> int:
    """Send checks as fast as answers arrive, many at the same time. Return the number of answers."""
    count: int = _in_process(_saturate, target, calls, seconds)
    return count


def at_rate(target: str, calls: Sequence[Call], rate: float) -> Asking:
    """Begin to send checks at a steady rate, without waiting for answers."""
    return Asking(_at_rate, target, calls, rate)


def through_envoy(port: int, calls: Sequence[Call], rate: float) -> Asking:
    """Begin to send requests over one connection, at a steady rate if answers arrive in time."""
    return Asking(_through_envoy, port, calls, rate)


class Asking:
    """A process that sends checks until `stop`. That returns a pair for each: its time, and the seconds until
    the answer.
    """

    def __init__(self, ask: Callable[..., None], *arguments: Any) -> None:
        self._pipe, other = children.Pipe()
        self._process = children.start(ask, other, *arguments)
        other.close()
        self._pipe.recv()  # the process has begun

    def stop(self) -> list[tuple[float, float]]:
        """End the process."""
        self._pipe.send(None)
        found: list[tuple[float, float]] = self._pipe.recv()
        self._process.join()
        return found


class Prober:
    """Uses a key through Envoy until it is refused."""

    def __init__(self, port: int) -> None:
        self._pipe, other = children.Pipe()
        self._process = children.start(_probe, other, port)
        other.close()

    def use(self, call: Call) -> None:
        """Begin to use the key. Returns after the key has been accepted once."""
        self._pipe.send(call)
        self._pipe.recv()

    def refused_at(self) -> float:
        """Return the time of the first refusal, by `bench.following.now`."""
        at: float = self._pipe.recv()
        return at

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


@contextmanager
def probing(port: int) -> Iterator[Prober]:
    """Run a prober while the context lasts."""
    prober = Prober(port)
    try:
        yield prober
    finally:
        prober.close()


def follow(notebook: Notebook, target: str) -> None:
    """Run the feed's client, as an authorizer does. Arrivals before the client is ready are not noted."""
    feed = EndpointFeed(
        target, client_id="bench", on_change=lambda change: notebook.arrived([change.endpoint_id], now())
    )
    with feed:
        feed.wait_ready(60)
        notebook.answer("mark", 0, 0)
        notebook.following()
        while True:
            time.sleep(60)


def requests(calls: Sequence[Call]) -> list[bytes]:
    """Serialize the requests that Envoy sends for such calls."""
    made = []
    for endpoint_id, key in calls:
        request = CheckRequest()
        http = request.attributes.request.http
        http.method, http.path, http.scheme, http.protocol = "POST", "/v1/", "https", "HTTP/1.1"
        http.id, http.host = "1234567890123456789", "api.example"
        for name, value in {**_HEADERS, "portal-application-id": endpoint_id, "authorization": key}.items():
            http.header_map.headers.add(key=name, raw_value=value.encode())
        made.append(request.SerializeToString())
    return made


def _in_process(run: Callable[..., None], *arguments: Any) -> Any:
    pipe, other = children.Pipe()
    process = children.start(run, other, *arguments)
    other.close()
    try:
        return pipe.recv()
    finally:
        process.join()


def _saturate(pipe: Connection, target: str, calls: Sequence[Call], seconds: float) -> None:
    async def run() -> int:
        asked = requests(calls)
        count = 0
        async with grpc.aio.insecure_channel(target) as channel:
            check: _Check = channel.unary_unary(
                _CHECK
            )  # bytes in, bytes out, so that the client costs as little as possible
            await check(asked[0], wait_for_ready=True)
            until = time.monotonic() + seconds

            async def ask() -> None:
                nonlocal count
                while time.monotonic() < until:
                    await check(random.choice(asked))  # noqa: S311 (it need not be unpredictable)
                    count += 1

            await asyncio.gather(*(ask() for _ in range(_UNDER_WAY)))
        return count

    pipe.send(asyncio.run(run()))


def _at_rate(pipe: Connection, target: str, calls: Sequence[Call], rate: float) -> None:
    gc.disable()  # a full collection takes 40 ms here, and would be measured as the server's time

    async def run() -> list[tuple[float, float]]:
        asked, found = requests(calls), []
        async with grpc.aio.insecure_channel(target) as channel:
            check: _Check = channel.unary_unary(_CHECK)

            async def ask(request: bytes, at: float) -> None:
                try:
                    answer = CheckResponse.FromString(await check(request))
                except grpc.aio.AioRpcError:  # gRPC drops calls if the server is 1,000 behind
                    found.append((at, _DROPPED_SECONDS))
                    return
                if answer.WhichOneof("http_response") != "ok_response":
                    raise RuntimeError(f"refused: {answer.denied_response.body}")
                found.append((at, now() - at))

            await check(asked[0], wait_for_ready=True)
            pipe.send(True)
            began, number, tasks = now(), 0, set()
            while not pipe.poll():
                at = began + number / rate
                if (wait := at - now()) > 0:
                    await asyncio.sleep(wait)
                task = asyncio.create_task(ask(random.choice(asked), now()))  # noqa: S311
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.gather(*tasks)
        return found

    pipe.send(asyncio.run(run()))


class _Http:
    """One persistent connection, which implements only the needed part of HTTP."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")

    def get(self, call: Call) -> int:
        """Return the status code of the answer."""
        endpoint_id, key = call
        self._socket.sendall(
            f"GET /v1/{endpoint_id} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
        )
        code, length = int(self._stream.readline().split()[1]), 0
        while line := self._stream.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self._stream.read(length)
        return code


def _through_envoy(pipe: Connection, port: int, calls: Sequence[Call], rate: float) -> None:
    connection, found = _Http(port), []
    pipe.send(True)
    began, number = now(), 0
    while not pipe.poll():
        time.sleep(max(0.0, began + number / rate - now()))
        at = now()
        if (code := connection.get(random.choice(calls))) != 200:  # noqa: S311, PLR2004
            raise RuntimeError(f"Envoy answered {code}")
        found.append((at, now() - at))
        number += 1
    pipe.send(found)


def _probe(pipe: Connection, port: int) -> None:
    connection = _Http(port)
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            os._exit(0)
        while connection.get(call) != 200:  # noqa: PLR2004 (the key may not have arrived yet)
            pass
        pipe.send(True)
        while connection.get(call) == 200:  # noqa: PLR2004
            pass
        pipe.send(now())
