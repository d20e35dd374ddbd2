"""Signals that are meant for something else end nothing, at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.command import Command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

MEANINGLESS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


class Hail:
    """Sends a process these signals again and again while the context lasts, from when it takes them on."""

    def __init__(self, pid: int, signals: Sequence[signal.Signals]) -> None:
        self._process = os.pidfd_open(pid)
        self._status = Path(f"/proc/{pid}/status")
        self._signals = signals
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._process)

    def _run(self) -> None:
        wait_until(lambda: all(map(self._taken, self._signals)), "it takes them")
        with suppress(ProcessLookupError):
            while not self._stopping.wait(0.005):
                for number in self._signals:
                    signal.pidfd_send_signal(self._process, number)
                    self.sent += 1

    def _taken(self, number: signal.Signals) -> bool:
        masks = re.findall(r"^Sig(?:Cgt|Ign):\s+(\w+)$", self._status.read_text(), re.MULTILINE)
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_none_ends_a_server_from_its_start_to_its_end(
    database: Database, gateway: GatewayFactory, tmp_path: Path
) -> None:
    """While it is made, loads, follows and ends: SIGHUP is answered in the log, and that is all."""
    fill(database, 2_000)
    given = {
        "POSTGRES_CONNECTION_STRING": database.url(),
        "STATE_FILE": str(tmp_path / "state"),
        "LOG_FORMAT": "json",
        "PORT": "0",
        "METRICS_PORT": "0",
    }
    with Command("serve", **given) as server, Hail(server.process.pid, MEANINGLESS) as hail:

        def said(event: str) -> dict[str, Any] | None:
            lines = (json.loads(line) for line in server.errors)
            return next((line for line in lines if line["event"] == event), None)

        serving = wait_until(lambda: said("serving"), "it serves")
        assert serving is not None
        client = gateway(cast("Server", SimpleNamespace(grpc=serving["grpc"])))
        wait_equal(client, database)
        for number in range(5):
            server.process.send_signal(signal.SIGHUP)
            database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + %s", (number + 1,))
            wait_equal(client, database)
        assert said("hangup")
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0, server.told()
        assert hail.sent > 100
    assert not [line for line in server.errors if json.loads(line)["level"] == "error"]


def test_sighup_ends_no_server_that_is_still_starting(database: Database, tmp_path: Path) -> None:
    given = {"POSTGRES_CONNECTION_STRING": database.url(), "STATE_FILE": str(tmp_path / "state")}
    with Command("serve", PORT="0", METRICS_PORT="0", **given) as server:
        with Hail(server.process.pid, (signal.SIGHUP,)):
            wait_until(lambda: any("serving" in line for line in server.errors), "it serves")
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0, server.told()


def test_none_ends_watch_and_sighup_ends_it_as_ctrl_c_does(database: Database, serve: ServerFactory) -> None:
    fill(database, 5)
    with Command("watch", "--json", f"127.0.0.1:{serve(database).wait_ready().grpc}") as watch:
        with Hail(watch.process.pid, MEANINGLESS) as hail:
            line = watch.wait_line("checkpoint")
            database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
            watch.wait_line("app_1", line)
            wait_until(lambda: hail.sent > 30, "it was sent some")
        watch.process.send_signal(signal.SIGHUP)
        assert watch.end() == 0, watch.told()


LOOPS = """
import asyncio, os, signal, threading
from server.signals import pass_by, stop_waking

def hail():
    while not ended.is_set():
        handled.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        handled.wait()  # thousands at once would fill the socket of the event loop

async def run():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    await asyncio.sleep(0)
    stop_waking()

ended, handled = threading.Event(), threading.Event()
pass_by(signal.SIGUSR1, then=handled.set)
thread = threading.Thread(target=hail)
thread.start()
for _ in range(2_000):
    asyncio.run(run())
ended.set()
thread.join()
"""


def test_none_is_reported_while_the_event_loop_closes() -> None:
    said = subprocess.run(
        [sys.executable, "-c", LOOPS], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stderr == ""
