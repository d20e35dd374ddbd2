"""The demo's summary. Its last line is the proof."""

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
"""Maximum number of ids of wrong endpoints in the summary."""


@dataclass(frozen=True)
class RunSummary:
    """The result of a run."""

    seconds: float
    """Duration of the workload."""
    subscribers: int
    updates: int
    """Number of updates that all subscribers received together. Each received the whole map twice at the
    start.
    """
    losses: tuple[str, ...]
    """The reason for each loss of a subscriber's stream. There should be none."""
    overtaken: int
    """Number of commits whose effect was never sent, because a later commit undid it before it was read."""
    endpoints: int
    """Number of endpoints in the result of the mapping's query."""
    wrong: tuple[str, ...]
    """Ids of endpoints that differ between a subscriber and the database."""
    answers: Mapping[int, int]
    """The number of Envoy's answers by code; empty without Envoy."""
    faults: tuple[str, ...]
    """Wrong answers of Envoy."""
    moves: int = 0
    """Number of times that a subscriber moved to another server; 0 without relays."""
    resets: int = 0
    """Number of snapshots that this subscriber received. It should be one, at its start."""


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
    """Print a line; two lines if the terminal is too narrow, so that no word is broken."""
    whole = f"{first} {rest}"
    if not console.is_terminal or len(whole) <= console.width:
        console.print(whole)
    else:
        console.print(f"{first}\n    {rest}")


def _latencies(seconds: Sequence[float]) -> str:
    shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    return ", ".join(f"{name} {milliseconds(percentile(seconds, share))}" for name, share in shares)
