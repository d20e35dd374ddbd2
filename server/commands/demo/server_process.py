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
from server.commands.demo import portal
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SECONDS: Final = 7.0
"""It ends within 5 s by itself."""
_PAGE_SECONDS: Final = 1.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""Of our environment; settings in it are meant for another server."""

_CALLED: Final = {"serve": "server", "relay": "relay", "authorize": "authorizer"}
"""What people call what a command runs."""


@dataclass(frozen=True)
class Gauges:
    """What the server says of itself on its metrics page."""

    staleness: float
    """Seconds since it was known to be exact."""
    behind: int
    """Bytes of WAL that are not applied yet."""


class _Process:
    """A command of ours that serves; its log is in ``folder``. Ends with its context."""

    def __init__(self, command: str, folder: Path, **settings: str) -> None:
        self._command = command
        self._log = folder / f"{command}.log"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json"} | settings
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(  # noqa: S603 (nothing in it comes from outside)
                # Whatever kills us, even SIGKILL, ends it too.
                ["setpriv", "--pdeathsig", "TERM", sys.executable, "-P", "-m", "server", command],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C goes to the terminal's process group; it is to outlive the last comparison.
                start_new_session=True,
            )
        self.target = ""
        """Where its gRPC listens; empty until it serves."""
        self._http = 0

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
                self.target, self._http = f"127.0.0.1:{said['grpc']}", said["http"]
        return bool(self.target)

    def check(self) -> None:
        """Raise PadsCdcError, with the last line that it wrote, if it has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text().strip().split("\n")
            said = lines[-1].removeprefix("pads-cdc: ") or f"exit code {self._process.returncode}"
            raise PadsCdcError(f"the demo's {_CALLED[self._command]} has ended: {said}")

    def _page(self, path: str) -> tuple[int, str]:
        """Ask for a page; raises OSError or HTTPException if it does not answer within a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=_PAGE_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> int:
        """Ask it to stop, wait until it has, and return its exit code; one that does not is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


class ServerProcess(_Process):
    """``pads-cdc serve``; its state file is in ``folder`` too."""

    def __init__(self, connection_string: str, folder: Path, broker: str = "") -> None:
        """With ``broker``, the address of one, it publishes its map there."""
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
        """Read its metrics page, or None if it does not answer within a second."""
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
    """One that tells by its page whether it holds the whole map."""

    def ready(self) -> bool:
        """Tell whether it holds the whole map."""
        try:
            return self._page("/readyz")[0] == 200  # noqa: PLR2004 (HTTP's)
        except (OSError, http.client.HTTPException):
            return False


class RelayProcess(_Ready):
    """``pads-cdc relay`` behind a broker."""

    def __init__(self, broker: str, folder: Path) -> None:
        super().__init__("relay", folder, BROKER_URL=broker)


class AuthorizerProcess(_Ready):
    """``pads-cdc authorize`` on the feed at an address."""

    def __init__(self, feed: str, folder: Path) -> None:
        super().__init__("authorize", folder, FEED_ADDRESSES=feed, DRAIN_TIME="1ms")
