"""Runs the demo: sets it up, runs it, compares, cleans up, and prints the summary."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

import psycopg2
from rich.console import Console

from cdc.errors import PadsCdcError
from server.commands.demo.figures import Figures
from server.commands.demo.portal import as_bytes, endpoints
from server.commands.demo.stage import StoppedEarly, set_up
from server.commands.demo.summary import RunSummary, summarize
from server.commands.demo.view import GateGlance, Glance, LiveView, PlainView
from server.commands.demo.workload import commit_until

if TYPE_CHECKING:
    from server.commands.demo.server_process import Gauges
    from server.commands.demo.stage import Stage
    from server.commands.demo.view import View
    from server.commands.interrupt import Interrupt

_EQUAL_SECONDS: Final = 10.0
"""Maximum wait after the last commit until the maps are equal to the database, in seconds."""
_FRAME: Final = 0.2
"""Seconds between two updates of the view."""
_PAGE: Final = 1.0
"""Seconds between two reads of the server's metrics page."""


def play(interrupt: Interrupt, *, seconds: float | None, plain: bool, envoy: bool, relays: int) -> int:
    """Run the demo; see `server.commands.demo.run`."""
    # Threads take turns more often than by default: drawing a screen must not delay an arrival.
    sys.setswitchinterval(0.0005)
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # libpq's variables are meant for other databases
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # we report errors of streams ourselves
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    try:
        with ExitStack() as ending:
            stage = set_up(ending, interrupt, console.print, envoy=envoy, relays=relays)
            live = console.is_terminal and not plain
            view = LiveView(console, stage.server.target) if live else PlainView(console)
            with view:
                performance = _Performance(stage, view)
                performance.run(interrupt, seconds)
                verdict = performance.compare()
    except StoppedEarly:
        console.print("stopped before the workload began: there is nothing to compare")
        return 0
    except psycopg2.Error as error:
        raise PadsCdcError(f"the demo's database failed: {str(error).strip().splitlines()[0]}") from error
    return summarize(console, performance.figures, verdict, stage.server.stop())


class _Performance:
    """The main thread's part: shows the workload, and compares the maps at the end."""

    def __init__(self, stage: Stage, view: View) -> None:
        self._stage = stage
        self._view = view
        self._gauges: Gauges | None = None
        self._next_page = 0.0
        self._began = time.monotonic()
        self._elapsed = 0.0
        self.figures = Figures()

    def run(self, interrupt: Interrupt, seconds: float | None) -> None:
        """Let the workload run for ``seconds``, or until Ctrl-C."""
        stop = threading.Event()
        with ThreadPoolExecutor(1, "workload") as threads:
            gate = self._stage.gate
            watching = [self._stage.arrivals, *(() if gate is None else (gate.callers,))]
            committing = threads.submit(commit_until, stop, self._stage.portal, *watching)
            try:
                while not committing.done() and (seconds is None or self._elapsed < seconds):
                    stopping = interrupt.wait(_FRAME)
                    self._elapsed = time.monotonic() - self._began
                    self._look()
                    if stopping:
                        break
            finally:
                stop.set()
            committing.result()

    def compare(self) -> RunSummary:
        """Compare the subscribers' maps with the database. Waits for a limited time until they are equal."""
        with closing(self._stage.portal.connect()) as session, session.cursor() as cursor:
            true = as_bytes(endpoints(cursor))
        deadline = time.monotonic() + _EQUAL_SECONDS
        while (wrong := self._wrong(true)) and time.monotonic() < deadline:
            self._look()
            time.sleep(_FRAME / 4)
        self._look()
        gateways, gate, mover = self._stage.subscribers, self._stage.gate, self._stage.mover
        return RunSummary(
            seconds=self._elapsed,
            subscribers=len(gateways),
            updates=sum(one.updates for one in gateways),
            losses=tuple(loss for one in gateways for loss in one.losses),
            overtaken=self._stage.arrivals.awaited,
            endpoints=len(true),
            wrong=tuple(wrong),
            answers={} if gate is None else gate.callers.answers,
            faults=() if gate is None else tuple(gate.callers.faults),
            moves=0 if mover is None else mover.moves,
            resets=0 if mover is None else mover.resets,
        )

    def _wrong(self, true: dict[str, bytes]) -> list[str]:
        """Return the ids of endpoints that differ between a subscriber and the database."""
        wrong: set[str] = set()
        for gateway in self._stage.subscribers:
            held = gateway.held()
            wrong.update(each for each in held | true if held.get(each) != true.get(each))
        return sorted(wrong)

    def _look(self) -> None:
        self._stage.server.check()
        now = time.monotonic()
        if now >= self._next_page:
            self._next_page = now + _PAGE
            self._gauges = self._stage.server.gauges()
            self.figures.observe(self._gauges)
        deliveries = self._stage.arrivals.take()
        for delivery in deliveries:
            self.figures.deliver(delivery)
        gate, refusals = self._stage.gate, []
        if gate is not None:
            gate.check()
            refusals = gate.callers.take()
            self.figures.refused.extend(refusal.seconds for refusal in refusals)
        self._view.show(
            Glance(
                began=self._began,
                elapsed=now - self._began,
                deliveries=deliveries,
                figures=self.figures,
                awaited=self._stage.arrivals.awaited,
                gauges=self._gauges,
                held=tuple(one.count for one in self._stage.subscribers),
                updates=sum(one.updates for one in self._stage.subscribers),
                gate=None if gate is None else GateGlance(gate.address, gate.callers.answers, refusals),
            )
        )
