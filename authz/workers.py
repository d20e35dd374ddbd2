"""Several processes on one port: a supervisor that starts workers, and the workers' reports to it.

Each worker writes its health and metrics as a line of JSON to its standard output, once a second and whenever
its readiness changes. The supervisor has the only HTTP port, and answers from the last lines. A worker ends
when its standard input is closed, so it always ends with the supervisor.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from authz.health import Reason
from authz.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from authz.health import AuthorizerHealth

    Start = Callable[[int, bool], Awaitable[asyncio.subprocess.Process]]
    """Starts the worker with a number, which is 1 or more. If the second argument is True, the worker listens
    only after its map is complete.
    """

_log = structlog.get_logger("pads_cdc")

_LOOK_SECONDS: Final = 0.1
_REPORT_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 15.0
"""If a worker reports nothing for this number of seconds, it hangs and is killed."""
_PAUSES: Final = (1.0, 30.0)
"""Seconds before a worker is started again: the first pause and the longest pause."""
_LASTED_SECONDS: Final = 60.0
"""If a worker has run for this number of seconds, the next pause is the first pause again."""


# --- in the worker


@asynccontextmanager
async def reporting(
    registry: CollectorRegistry, health: AuthorizerHealth
) -> AsyncIterator[Callable[[int], None]]:
    """Report health and metrics to the supervisor while the context lasts; see `authz.serve.Expose`."""
    port, out = 0, sys.stdout.fileno()
    os.set_blocking(out, False)

    def serving(served: int) -> None:
        nonlocal port
        port = served

    async def report() -> None:
        told, due, unsent = None, 0.0, b""
        while True:
            now = time.monotonic()
            state = (port, health.unready(), health.reasons())
            if not unsent and (state != told or now >= due):
                line = {"port": port, "unready": state[1], "reasons": state[2]}
                line["metrics"] = generate_latest(registry).decode()
                unsent = json.dumps(line).encode() + b"\n"
                told, due = state, now + _REPORT_SECONDS
            with suppress(BlockingIOError, BrokenPipeError):  # a hanging supervisor must not stop checks
                unsent = unsent[os.write(out, unsent) :]
            await asyncio.sleep(_LOOK_SECONDS)

    task = asyncio.create_task(report())
    try:
        yield serving
    finally:
        task.cancel()
        await asyncio.wait([task])


async def orphaned() -> None:
    """Wait until the supervisor has ended."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(1024):
        pass


# --- in the supervisor


@dataclass
class _Worker:
    number: int
    process: asyncio.subprocess.Process | None = None
    report: dict[str, Any] = field(default_factory=dict)
    """The worker's last report; empty before the first report."""

    @property
    def listens(self) -> bool:
        return bool(self.report.get("port"))

    def told(self, what: str) -> Iterator[Reason]:
        for code, message in self.report.get(what, ()):
            yield Reason(code, f"worker {self.number}: {message}")


class Supervisor:
    """Keeps the workers running. Its health and metrics are those of all workers together."""

    def __init__(self, count: int, start: Start) -> None:
        self._start = start
        self._workers = [_Worker(number) for number in range(1, count + 1)]
        self._stopping = asyncio.Event()
        self._code = 0
        self.registry = CollectorRegistry()
        self.registry.register(_Together(self._workers))
        workers = Gauge(f"{PREFIX}_workers", "WORKERS as set.", registry=self.registry)
        workers.set(count)
        self._restarts = Counter(
            f"{PREFIX}_worker_restarts", "Workers that ended and were started again.", registry=self.registry
        )

    def unready(self) -> tuple[Reason, ...]:
        """Return the reasons why Envoy should not send checks: no worker listens, or a listening worker has
        no map.
        """
        listening = [worker for worker in self._workers if worker.listens]
        if not listening:
            return (Reason("not_ready", "no worker listens yet"),)
        return tuple(reason for worker in listening for reason in worker.told("unready"))

    def reasons(self) -> tuple[Reason, ...]:
        """Return everything that a person should look at. Empty if all workers are healthy."""
        found = [reason for worker in self._workers for reason in worker.told("reasons")]
        away = [worker for worker in self._workers if not worker.listens]
        found += [Reason("worker", f"worker {worker.number}: does not listen yet") for worker in away]
        return tuple(found)

    async def run(self, serving: Callable[[int], None]) -> int:
        """Run the workers until `stop`, or until one of them cannot start. When all of them listen, call
        ``serving``.

        Returns the exit code. A worker that cannot start writes the reason to standard error.
        """
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(self._keep(worker))
            while not self._stopping.is_set():
                if all(worker.listens for worker in self._workers):
                    serving(self._workers[0].report["port"])
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _LOOK_SECONDS)
        return self._code

    def stop(self, number: int) -> None:
        """Stop, and pass the signal on to the workers."""
        self._stopping.set()
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    async def _keep(self, worker: _Worker) -> None:
        pause, longest = _PAUSES
        while not self._stopping.is_set():
            began = time.monotonic()
            late = any(other.listens for other in self._workers if other is not worker)
            worker.process = await self._start(worker.number, late)
            await self._follow(worker, worker.process)
            code = await worker.process.wait()
            listened, worker.report = worker.listens, {}
            if self._stopping.is_set():
                return
            if not listened and not late:
                self._code = code or 1
                self.stop(signal.SIGTERM)
                return
            if time.monotonic() - began > _LASTED_SECONDS:
                pause = _PAUSES[0]
            _log.error("a worker ended and is started again", worker=worker.number, code=code, seconds=pause)
            self._restarts.inc()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, longest)

    async def _follow(self, worker: _Worker, process: asyncio.subprocess.Process) -> None:
        """Read a worker's reports until the worker ends. If it hangs, kill it."""
        assert process.stdout is not None  # noqa: S101 (for the type: it was started so)
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), _SILENT_SECONDS)
            except TimeoutError:
                if not self._stopping.is_set():
                    _log.error("a worker hangs and is killed", worker=worker.number)
                with suppress(ProcessLookupError):
                    process.kill()
                return
            if not line:
                return
            with suppress(ValueError):  # a line that a library has printed is not a report
                worker.report = json.loads(line)


class _Together(Collector):
    """The metrics of all workers. Each series has a label with the worker's number."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker in self._workers:
            for family in text_string_to_metric_families(worker.report.get("metrics", "")):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "worker": str(worker.number)}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()
