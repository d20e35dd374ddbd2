"""SnapshotPermits: never more than so many, in order, and none is lost whoever goes away."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from server.rpc.snapshot_permits import SnapshotPermit, SnapshotPermits


def test_first_come_first_served_and_woken() -> None:
    permits = SnapshotPermits(1)
    wakes = [asyncio.Event() for _ in range(3)]
    first, second, third = (permits.ask(wake) for wake in wakes)
    assert [permit.held for permit in (first, second, third)] == [True, False, False]
    second.end()
    first.end()
    first.end()
    assert (third.held, wakes[2].is_set(), wakes[1].is_set()) == (True, True, False)


@given(st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 20))))
def test_never_more_and_never_idle(limit: int, steps: list[tuple[bool, int]]) -> None:
    permits, asked = SnapshotPermits(limit), list[SnapshotPermit]()
    for ask, which in steps:
        if ask or not asked:
            asked.append(permits.ask(asyncio.Event()))
        else:
            asked.pop(which % len(asked)).end()
        held = [permit.held for permit in asked]
        assert sum(held) == min(limit, len(asked))
        assert held == sorted(held, reverse=True), "who came first has the permit"
