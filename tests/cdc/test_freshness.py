"""Staleness with a clock of our own: it is about what the server itself reported, and about nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.freshness import Freshness, Positions

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def freshness(clock: Clock) -> Freshness:
    return Freshness(clock)


@pytest.fixture
def second(clock: Clock, freshness: Freshness) -> Callable[[int | None], None]:
    """Let a second pass, and the server report its end of WAL at the end of it (None: it does not answer)."""

    def pass_by(end: int | None) -> None:
        clock.now += 1
        if end is not None:
            freshness.reported(end, clock.now)

    return pass_by


def test_since_the_start_while_nothing_was_ever_exact(clock: Clock, freshness: Freshness) -> None:
    clock.now += 7
    assert freshness.staleness() == 7
    freshness.reported(100, clock.now)
    freshness.applied(99)
    assert freshness.staleness() == 7


def test_idle_is_current_for_ever(freshness: Freshness, second: Callable[[int | None], None]) -> None:
    freshness.applied(100)
    for _ in range(10_000):
        second(100)
        assert freshness.staleness() == 0.0


def test_a_busy_server_that_we_keep_up_with(
    freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    for end in range(100, 200):
        second(end)
        freshness.applied(end)
        assert freshness.staleness() == 0.0


def test_it_grows_while_a_transaction_is_not_applied(
    freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    freshness.applied(100)
    second(100)
    for passed in range(1, 50):
        second(100 + passed)
        freshness.received(100 + passed)
        assert freshness.staleness() == passed, "received is not applied"
    freshness.applied(120)
    assert freshness.staleness() == 29, "exact as of the report that was reached"
    freshness.applied(149)
    assert freshness.staleness() == 0.0


def test_it_grows_while_the_server_is_frozen(
    freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    freshness.applied(100)
    second(100)
    for _ in range(60):
        second(None)
    assert freshness.staleness() == 60
    freshness.applied(1_000)
    assert freshness.staleness() == 60, "the stream does not know how far the WAL goes: only a report does"
    second(1_000)
    assert freshness.staleness() == 0.0


def test_a_single_late_answer_is_no_alarm(freshness: Freshness, second: Callable[[int | None], None]) -> None:
    freshness.applied(100)
    second(100)
    second(None)
    second(None)
    assert freshness.staleness() == 0.0
    second(None)
    assert freshness.staleness() == 3


def test_an_answer_counts_as_of_the_moment_of_the_question(clock: Clock, freshness: Freshness) -> None:
    asked = clock.now
    clock.now += 40
    freshness.reported(100, asked)
    freshness.applied(100)
    assert freshness.staleness() == 40


def test_polling_is_as_fresh_as_its_last_read(
    clock: Clock, freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    second(500)
    for _ in range(5):
        clock.now += 3
        freshness.exact(clock.now - 1)
        assert freshness.staleness() == 1
    freshness.exact(clock.now - 10)
    assert freshness.staleness() == 1, "an older read takes nothing back"


def test_what_was_reported_is_bounded_and_only_looks_worse(
    clock: Clock, freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    freshness.applied(1)
    second(1)
    for passed in range(5_000):
        second(2 + passed)
    freshness.applied(500)
    assert freshness.staleness() == 5_000, "the report that this reaches has been forgotten"
    freshness.applied(5_001)
    assert freshness.staleness() == 0.0
    assert clock.now == 6_001.0


def test_another_history_forgets_positions_but_not_when_we_were_exact(
    clock: Clock, freshness: Freshness, second: Callable[[int | None], None]
) -> None:
    freshness.applied(900)
    freshness.confirmed(900)
    second(900)
    freshness.rewound()
    assert freshness.positions() == Positions(0, 0, 0, 0)
    second(100)
    assert freshness.staleness() == 1
    freshness.applied(100)
    assert freshness.staleness() == 0.0
    assert clock.now == 1_002.0


STEPS = st.lists(
    st.tuples(st.sampled_from(["reported", "applied", "received", "wait"]), st.integers(0, 50)), max_size=60
)


@given(STEPS)
def test_never_better_than_the_truth(steps: list[tuple[str, int]]) -> None:
    """The model: exact as of each report whose end is applied by now; current only while nothing is owed."""
    clock = Clock()
    freshness = Freshness(clock)
    reports: list[tuple[float, int]] = []
    applied = 0
    for what, number in steps:
        match what:
            case "reported":
                freshness.reported(number, clock.now)
                reports.append((clock.now, number))
            case "applied":
                applied = max(applied, number)
                freshness.applied(number)
            case "received":
                freshness.received(number)
            case _:
                clock.now += number / 10
        reached = [at for at, end in reports if end <= applied]
        truth = clock.now - max(reached, default=1_000.0)
        assert freshness.staleness() >= truth or truth <= Freshness.FRESH_SECONDS
        if any(end > applied for _, end in reports) and truth > 0:
            assert freshness.staleness() > 0
        seen = freshness.positions()
        assert seen.applied == applied <= seen.received


def test_a_wall_clock_that_jumps_makes_nothing_look_fresh_or_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    freshness = Freshness()
    freshness.reported(100, time.monotonic())
    freshness.applied(100)
    for now in (time.time() - 1e6, time.time() + 1e6):
        monkeypatch.setattr(time, "time", now.__float__)
        assert freshness.staleness() == 0.0
