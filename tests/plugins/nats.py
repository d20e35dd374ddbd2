"""Real NATS servers with JetStream, alone or as a cluster of three, that a test can freeze, kill and
restore.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.plugins.server import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(sys.executable).with_name("nats-server")


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as sockets:
        held = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in held]


class Node:
    """One NATS server; its folder outlives its process."""

    def __init__(self, folder: Path, name: str, port: int, config: str) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "nats.conf"
        self.config.write_text(
            f"server_name: {name}\nlisten: 127.0.0.1:{port}\n"
            f"jetstream {{ store_dir: {self.store}, max_mem: 64MB, max_file: 4GB }}\n{config}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> Node:
        """Start it, and return once it listens."""
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen([PROGRAM, "-c", self.config], stdout=log, stderr=log)
        wait_until(self._listens, f"{self.url} listens")
        return self

    def configure(self, before: str, after: str) -> None:
        """Replace something in its configuration, and start it, or start it again."""
        text = self.config.read_text()
        assert before in text
        self.stop()
        self.config.write_text(text.replace(before, after))
        self.start()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(DEADLINE)

    def stop(self) -> None:
        """End it in good order: everything is on the disk then."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DEADLINE)

    def copy(self, name: str) -> Path:
        """Copy its folder, while it does not run; returns the copy."""
        return Path(shutil.copytree(self.store, self.folder / name))

    def restore(self, copied: Path) -> None:
        """Put a copy in its folder's place, while it does not run."""
        shutil.rmtree(self.store)
        shutil.copytree(copied, self.store)


class NodeFactory(Protocol):
    """Makes a server that does not run yet; it ends with the test."""

    def __call__(self, config: str = "") -> Node: ...


@pytest.fixture
def nats_node(tmp_path: Path) -> Iterator[NodeFactory]:
    """Servers of a test's own, with lines for their configuration."""
    nodes: list[Node] = []

    def make(config: str = "") -> Node:
        number = len(nodes)
        node = Node(tmp_path / f"nats-{number}", f"n{number}", free_ports(1)[0], config)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.kill()


@pytest.fixture
def nats(nats_node: NodeFactory) -> Node:
    """One server that runs."""
    return nats_node().start()


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], None]]:
    """Puts a disk of 16 MB under a folder, which a test can fill. Only root may."""
    with ExitStack() as mounted:

        def put_under(folder: Path) -> None:
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=16m", "pads-cdc-test", folder]
            if subprocess.run(command, check=False, capture_output=True).returncode != 0:
                pytest.skip("we may not mount a disk")
            mounted.callback(subprocess.run, ["umount", "--lazy", folder], check=True)

        yield put_under


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[list[Node]]:
    """A cluster of three that runs."""
    ports = free_ports(6)
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports[3:])
    nodes = [
        Node(
            tmp_path / f"cluster-{number}",
            f"c{number}",
            ports[number],
            f"cluster {{ name: three, listen: 127.0.0.1:{ports[3 + number]}, routes: [{routes}] }}\n",
        )
        for number in range(3)
    ]
    for node in nodes:
        node.start()
    yield nodes
    for node in nodes:
        node.kill()
