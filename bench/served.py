"""A server of ours in its own process, and its cost."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH")
"""Variables that the server inherits. Other variables may be settings for another server."""
_LOOK: Final = 0.01
"""Seconds between two checks whether a starting server is ready."""
_STOP_SECONDS: Final = 20.0
_SCHEDULED: Final = 2
"""The number of a process's CPU clock that the scheduler keeps (CPUCLOCK_SCHED)."""


class ServerEndedError(RuntimeError):
    """The server has ended or does not become ready. The message contains the last line of its log."""


class Served:
    """A process of ``pads-cdc``, such as a server or a relay. It is started at once and ends with the
    context.
    """

    def __init__(self, command: str, folder: Path, settings: Mapping[str, str]) -> None:
        self._log = folder / "log"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "PORT": "0",
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
            **settings,
        }
        self.started_at = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 (all of it is ours)
                # It ends when this process ends, for whatever reason.
                ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "server", command],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.grpc = 0
        """The port for gateways; 0 until the process listens."""
        self._http = 0
        self.ready_after = 0.0
        """Seconds from the start until it had a complete map; 0 while it has none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def target(self) -> str:
        """The address for gateways."""
        return f"127.0.0.1:{self.grpc}"

    def wait_ready(self, deadline: float) -> None:
        """Wait until it has a complete map.

        Raises:
            ServerEndedError: the process ended, or took too long.

        """
        while time.monotonic() < self.started_at + deadline:
            if self.process.poll() is not None:
                break
            if not self._http:
                self._find_ports()
            elif self._page("/readyz")[0] == 200:  # noqa: PLR2004 - HTTP's OK
                self.ready_after = time.monotonic() - self.started_at
                return
            time.sleep(_LOOK)
        lines = self._log.read_text().strip().splitlines()
        raise ServerEndedError(f"the server is not ready: {lines[-1] if lines else 'it said nothing'}")

    def listens(self) -> bool:
        """Return whether its log has reported the addresses on which it listens."""
        if not self._http:
            self._find_ports()
        return bool(self._http)

    def metric(self, name: str) -> float:
        """Return the value of a series, by name and labels as in /metrics, or 0.0."""
        for line in self._page("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series == name:
                return float(value)
        return 0.0

    def wait_metric(self, at_least: float, name: str) -> None:
        """Wait until a series has reached a value."""
        while self.metric(name) < at_least:
            if self.process.poll() is not None:
                raise ServerEndedError(f"the server has ended before {name} was {at_least:g}")
            time.sleep(_LOOK)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all its threads, user and system."""
        return cpu_seconds(self.process.pid)

    def resident_bytes(self, *, peak: bool = False) -> int:
        """Return its resident memory, or its peak since `forget_peak`."""
        name = "VmHWM:" if peak else "VmRSS:"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        """Reset the peak to the current memory."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """Ask the process to end, and wait for the end. If it does not end in time, kill it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _find_ports(self) -> None:
        for line in self._log.read_text().split("\n")[:-1]:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "serving":
                self.grpc, self._http = said["grpc"], said["http"]

    def _page(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_STOP_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, user and system, with a precision of nanoseconds.

    The ticks in /proc are too coarse: by them, short runs would take no time.
    """
    return time.clock_gettime(~pid << 3 | _SCHEDULED)  # as clock_getcpuclockid makes it
