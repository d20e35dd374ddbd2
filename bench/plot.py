"""Draws the picture: the distance to each target, and the growth of cost."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from bench.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.record import Record
    from bench.results import Result

_MET, _MISSED = "#2a7f62", "#c2452d"
_GROWS: Final = {
    "endpoints": "endpoints in the database",
    "affected": "endpoints that a commit affects",
    "subscribers": "subscribers of the feed",
}


def draw(record: Record, path: Path) -> None:
    """Draw a record as a PNG."""
    figure = Figure(figsize=(13, 10), dpi=90, layout="constrained")
    (targets, first), (second, third) = figure.subplots(2, 2)
    _targets(targets, record.results)
    for axes, (grows, label) in zip((first, second, third), _GROWS.items(), strict=True):
        _curves(axes, grows, label, record.results)
    figure.suptitle(f"{record.size} run, {record.made}: {record.machine}; PostgreSQL {record.postgres}")
    figure.savefig(path)


def _targets(axes: Axes, results: Sequence[Result]) -> None:
    """Draw a bar for each target. A length of 1 is the target, and a longer bar is worse."""
    shares: dict[str, float] = {}
    for target in TARGETS:
        value = target.value(results)
        if value is not None and value > 0:
            share = target.bound / value if target.at_least else value / target.bound
            shares[f"{target.benchmark}: {target.case}".replace("_", " ")] = share
    names = list(reversed(shares))
    colours = [_MET if shares[name] <= 1 else _MISSED for name in names]
    axes.barh(names, [shares[name] for name in names], color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("measured / to be reached (1 is the target, left of it is better)", fontsize=10)


def _curves(axes: Axes, grows: str, label: str, results: Sequence[Result]) -> None:
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in results:
        if one.point is not None and one.point.grows == grows:
            lines[f"{one.point.line} ({one.unit})"].append((one.point.much, one.median))
    for name, points in lines.items():
        points.sort()
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.grid(visible=True, which="major", alpha=0.3)
    if lines:
        axes.legend()
