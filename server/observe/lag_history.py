"""The last hour of staleness, for the status page's plot. It shows past stalls even without Prometheus."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SPAN: Final = 3600.0
"""Number of seconds that are remembered. The plot shows at most this time."""
_LEAST_SPAN: Final = 300.0
"""Minimum number of seconds that the plot shows. If the server is younger than an hour, the plot shows the
time since its start.
"""
_GRAIN: Final = 5.0
"""Number of seconds that one point covers. The point is the worst value in this time, so that no spike is
lost.
"""


class LagHistory:
    """Samples of staleness. Not thread-safe: only the event loop uses it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._since = monotonic()
        self._points: deque[tuple[float, float]] = deque(maxlen=int(SPAN / _GRAIN) + 1)
        """Points, each with its start and its worst staleness, both in seconds."""

    def note(self, staleness: float) -> None:
        """Add the current staleness, in seconds."""
        grain = self._monotonic() // _GRAIN * _GRAIN
        if self._points and self._points[-1][0] == grain:
            staleness = max(staleness, self._points.pop()[1])
        self._points.append((grain, staleness))

    @property
    def span(self) -> float:
        """The time that the plot covers, in seconds."""
        return min(SPAN, max(_LEAST_SPAN, self._monotonic() - self._since))

    @property
    def worst(self) -> float:
        """The worst value within the span, in seconds."""
        return max((staleness for _, staleness in self._within()), default=0.0)

    def line(self, width: float, height: float, top: float) -> str:
        """Return the points of an SVG polyline. It is scaled so that ``span`` has the width ``width``, and
        ``top`` seconds have the height ``height``.
        """
        now, span = self._monotonic(), self.span
        points = []
        for at, staleness in self._within():
            x = width * (1 - (now - at) / span)
            y = height * (1 - min(1.0, staleness / top))
            points.append(f"{max(0.0, x):.1f},{y:.1f}")
        if points:  # extend the line to the right edge: with one point it would be invisible
            points.append(f"{width:.1f},{points[-1].partition(',')[2]}")
        return " ".join(points)

    def _within(self) -> list[tuple[float, float]]:
        oldest = self._monotonic() - SPAN
        return [point for point in self._points if point[0] >= oldest]
