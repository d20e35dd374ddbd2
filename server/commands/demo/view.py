"""The demo's views: the screen of `pads-cdc watch` with tables of its own, or plain lines."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, Self

from rich.text import Text

from server.commands.demo.figures import percentile
from server.commands.watch.feed import FeedSubscriber
from server.commands.watch.screen import Screen, Section
from server.commands.watch.table import TableColumn, TableRow, table
from server.commands.watch.view import WatchedFeed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from server.commands.demo.arrivals import Delivery
    from server.commands.demo.callers import RefusedKey
    from server.commands.demo.figures import Figures
    from server.commands.demo.server_process import Gauges

_RIPPLE: Final = 100
"""A commit that changes at least this many endpoints is highlighted."""
_KEPT: Final = 200
"""Number of commits that are kept, which is more than a screen has lines."""
_SYNC_SECONDS: Final = 5.0
"""Maximum wait for the feed's snapshot before the workload begins, in seconds. Without the wait, the snapshot
would delay arrivals.
"""
_TALL: Final = 34
"""Minimum number of lines of a screen that shows the latencies by kind of commit."""
_FIGURES: Final = (
    TableColumn("commits by kind", 19),
    *(TableColumn(heading, 9, right=True) for heading in ("commits", "endpoints", "p50", "p99", "max")),
)
_COMMITS: Final = (
    TableColumn("at", 8, right=True),
    TableColumn("commit", 19),
    TableColumn("of", 25, folds=True),
    TableColumn("changed", 7, right=True),
    TableColumn("had it after", 12, right=True),
)
_REFUSED: Final = TableColumn("Envoy refused", 13, right=True)


@dataclass(frozen=True)
class GateGlance:
    """Envoy's answers at one moment."""

    address: str
    answers: Mapping[int, int]
    """The number of answers by code."""
    refusals: Sequence[RefusedKey]
    """New since the last glance."""


@dataclass(frozen=True)
class Glance:
    """The state of the demo at one moment."""

    began: float
    """The time at which the workload began, by the deliveries' clock."""
    elapsed: float
    """Seconds since the workload began."""
    deliveries: Sequence[Delivery]
    """New since the last glance."""
    figures: Figures
    awaited: int
    """Number of commits that have not arrived yet."""
    gauges: Gauges | None
    held: tuple[int, ...]
    """Number of endpoints at each subscriber."""
    updates: int
    """Number of updates that all subscribers received together."""
    gate: GateGlance | None = None
    """Envoy's answers, with ``--envoy``."""


class View(Protocol):
    """A view: a context manager that shows glances."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def show(self, glance: Glance) -> None:
        """Show a glance."""


class PlainView:
    """A view with one line for each commit."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, glance: Glance) -> None:
        """Print what is new."""
        for one in glance.deliveries:
            at = f"{one.committed_at - glance.began:8.3f} s"
            size = f"{len(one.commit.changes):6,} endpoint{'s' if len(one.commit.changes) != 1 else ' '}"
            self._console.print(
                f"{at}  {one.commit.kind:<20} {one.commit.what:<26} {size} {milliseconds(one.seconds):>9}"
            )
        for refusal in () if glance.gate is None else glance.gate.refusals:
            after = milliseconds(refusal.seconds)
            self._console.print(
                f"{'':10}  Envoy: the old key's first {refusal.code} {after} after the commit"
            )


class LiveView:
    """A view on the whole screen: the feed, as `pads-cdc watch` shows it, and the commits."""

    def __init__(self, console: Console, target: str) -> None:
        self._watched = WatchedFeed(target, FeedSubscriber(target), until_synced=False)
        self._screen = Screen(console, self._watched, title=f"pads-cdc demo, and watch {target}")
        self._latest: deque[Delivery] = deque(maxlen=_KEPT)
        self._refused: dict[int, RefusedKey] = {}
        """Refused keys by the number of their commit."""
        self._reading: Future[None] = Future()
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            threads = ending.enter_context(ThreadPoolExecutor(1, "watch"))
            ending.callback(self._watched.close)
            self._reading = threads.submit(self._watched.read)
            self._watched.synced.wait(_SYNC_SECONDS)
            ending.enter_context(self._screen)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def show(self, glance: Glance) -> None:
        """Redraw the screen."""
        if self._reading.done():
            self._reading.result()
        self._latest.extendleft(glance.deliveries)
        figures = _figures(glance.figures)
        if self._screen.height < _TALL:
            figures = figures[-1:]
        columns: Sequence[TableColumn] = _COMMITS
        if glance.gate is not None:
            columns = (*_COMMITS, _REFUSED)
            self._refused |= {refusal.number: refusal for refusal in glance.gate.refusals}
        commits = [_commit(one, glance.began) for one in self._latest]
        if glance.gate is not None:
            refused = [self._refused.get(one.commit.number) for one in self._latest]
            commits = [
                replace(
                    row, cells=(*row.cells, "" if one is None else f"{one.code} {milliseconds(one.seconds)}")
                )
                for row, one in zip(commits, refused, strict=True)
            ]
        self._screen.draw(_state(glance), (Section(_FIGURES, figures, 0), Section(columns, commits, 2)))


def figures_table(figures: Figures, width: int) -> list[Text]:
    """Return a table of latencies by kind of commit."""
    return table(_FIGURES, _figures(figures), width)


def answers(counted: Mapping[int, int]) -> str:
    """Format the number of answers by code."""
    return "  ".join(f"{code}: {count:,}" for code, count in counted.items())


def milliseconds(seconds: float | None) -> str:
    """Format a latency; None becomes a dash."""
    return "-" if seconds is None or math.isnan(seconds) else f"{1000 * seconds:,.1f} ms"


def _figures(figures: Figures) -> list[TableRow]:
    rows = []
    for kind, row in (*figures.rows.items(), ("total", figures.total)):
        latencies = [milliseconds(percentile(row.seconds, share)) for share in (0.5, 0.99, 1)]
        rows.append(TableRow((kind, f"{row.commits:,}", f"{row.endpoints:,}", *latencies)))
    return rows


def _state(glance: Glance) -> Text:
    lag = "the server does not answer"
    if glance.gauges is not None:
        lag = f"{glance.gauges.behind:,} bytes of WAL behind, exact {glance.gauges.staleness:.1f} s ago"
    held = " and ".join(f"{count:,}" for count in glance.held)
    text = Text()
    text.append(f"{glance.elapsed:.1f} s", style="bold")
    text.append(f"   source: {lag}\n")
    text.append(f"subscribers hold {held}   {glance.updates:,} updates   ")
    text.append(f"commits on the way: {glance.awaited}")
    if glance.gate is not None:
        refused = glance.figures.refused
        text.append(f"\nEnvoy at {glance.gate.address}: ", style="bold")
        text.append(answers(glance.gate.answers))
        text.append(f"   a taken key's first refusal: p50 {milliseconds(percentile(refused, 0.5))}")
        text.append(f", p99 {milliseconds(percentile(refused, 0.99))}")
    return text


def _commit(one: Delivery, began: float) -> TableRow:
    return TableRow(
        (
            f"{one.committed_at - began:.2f} s",
            one.commit.kind,
            one.commit.what,
            f"{len(one.commit.changes):,}",
            milliseconds(one.seconds),
        ),
        style="bold" if len(one.commit.changes) >= _RIPPLE else "",
    )
