"""How the demo looks: a live screen, or lines. Both only render what they are given."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from server.demo.figures import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from server.demo.arrivals import Delivery
    from server.demo.figures import Figures
    from server.demo.server_process import Gauges

_AROUND = 17
"""Lines of the live screen that are not commits."""
_RIPPLE = 100
"""Endpoints from which a commit stands out."""


@dataclass(frozen=True)
class Glance:
    """Everything at one moment."""

    began: float
    """When the workload began, by the deliveries' clock."""
    elapsed: float
    """Seconds since then."""
    deliveries: Sequence[Delivery]
    """New since the last glance."""
    figures: Figures
    awaited: int
    """Commits that have not arrived yet."""
    gauges: Gauges | None
    held: tuple[int, ...]
    """Endpoints at each subscriber."""
    updates: int
    """That the subscribers have got, all together."""


class View(Protocol):
    """A context in which glances are shown."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def show(self, glance: Glance) -> None:
        """Render it."""


class PlainView:
    """A line a commit."""

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


class LiveView:
    """A screen: the figures above, the latest commits below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._latest: deque[Delivery] = deque(maxlen=200)
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, glance: Glance) -> None:
        """Draw the screen anew."""
        self._latest.extendleft(glance.deliveries)
        rows = max(3, self._console.height - _AROUND)
        head = Panel(_state(glance), title="pads-cdc demo", subtitle="Ctrl-C ends it")
        body = Group(
            head, figures_table(glance.figures), "", _commits(list(self._latest)[:rows], glance.began)
        )
        self._live.update(body, refresh=True)


def figures_table(figures: Figures) -> Table:
    """Return the latencies by kind of commit."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("commits by kind", min_width=20)
    for heading in ("commits", "endpoints", "p50", "p99", "max"):
        table.add_column(heading, justify="right", min_width=9)
    for kind, row in (*figures.rows.items(), ("total", figures.total)):
        latencies = [milliseconds(percentile(row.seconds, share)) for share in (0.5, 0.99, 1)]
        table.add_row(kind, f"{row.commits:,}", f"{row.endpoints:,}", *latencies)
    return table


def milliseconds(seconds: float | None) -> str:
    """Write a latency; a dash where there is none."""
    return "-" if seconds is None or math.isnan(seconds) else f"{1000 * seconds:,.1f} ms"


def _state(glance: Glance) -> Text:
    lag = "the server does not answer"
    if glance.gauges is not None:
        lag = f"{glance.gauges.behind:,} bytes of WAL behind, exact {glance.gauges.staleness:.1f} s ago"
    held = " and ".join(f"{count:,}" for count in glance.held)
    text = Text()
    text.append(f"{glance.elapsed:6.1f} s", style="bold")
    text.append(f"   source: {lag}\n")
    text.append(f"subscribers hold {held} endpoints after {glance.updates:,} updates; ")
    text.append(f"{glance.awaited} commits on their way")
    return text


def _commits(deliveries: Sequence[Delivery], began: float) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), title="latest commits", title_justify="left")
    table.add_column("at", justify="right", min_width=9)
    table.add_column("what", min_width=20)
    table.add_column("of", min_width=26)
    table.add_column("endpoints", justify="right", min_width=9)
    table.add_column("at the subscriber after", justify="right")
    for one in deliveries:
        table.add_row(
            f"{one.committed_at - began:.2f} s",
            one.commit.kind,
            one.commit.what,
            f"{len(one.commit.changes):,}",
            milliseconds(one.seconds),
            style="bold" if len(one.commit.changes) >= _RIPPLE else "",
        )
    return table
