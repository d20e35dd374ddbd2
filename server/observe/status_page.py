"""The status page. It distinguishes a stall from idleness, and suggests where to look next.

It is rendered at each request, only from memory. It never waits for the database, and contains no secret.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from cdc import lsn
from cdc.lsn import Lsn
from server.config.redaction import redact
from server.observe.lag_history import LagHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from authz.health import Reason
    from cdc.freshness import Freshness
    from cdc.pair.pair import Pair
    from cdc.store.store import Store
    from server.observe.health import Health
    from server.observe.recent import Recent
    from server.subscribers import Subscribers, SubscriberSeen

_SHOWN: Final = 50
"""Maximum number of subscribers that are shown. The ones that are furthest behind are shown first."""
_SAMPLE_SECONDS: Final = 1.0
_BEHIND_SECONDS: Final = 5.0
"""Staleness from which the page reports a stall, in seconds. `Health` reports it later. The staleness of a
server that has caught up stays below 3.
"""
_PLOT: Final = (720.0, 120.0)
_LEAST_TOP: Final = 10.0
"""Minimum height of the plot in seconds, so that one second does not look like a peak."""

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True)
class _Headline:
    level: Level
    text: str


class StatusPage:
    """Renders the page. For the plot, `watch` has to run."""

    def __init__(
        self,
        *,
        version: str,
        slot_name: str,
        store: Store,
        freshness: Freshness,
        subscribers: Subscribers,
        health: Health,
        recent: Recent,
        pair: Pair,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._slot_name = slot_name
        self._store = store
        self._freshness = freshness
        self._subscribers = subscribers
        self._health = health
        self._recent = recent
        self._pair = pair
        self._wall = wall
        self._history = LagHistory(monotonic)
        environment = Environment(
            loader=PackageLoader("server.observe"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        environment.filters |= {"duration": duration, "clock": _clock, "lsn": _position, "redact": redact}
        self._template = environment.get_template("status_page.html")
        self.headers = {"Content-Security-Policy": _policy(environment)}
        """The content security policy. It allows only the page's own style and script, so that markup in a
        table's name stays text.
        """

    async def watch(self) -> None:
        """Sample the staleness once a second, until the task is cancelled."""
        while True:
            self._history.note(self._freshness.staleness())
            await asyncio.sleep(_SAMPLE_SECONDS)

    def render(self) -> str:
        """Return the page for the current state."""
        staleness = self._freshness.staleness()
        self._history.note(staleness)
        reasons = self._health.reasons()
        seen = sorted(self._subscribers.snapshot(), key=lambda one: (-one.lag_seconds, one.since))
        width, height = _PLOT
        top = max(_LEAST_TOP, 1.1 * self._history.worst)
        return self._template.render(
            version=self._version,
            now=self._wall(),
            headline=_headline(self._store.ready, reasons, staleness, seen)
            if not self._pair.standing_by
            else _standing_by(reasons),
            pair=self._pair if self._pair.peered else None,
            reasons=reasons,
            endpoints=len(self._store),
            revision=self._store.head,
            staleness=staleness,
            plot={
                "width": width,
                "height": height,
                "top": top,
                "span": self._history.span,
                "worst": self._history.worst,
                "line": self._history.line(width, height, top),
            },
            slot_name=self._slot_name,
            lately=self._recent.lately(),
            positions=self._freshness.positions(),
            subscribers=seen[:_SHOWN],
            unshown=len(seen[_SHOWN:]),
            current=sum(not one.lag_seconds for one in seen),
        )


def _standing_by(reasons: Sequence[Reason]) -> _Headline:
    if reasons:
        return _Headline("warning", "Standing by, but there is something to look at.")
    return _Headline("good", "Standing by: the peer leads, and its map is mirrored here.")


def _headline(
    ready: bool, reasons: Sequence[Reason], staleness: float, subscribers: Sequence[SubscriberSeen]
) -> _Headline:
    codes = {reason.code for reason in reasons}
    if not ready:
        return _Headline("bad", "Not ready: no complete map has been loaded yet.")
    if "stale" in codes or (staleness > _BEHIND_SECONDS and "polling" not in codes):
        return _Headline("bad", f"Stalled: gateways hold the map as it was {duration(staleness)} ago.")
    if "polling" in codes:
        return _Headline("warning", "No usable slot: the whole map is re-read every few seconds.")
    if reasons:
        return _Headline("warning", "The map is exact, but there is something to look at.")
    behind = sum(bool(one.lag_seconds) for one in subscribers)
    if behind:
        return _Headline("good", f"The map is exact; {behind} of {len(subscribers)} subscribers are behind.")
    if not subscribers:
        return _Headline("good", "The map is exact; nobody is subscribed.")
    return _Headline("good", "The map is exact, and every subscriber has all of it.")


def duration(seconds: float) -> str:
    """Format a duration: ``0 s``, ``4 ms``, ``2.5 s``, ``42 s``, ``3 min``, ``2 h 5 min``, ``3 d``."""
    for below, unit, of in ((0.9995, 1e-3, "ms"), (9.95, None, "s"), (119.5, 1.0, "s"), (7170, 60.0, "min")):
        if seconds < below:
            return "0 s" if seconds <= 0 else f"{seconds / unit:.0f} {of}" if unit else f"{seconds:.1f} {of}"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d"  # noqa: PLR2004 (two days)


def _clock(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%H:%M:%S")


def _position(position: int | None) -> str:
    return lsn.show(Lsn(position)) if position else "unknown"


def _policy(environment: Environment) -> str:
    source: Any = environment.loader and environment.loader.get_source(environment, "status_page.html")[0]

    def digest(tag: str) -> str:
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", source, flags=re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest('style')}; script-src {digest('script')}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
