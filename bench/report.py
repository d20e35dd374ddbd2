"""The table of results: for each case ours and each reference, with medians, spreads, ratios and targets."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.results import OURS
from bench.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.results import Result
    from bench.targets import Target


@dataclass(frozen=True)
class Line:
    """A contender in a case, as text."""

    benchmark: str
    case: str
    size: str
    contender: str
    median: str
    spread: str
    ratio: str
    """Our median divided by this contender's."""
    target: str
    met: bool | None
    """Whether the target was met; None if there is no target or it was not measured."""


HEADS: Final = ("", "case", "contender", "median", "least to most", "ours / this", "target", "met")
_NUMBERS: Final = ("median", "least to most", "ours / this")


def lines(results: Sequence[Result]) -> list[Line]:
    """Return the results as text, ours first in each case."""
    cases: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for one in results:
        if not one.along:
            cases[one.benchmark, one.case].append(one)
    made: list[Line] = []
    for of_case in cases.values():
        of_case.sort(key=lambda one: one.contender != OURS)
        ours = of_case[0].median if of_case[0].contender == OURS else None
        made += [_line(one, ours, results) for one in of_case]
    return made


def _line(one: Result, ours: float | None, results: Sequence[Result]) -> Line:
    reference = None if one.contender == OURS else one.contender
    found = [
        target
        for target in TARGETS
        if (target.benchmark, target.case, target.reference) == (one.benchmark, one.case, reference)
    ]
    target = found[0] if found else None
    value = target.value(results) if target else None
    least, most = one.spread
    ratio = f"{ours / one.median:.2f}" if ours is not None and reference and one.median > 0 else ""
    return Line(
        benchmark=one.benchmark,
        case=one.case,
        size=one.size,
        contender=one.contender,
        median=shown(one.median, one.unit),
        spread=f"{figure(least)} to {figure(most)}" if len(one.samples) > 1 else "",
        ratio=ratio,
        target=_bound(target, one.unit) if target else "",
        met=target.met(value) if target and value is not None else None,
    )


def _bound(target: Target, unit: str) -> str:
    bound = f"{target.bound:g}" if target.reference else shown(target.bound, unit)
    return f"at least {bound}" if target.at_least else f"at most {bound}"


def shown(value: float, unit: str) -> str:
    """Format a number with three significant digits and its unit."""
    return f"{figure(value)} {unit}".rstrip()


def figure(value: float) -> str:
    """Format a number with three significant digits."""
    if abs(value) >= 1_000:  # noqa: PLR2004 - beyond that, digits need grouping and no fraction
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


@dataclass(frozen=True)
class Reached:
    """A target and its result, as text."""

    what: str
    reference: str
    bound: str
    measured: str
    """The measured value; empty if it was not measured."""
    met: bool | None
    why: str
    """See `Target`."""


def reached(results: Sequence[Result]) -> list[Reached]:
    """Return all targets as text, in their order."""
    units = {(one.benchmark, one.case): one.unit for one in results if one.contender == OURS}
    made: list[Reached] = []
    for target in TARGETS:
        unit, value = units.get((target.benchmark, target.case), ""), target.value(results)
        measured = ""
        if value is not None:
            measured = f"{value:.2f} times" if target.reference else shown(value, unit)
        bound = f"{_bound(target, unit)} times" if target.reference else _bound(target, unit)
        what = f"{target.benchmark.replace('_', ' ')}: {target.case}"
        met = None if value is None else target.met(value)
        made.append(Reached(what, target.reference or "", bound, measured, met, target.why))
    return made


@dataclass(frozen=True)
class Growth:
    """A table of the growth of cost along one quantity."""

    heads: list[str]
    """The heads of the columns: the quantity, and then each curve with its unit."""
    rows: list[list[str]]


def growths(results: Sequence[Result]) -> list[Growth]:
    """Return the curves as tables, with a row for each amount."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for one in results:
        if one.point is not None:
            cells = found.setdefault(one.point.grows, {}).setdefault(one.point.much, {})
            cells[f"{one.point.line} ({one.unit})"] = figure(one.median)
    made: list[Growth] = []
    for grows, amounts in found.items():
        lines_ = list(dict.fromkeys(line for cells in amounts.values() for line in cells))
        rows = [[f"{much:,}", *(amounts[much].get(line, "") for line in lines_)] for much in sorted(amounts)]
        made.append(Growth([grows, *lines_], rows))
    return made


def table(results: Sequence[Result], title: str) -> Table:
    """Return the table for a terminal."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for head in HEADS:
        justify: Literal["right", "left"] = "right" if head in _NUMBERS else "left"
        made.add_column(head, justify=justify, no_wrap=head not in ("case", "contender"))
    met = {None: "", True: "[green]yes", False: "[red]no"}
    benchmark = case = size = ""
    for line in lines(results):
        if line.benchmark != benchmark:
            made.add_section()
        if line.size and (line.benchmark, line.size) != (benchmark, size):
            made.add_row("" if line.benchmark == benchmark else line.benchmark, f"[dim]{line.size}")
            benchmark = line.benchmark
        known = line.benchmark == benchmark
        figures = (line.contender, line.median, line.spread, line.ratio, line.target, met[line.met])
        of_case = "" if known and line.case == case else line.case
        made.add_row("" if known else line.benchmark, of_case, *figures)
        benchmark, case, size = line.benchmark, line.case, line.size
    return made


def growth_table(growth: Growth) -> Table:
    """Return the table of targets for a terminal."""
    made = Table(box=SIMPLE_HEAD)
    for head in growth.heads:
        made.add_column(head, justify="right")
    for row in growth.rows:
        made.add_row(*row)
    return made


def missed(results: Iterable[Result]) -> list[Target]:
    """Return the targets that were measured and missed."""
    kept = list(results)
    values = ((target, target.value(kept)) for target in TARGETS)
    return [target for target, value in values if value is not None and not target.met(value)]
