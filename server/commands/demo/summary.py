"""What the demo says at its end; the last line is the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from server.commands.demo.figures import percentile
from server.commands.demo.view import answers, figures_table, milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from server.commands.demo.figures import Figures

_NAMED: Final = 5
"""Ids of wrong endpoints that are named."""


@dataclass(frozen=True)
class RunSummary:
    """How it came out."""

    seconds: float
    """That the workload ran."""
    subscribers: int
    updates: int
    """That all subscribers have got, together; each got everything twice at the start."""
    losses: tuple[str, ...]
    """Why a subscriber lost its stream, each time: there should be none."""
    overtaken: int
    """Commits whose effect was never seen, since a later one undid it before it was read."""
    endpoints: int
    """That the mapping query finds."""
    wrong: tuple[str, ...]
    """Ids that some subscriber holds otherwise, misses or has too many."""
    answers: Mapping[int, int]
    """How often Envoy answered each code; empty without it."""
    faults: tuple[str, ...]
    """What Envoy must not have answered."""
    moves: int = 0
    """How often a subscriber went to another server; 0 without relays."""
    resets: int = 0
    """How often that one was sent everything: once, at its start."""


def summarize(console: Console, figures: Figures, verdict: RunSummary, server_exit: int) -> int:
    """Print the summary and return the demo's exit code."""
    total, rotated = figures.total, figures.rows["key rotated"]
    console.print()
    for line in figures_table(figures, console.width):
        console.print(line)
    console.print()
    _say(
        console,
        f"{verdict.seconds:.1f} s of work: {total.commits:,} commits changed {total.endpoints:,} endpoints,",
        f"the {verdict.subscribers} subscribers got {verdict.updates:,} updates",
    )
    if verdict.overtaken:
        console.print(f"{verdict.overtaken} more were undone by later ones before they were read")
    for loss in verdict.losses:
        console.print(f"a subscriber lost its stream: {loss}")
    _say(console, "a rotated key was at the subscriber after", _latencies(rotated.seconds))
    _say(console, "  with nothing else on its way after", _latencies(rotated.alone))
    if verdict.answers:
        _say(console, "Envoy answered", answers(verdict.answers))
        _say(console, "  a key that was taken away was refused there after", _latencies(figures.refused))
    if verdict.moves:
        _say(
            console,
            f"a subscriber moved {verdict.moves} times between server and relays,",
            f"and was sent everything {verdict.resets} time{'s' if verdict.resets != 1 else ''}",
        )
    for fault in verdict.faults:
        console.print(f"Envoy let somebody in: {fault}")
    if figures.staleness:
        console.print(
            f"staleness: {max(figures.staleness):.1f} s at most, {figures.staleness[-1]:.1f} s at the end"
        )
    if server_exit:
        console.print(f"the server did not stop cleanly: exit code {server_exit}")
    holders = f"{verdict.subscribers} subscribers"
    query = f"the {verdict.endpoints:,} endpoints of the mapping query"
    if verdict.wrong:
        named = ", ".join(verdict.wrong[:_NAMED]) + (", ..." if len(verdict.wrong) > _NAMED else "")
        console.print(
            f"DIFFERENT: the {holders} do not hold {query}: {len(verdict.wrong):,} differ ({named})"
        )
        return 1
    console.print(f"EQUAL: {holders} hold exactly {query}")
    started_over = verdict.resets > 1
    return 1 if server_exit or verdict.losses or verdict.faults or started_over else 0


def _say(console: Console, first: str, rest: str) -> None:
    """Print a line, on a terminal that is too narrow for it two: nothing breaks in the middle of a word."""
    whole = f"{first} {rest}"
    if not console.is_terminal or len(whole) <= console.width:
        console.print(whole)
    else:
        console.print(f"{first}\n    {rest}")


def _latencies(seconds: Sequence[float]) -> str:
    shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    return ", ".join(f"{name} {milliseconds(percentile(seconds, share))}" for name, share in shares)
