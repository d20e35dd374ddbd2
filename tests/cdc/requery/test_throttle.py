"""The pauses between short reads."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from cdc.requery.throttle import _MOST, _SAVED, Throttle


@dataclass
class Reads:
    """What the throttle is told of."""

    busy: bool


class Clock:
    """Time that passes only in reads and pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.pauses: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def read(self, throttle: Throttle, took: float, *, asked: bool = True, left: bool = False) -> None:
        """Pause as long as the throttle says, then read for ``took`` seconds."""
        throttle.rest(self.wait)
        reads = Reads(asked)
        with throttle.timed(reads):
            self.now += took
            reads.busy = left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test."""
    return Clock(monkeypatch)


@pytest.mark.parametrize("took", [0.0001, 0.001, 0.0049])
def test_without_a_pause_between_commits_reads_take_half_of_the_time(clock: Clock, took: float) -> None:
    throttle, began, reads = Throttle(), clock.now, 1_000
    for _ in range(reads):
        clock.read(throttle, took)
    clock.read(throttle, 0.0)  # after the last one's pause
    assert clock.now - began == pytest.approx(2 * reads * took - _SAVED)


@pytest.mark.parametrize(("took", "every"), [(0.001, 0.005), (0.0024, 0.005), (0.0004, 0.001)])
def test_commits_at_a_moderate_rate_find_no_pause(clock: Clock, took: float, every: float) -> None:
    throttle = Throttle()
    for _ in range(1_000):
        clock.read(throttle, took)
        clock.now += every - took
    assert not clock.pauses


def test_a_few_commits_at_once_find_no_pause_after_a_quiet_moment(clock: Clock) -> None:
    throttle = Throttle()
    for _ in range(3):
        for _ in range(5):
            clock.read(throttle, 0.001)
        clock.now += 0.03
    assert not clock.pauses


def test_a_long_silence_saves_no_more_than_a_short_one(clock: Clock) -> None:
    throttle = Throttle()
    clock.now += 3_600.0
    for _ in range(30):
        clock.read(throttle, 0.001)
    assert sum(clock.pauses) == pytest.approx(29 * 0.001 - _SAVED)


@pytest.mark.parametrize(
    ("asked", "left", "pauses"),
    [
        (True, False, [_MOST]),  # a revocation waits no longer than this
        (True, True, []),  # part of a long read, or a gate that is closed
        (False, False, []),  # there was nothing to read
    ],
)
def test_only_a_short_read_is_followed_by_a_pause(
    clock: Clock, asked: bool, left: bool, pauses: list[float]
) -> None:
    throttle = Throttle()
    clock.read(throttle, 1.0, asked=asked, left=left)
    clock.read(throttle, 0.0)
    assert clock.pauses == pytest.approx(pauses)


def test_a_long_read_costs_one_pause_and_not_many(clock: Clock) -> None:
    throttle = Throttle()
    clock.read(throttle, 1.0)
    clock.read(throttle, 0.0)
    clock.read(throttle, 0.0)
    assert clock.pauses == pytest.approx([_MOST])
