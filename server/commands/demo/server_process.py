"""The commands `serve`, `relay` and `authorize` in processes of their own, as an operator would run them."""

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
from server.commands.demo import portal
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SECONDS: Final = 7.0
"""Maximum wait for the end of a process. Each ends within 5 s by itself."""
_PAGE_SECONDS: Final = 1.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""The variables that a process inherits. Settings in our environment are meant for another server."""

_CALLED: Final = {"serve": "server", "relay": "relay", "authorize": "authorizer"}
"""The name of the process that a command runs, for messages."""


@dataclass(frozen=True)
class Gauges:
    """Values of the server's metrics page."""

    staleness: float
    """Seconds since the map was last known to be exact."""
    behind: int
    """Bytes of WAL that are not applied yet."""


class _Process:
    """A running command, with its log in ``folder``. It ends with its context."""

    def __init__(self, command: str, folder: Path, **settings: str) -> None:
        self._command = command
        self._log = folder / f"{command}.log"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json"} | settings
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(  # noqa: S603 (nothing in it comes from outside)
                # If we are killed, even by SIGKILL, it ends too.
                ["setpriv", "--pdeathsig", "TERM", sys.executable, "-P", "-m", "server", command],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C goes to the terminal's process group, but the process must survive until the end.
                start_new_session=True,
            )
        self.target = ""
        """The address of its gRPC port; empty until it serves."""
        self._http = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serving(self) -> bool:
        """Return whether its log says that it serves. Calls then wait until its map is complete.

        Raises:
            PadsCdcError: the process has ended.

        """
        self.check()
        for line in self._log.read_text().split("\n")[:-1]:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "serving":
                self.target, self._http = f"127.0.0.1:{said['grpc']}", said["http"]
        return bool(self.target)

    def check(self) -> None:
        """Raise PadsCdcError, with the last line of its log, if it has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text().strip().split("\n")
            said = lines[-1].removeprefix("pads-cdc: ") or f"exit code {self._process.returncode}"
            raise PadsCdcError(f"the demo's {_CALLED[self._command]} has ended: {said}")

    def _page(self, path: str) -> tuple[int, str]:
        """Read a page. Raises OSError or HTTPException if there is no answer within a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_PAGE_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> int:
        """Stop the process and return its exit code. It is killed if it does not end in time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


class ServerProcess(_Process):
    """A running ``pads-cdc serve``, with its state file in ``folder`` too."""

    def __init__(self, connection_string: str, folder: Path, broker: str = "") -> None:
        """``broker`` is the URL of a broker to which it publishes its map, or empty."""
        state = str(folder / "state")
        super().__init__(
            "serve",
            folder,
            POSTGRES_CONNECTION_STRING=connection_string,
            STATE_FILE=state,
            PLUGIN=portal.PLUGIN,
            BROKER_URL=broker,
        )

    def gauges(self) -> Gauges | None:
        """Read the metrics page. Returns None if there is no answer within a second."""
        try:
            _, page = self._page("/metrics")
        except (OSError, http.client.HTTPException):
            return None
        series = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return Gauges(
            staleness=float(series["pads_cdc_replication_lag_seconds"]),
            behind=int(float(series['pads_cdc_replication_lag_bytes{stage="applied"}'])),
        )


class _Ready(_Process):
    """A process whose ``/readyz`` says whether it holds the whole map."""

    def ready(self) -> bool:
        """Return whether it holds the whole map."""
        try:
            return self._page("/readyz")[0] == 200  # noqa: PLR2004 (HTTP's)
        except (OSError, http.client.HTTPException):
            return False


class RelayProcess(_Ready):
    """A running ``pads-cdc relay`` behind a broker."""

    def __init__(self, broker: str, folder: Path) -> None:
        super().__init__("relay", folder, BROKER_URL=broker)


class AuthorizerProcess(_Ready):
    """A running ``pads-cdc authorize``, a client of the feed at an address."""

    def __init__(self, feed: str, folder: Path) -> None:
        super().__init__("authorize", folder, FEED_ADDRESSES=feed, DRAIN_TIME="1ms")
