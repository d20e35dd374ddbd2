"""The real server, in a process of its own, as an operator would run it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from cdc.errors import PadsCdcError
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SECONDS: Final = 7.0
"""It ends within 5 s by itself."""
_PAGE_SECONDS: Final = 1.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""Of our environment; settings in it are meant for another server."""


@dataclass(frozen=True)
class Gauges:
    """What the server says of itself on its metrics page."""

    staleness: float
    """Seconds since it was known to be exact."""
    behind: int
    """Bytes of WAL that are not applied yet."""


class ServerProcess:
    """``pads-cdc serve``; its log and state file are in ``folder``. Ends with its context."""

    def __init__(self, connection_string: str, folder: Path) -> None:
        self._log = folder / "server.log"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {
            "POSTGRES_CONNECTION_STRING": connection_string,
            "PORT": "0",
            "METRICS_PORT": "0",
            "STATE_FILE": str(folder / "state"),
            "LOG_FORMAT": "json",
        }
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(
                # Whatever kills us, even SIGKILL, ends the server too.
                ["setpriv", "--pdeathsig", "TERM", sys.executable, "-P", "-m", "server", "serve"],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C goes to the terminal's process group; the server is to outlive the last comparison.
                start_new_session=True,
            )
        self.target = ""
        """Where gateways connect; empty until it serves."""
        self._metrics_port = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serving(self) -> bool:
        """Tell whether it has said that it serves: from then on calls are answered when its map is complete.

        Raises:
            PadsCdcError: it has ended.

        """
        self.check()
        for line in self._log.read_text().split("\n")[:-1]:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "serving":
                self.target, self._metrics_port = f"127.0.0.1:{said['grpc']}", said["http"]
        return bool(self.target)

    def check(self) -> None:
        """Raise PadsCdcError, with the last line that it wrote, if it has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text().strip().split("\n")
            said = lines[-1].removeprefix("pads-cdc: ") or f"exit code {self._process.returncode}"
            raise PadsCdcError(f"the demo's server has ended: {said}")

    def gauges(self) -> Gauges | None:
        """Read its metrics page, or None if it does not answer within a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=_PAGE_SECONDS)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        series = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return Gauges(
            staleness=float(series["pads_cdc_replication_lag_seconds"]),
            behind=int(float(series['pads_cdc_replication_lag_bytes{stage="applied"}'])),
        )

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and return its exit code; one that does not is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()
