"""Runs the demo, and writes to a file everything that its server received through replication connections:
``python -m tests.support.captured_demo FILE PLUGIN``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.commands.demo import portal as portals
from server.commands.demo import run
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    import socket

    from server.commands.demo.cluster import Cluster
    from server.commands.demo.portal import Portal

SECONDS = 3.0


class Recorder(Proxy):
    """A proxy that records the bytes sent to clients that ask for replication."""

    def __init__(self, target: int) -> None:
        self.captured = bytearray()
        self._replication: set[socket.socket] = set()
        super().__init__(target)

    def passed(self, source: socket.socket, sink: socket.socket, content: bytes) -> None:
        """Record the bytes if they belong to a replication connection."""
        if b"replication\0database\0" in content:
            self._replication.add(sink)
        elif source in self._replication:
            self.captured += content


def main(file: Path, plugin: str) -> int:
    """Run the demo behind a recorder; returns the demo's exit code."""
    recorders: list[Recorder] = []
    create = portals.create

    def recorded(cluster: Cluster) -> Portal:
        portal = create(cluster)
        recorders.append(recorder := Recorder(cluster.port))
        behind = portal.streamer.replace(f":{cluster.port}/", f":{recorder.port}/")
        return portals.Portal(portal.owner, behind)

    portals.create = recorded
    portals.PLUGIN = plugin
    code = run(SECONDS, plain=True, envoy=False, relays=0)
    file.write_bytes(b"".join(bytes(recorder.captured) for recorder in recorders))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
