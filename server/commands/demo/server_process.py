"""Runs the commands `serve`, `relay` and `authorize` in separate processes, as an operator would run them."""

from __future__ import annotations

import http.client
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from server.commands.demo import portal
from server.commands.demo.child_process import ChildProcess

if TYPE_CHECKING:
    from pathlib import Path

_PAGE_SECONDS: Final = 1.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""The variables that a process inherits. The settings in our environment are left out, since they are meant
for another server.
"""

_CALLED: Final = {"serve": "server", "relay": "relay", "authorize": "authorizer"}
"""For each command, the name of its process in messages."""


@dataclass(frozen=True)
class Gauges:
    """Values of the server's metrics page."""

    staleness: float
    """Seconds since the map was last known to be exact."""
    behind: int
    """Bytes of WAL that are not applied yet."""


class _Process(ChildProcess):
    """A running command, with its log in ``folder``."""

    def __init__(self, command: str, folder: Path, **settings: str) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json"} | settings
        run = [sys.executable, "-P", "-m", "server", command]
        super().__init__(f"the demo's {_CALLED[command]}", run, folder / f"{command}.log", environment)
        self.target = ""
        """The address of its gRPC port; empty until it serves."""
        self._http = 0

    def serving(self) -> bool:
        """Return whether its log reports that it serves. Its clients may still have to wait for a complete
        map.

        Raises:
            PadsCdcError: the process has ended.

        """
        self.check()
        for line in self.log.read_text().split("\n")[:-1]:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "serving":
                self.target, self._http = f"127.0.0.1:{said['grpc']}", said["http"]
        return bool(self.target)

    def _page(self, path: str) -> tuple[int, str]:
        """Read a page. Raises OSError or HTTPException if there is no answer within a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_PAGE_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


class ServerProcess(_Process):
    """A running ``pads-cdc serve``, with its state file in ``folder`` too."""

    def __init__(self, connection_string: str, folder: Path, broker: str = "") -> None:
        """``broker`` is the URL of the broker to which it publishes its map. It may be empty."""
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
    """A process whose ``/readyz`` reports whether it has the whole map."""

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
