"""Token buckets: how many calls pass in a span, whatever their moments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from authz.rate_limit import RateLimits, retry_after


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_second_s_worth_passes_at_once_and_then_one_at_a_time() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    assert [limits.take("app", 2) == 0 for _ in range(3)] == [True, True, False]
    assert limits.take("app", 2) == 0.5
    clock.now += 0.5
    assert limits.take("app", 2) == 0
    assert limits.take("app", 2) == 0.5
    assert limits.take("other", 2) == 0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 20)), max_size=60), st.integers(1, 20))
def test_no_span_passes_more_than_its_share(calls: list[tuple[float, int]], limit: int) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    passed: list[float] = []
    for pause, number in calls:
        clock.now += pause
        passed += [clock.now for _ in range(number) if not limits.take("app", limit)]
    for index, begin in enumerate(passed):
        for behind, end in enumerate(passed[index:], 1):
            assert behind <= limit * (end - begin) + limit + 0.001


@given(st.integers(1, 50), st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_who_waits_as_told_passes(limit: int, pauses: list[float]) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for pause in pauses:
        clock.now += pause
        wait = limits.take("app", limit)
        if wait:
            assert wait <= retry_after(wait)
            clock.now += wait + 1e-6
            assert limits.take("app", limit) == 0


def test_a_changed_limit_counts_from_the_next_call_on() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    assert not any(limits.take("app", 2) for _ in range(2))
    assert limits.take("app", 2)
    clock.now += 0.01
    assert not limits.take("app", 200)  # raised: no need to wait for the old one's half second
    assert limits.take("app", 1)  # lowered: at once
    assert not limits.take("app", 0)  # none any more


def test_buckets_that_are_full_again_are_forgotten() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for number in range(1000):
        limits.take(f"app_{number}", 5)
    clock.now += 11
    limits.take("another", 5)
    assert len(limits) == 1
