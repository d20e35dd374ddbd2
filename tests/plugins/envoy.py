"""The real Envoy before an authorizer, with an upstream that says what it got; requests byte by byte."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from server.commands.demo.envoy_process import EnvoyProcess
from server.commands.demo.upstream import EchoUpstream
from tests.plugins.server import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Reply:
    """What a client got."""

    code: int
    headers: dict[str, str]
    body: str

    @property
    def path(self) -> str:
        """The path that the upstream got."""
        found: str = json.loads(self.body)["path"]
        return found

    @property
    def upstream(self) -> list[tuple[str, str]]:
        """Headers that the upstream got, in lower case. It reads their bytes as LATIN1; they are UTF-8."""
        headers = json.loads(self.body)["headers"]
        return [(name, value.encode("latin-1").decode()) for name, value in headers]


@dataclass(frozen=True)
class Gateway:
    """An Envoy that takes requests."""

    process: EnvoyProcess
    port: int = field(default=0)

    def get(self, path: str, headers: Sequence[tuple[str, str]] = ()) -> Reply:
        """Send a request as it is written, each character of a path or a header one byte."""
        lines = [f"GET {path} HTTP/1.1", "host: gateway", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        sent = "\r\n".join([*lines, "", ""]).encode("latin-1")
        with socket.create_connection(("127.0.0.1", self.process.port), DEADLINE) as connection:
            connection.sendall(sent)
            return read_reply(connection)

    def wait(self, code: int, path: str, headers: Sequence[tuple[str, str]] = ()) -> Reply:
        """Return the first reply with this code."""
        got: list[Reply] = []

        def answered() -> bool:
            got.append(self.get(path, headers))
            return got[-1].code == code

        wait_until(answered, f"{code} for {path}")
        return got[-1]

    def stat(self, name: str) -> int:
        """Return one of Envoy's counters."""
        return int(self.process.admin(f"/stats?filter=^{name}$").rpartition(":")[2] or 0)


def read_reply(connection: socket.socket) -> Reply:
    """Read one reply, whose length Envoy says."""
    with connection.makefile("rb") as stream:
        code = int(stream.readline().split()[1])
        headers: dict[str, str] = {}
        while line := stream.readline().decode("latin-1").strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return Reply(code, headers, stream.read(int(headers.get("content-length", 0))).decode())


class EnvoyFactory(Protocol):
    """Starts an Envoy before an authorizer's port (or address, as Envoy writes it); it ends with the test."""

    def __call__(self, authorizer: int | str, **options: Any) -> Gateway: ...


@pytest.fixture
def envoy(tmp_path: Path) -> Iterator[EnvoyFactory]:
    """Envoys of a test's own."""
    with ExitStack() as running:
        yield lambda authorizer, **options: start_envoy(running, tmp_path, authorizer, **options)


def start_envoy(running: ExitStack, folder: Path, authorizer: int | str, **options: Any) -> Gateway:
    """Start one that ends with the context."""
    upstream = options.pop("upstream", None) or running.enter_context(EchoUpstream()).port
    address = f"socket_address: {{address: 127.0.0.1, port_value: {authorizer}}}"
    process = EnvoyProcess(
        folder,
        authorizer=authorizer if isinstance(authorizer, str) else address,
        upstream=upstream,
        **options,
    )
    running.enter_context(process)
    return Gateway(process.wait_ready())
