"""The rest after a short read."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from cdc.requery.throttle import Throttle


@dataclass
class Reads:
    """What the pace is told of."""

    busy: bool


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("asked", "left", "took", "rests"),
    [
        (True, False, 0.001, [0.002]),  # twice as long as the read
        (True, False, 1.0, [0.005]),  # whoever comes meanwhile waits no longer than that
        (True, True, 1.0, []),  # part of a long one, or a gate that is shut
        (False, False, 1.0, []),  # there was nothing to read
    ],
)
def test_a_short_read_is_followed_by_a_rest(
    now: list[float], asked: bool, left: bool, took: float, rests: list[float]
) -> None:
    pace, reads, waited = Throttle(), Reads(asked), list[float]()
    pace.rest(waited.append)
    assert not waited, "who comes first need not wait"
    with pace.timed(reads):
        now[0] += took
        reads.busy = left
    pace.rest(waited.append)
    assert waited == pytest.approx(rests)


def test_who_comes_later_finds_nobody_resting(now: list[float]) -> None:
    pace, reads, waited = Throttle(), Reads(True), list[float]()
    with pace.timed(reads):
        now[0] += 0.001
        reads.busy = False
    now[0] += 0.0015
    pace.rest(waited.append)
    now[0] += 0.001
    pace.rest(waited.append)
    assert waited == pytest.approx([0.0005])
