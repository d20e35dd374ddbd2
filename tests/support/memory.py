"""Measures the memory of a server's process from outside."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.plugins.server import DEADLINE

if TYPE_CHECKING:
    from tests.plugins.server import Server

MIB: Final = 2**20
_PAGE: Final = 4096


def resident(server: Server) -> int:
    """Return the present resident memory of the server's process, in bytes."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * _PAGE


def peak(server: Server) -> int:
    """Return the most resident memory that the server's process has ever had, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


class Peak:
    """Measures the growth of a server's memory while the context lasts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = resident(server)
        self.most = 0
        """Maximum bytes above the memory before the context."""
        self._stopped = threading.Event()
        self._looking = threading.Thread(target=self._look)

    @property
    def shown(self) -> str:
        """`most` as text for people."""
        return f"{self.most / MIB:.0f} MiB"

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._looking.join(DEADLINE)

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            self.most = max(self.most, resident(self._server) - self._before)
