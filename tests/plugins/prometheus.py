"""A real Prometheus that scrapes the servers of a test, and promtool."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from server.commands.demo.cluster import free_port
from tests.plugins.server import wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.plugins.server import Server

RULES = ROOT / "deploy/prometheus/pads-cdc.rules.yml"
DEADLINE = 60.0
"""Seconds after which a value that should come soon counts as never; a scrape has to fit in."""

_CONFIGURATION = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: ['{rules}']
scrape_configs:
  - job_name: pads-cdc
    static_configs:
      - targets: {targets}
"""


@dataclass(frozen=True)
class Sample:
    """One series of an instant query."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """One Prometheus; it scrapes its servers each second."""

    def __init__(self, programs: Path, folder: Path, servers: tuple[Server, ...]) -> None:
        targets = [f"127.0.0.1:{server.http}" for server in servers]
        configuration = folder / "prometheus.yml"
        configuration.write_text(_CONFIGURATION.format(rules=RULES, targets=targets))
        self._log = (folder / "prometheus.log").open("wb")
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                programs / "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=folder,
        )
        wait_until(lambda: _ready(self.process, self.port), "Prometheus is ready", DEADLINE)

    def query(self, promql: str) -> list[Sample]:
        """Evaluate at this moment. A value that is not a number counts as no sample, as a panel shows it."""
        result = self._ask("query", query=promql)["result"]
        samples = [Sample(one["metric"], float(one["value"][1])) for one in result]
        return [one for one in samples if not math.isnan(one.value)]

    def range(self, promql: str, seconds: float) -> list[list[float]]:
        """Evaluate for each of the last seconds; a list of values a series."""
        now = time.time()
        result = self._ask("query_range", query=promql, start=now - seconds, end=now, step=1)["result"]
        return [[float(value) for _, value in one["values"]] for one in result]

    def value(self, promql: str) -> float | None:
        """Return the only sample; None where there is none."""
        samples = self.query(promql)
        assert len(samples) <= 1, samples
        return samples[0].value if samples else None

    def wait(self, promql: str, condition: Callable[[float], bool], deadline: float = DEADLINE) -> float:
        """Return the first value that meets the condition."""
        met: list[float] = []

        def look() -> bool:
            value = self.value(promql)
            met[:] = [] if value is None else [value]
            return value is not None and condition(value)

        try:
            wait_until(look, promql, deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {met}") from None
        return met[0]

    def next_scrape(self) -> None:
        """Return when a scrape that began after this call is in."""
        asked = time.time()
        self.wait("timestamp(up)", lambda at: at > asked)

    def alerts(self) -> set[str]:
        """Names of the alerts that are pending or firing."""
        return {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"]}

    def wait_alerts(self, *names: str) -> None:
        """Return when all of these are pending or firing."""
        wait_until(lambda: set(names) <= self.alerts(), f"{names}; there are {self.alerts()}", DEADLINE)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(DEADLINE)
        self._log.close()

    def _ask(self, what: str, **parameters: object) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None


class PrometheusFactory(Protocol):
    """Starts a Prometheus that scrapes these servers; it ends with the test."""

    def __call__(self, *servers: Server) -> Prometheus: ...


@pytest.fixture(scope="session")
def prometheus_programs() -> Path:
    """The folder with prometheus and promtool, fetched if need be."""
    fetch = subprocess.run(
        [ROOT / "scripts/fetch-prometheus"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if fetch.returncode != 0:
        pytest.fail(fetch.stderr.strip())
    return Path(fetch.stdout.strip())


@pytest.fixture
def prometheus(prometheus_programs: Path, tmp_path: Path) -> Iterator[PrometheusFactory]:
    """Prometheus with our rules, beside the servers of a test."""
    with ExitStack() as running:

        def start(*servers: Server) -> Prometheus:
            folder = tmp_path / f"prometheus-{servers[0].http}"
            folder.mkdir()
            one = Prometheus(prometheus_programs, folder, servers)
            running.callback(one.stop)
            one.wait("sum(up)", lambda up: up == len(servers))
            return one

        yield start


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, "prometheus has ended: see its log in the test's folder"
    with (
        suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1) as answer,
    ):
        return bool(answer.status == 200)
    return False
