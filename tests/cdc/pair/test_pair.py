"""What a leader waits for before it lets the slot go, and how long."""

from __future__ import annotations

import pytest

from cdc.pair.pair import PATIENCE, Pair


class Clock:
    """Time that stands until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(clock: Clock) -> Pair:
    return Pair(peered=True, clock=clock)


def test_without_a_standby_nothing_is_held_back(pair: Pair) -> None:
    assert pair.confirmable(1000, exact=True) == 1000


def test_the_slot_is_held_where_the_standby_is_for_a_second_and_no_longer(pair: Pair, clock: Clock) -> None:
    standby = pair.join(lambda: None)
    assert pair.confirmable(1000, exact=True) == 1000, "it has nothing yet, and is not waited for"
    standby.acknowledge(1000)
    assert pair.confirmable(1000, exact=True) == 1000
    assert pair.confirmable(2000, exact=True) == 1000
    clock.now += PATIENCE
    assert pair.confirmable(2500, exact=True) == 1000
    clock.now += 0.1
    assert pair.confirmable(3000, exact=True) == 3000
    assert not standby.in_step
    standby.acknowledge(3000)
    assert pair.confirmable(3500, exact=True) == 3000, "it has caught up, and counts again"


def test_a_standby_that_is_never_quite_there_under_steady_writes_is_in_step(pair: Pair, clock: Clock) -> None:
    standby = pair.join(lambda: None)
    for position in range(100, 10_000, 100):
        clock.now += 0.3
        bound = pair.confirmable(position, exact=True)
        standby.acknowledge(max(0, position - 100))
        assert position <= 500 or bound == position - 200


def test_a_standby_that_has_just_gone_may_be_about_to_take_over(pair: Pair, clock: Clock) -> None:
    standby = pair.join(lambda: None)
    standby.acknowledge(1000)
    pair.confirmable(1000, exact=True)
    pair.leave(standby)
    assert pair.confirmable(2000, exact=True) == 1000
    clock.now += PATIENCE + 0.1
    assert pair.confirmable(3000, exact=True) == 3000
    assert pair.standbys() == []


def test_who_owes_a_whole_reading_tells_so_and_waits_for_nobody(pair: Pair) -> None:
    standby = pair.join(lambda: None)
    standby.acknowledge(1000)
    pair.confirmable(1000, exact=True)
    assert pair.confirmable(2000, exact=False, owed="17") == 2000
    assert (pair.done.followed, pair.done.owed) == (0, "17")


def test_a_standby_is_woken_for_news_and_for_nothing_else(pair: Pair) -> None:
    woken: list[None] = []
    pair.join(lambda: woken.append(None))
    for position in (1000, 1000, 1000, 2000):
        pair.confirmable(position, exact=True)
    assert len(woken) == 2


def test_who_was_frozen_is_not_sure_to_lead_until_the_database_has_answered(pair: Pair) -> None:
    assert not pair.sure(0.0), "the peer was not asked yet"
    pair.lead()
    assert pair.sure(1.0)
    assert not pair.sure(60.0)
    pair.lose()
    assert not pair.sure(0.0)
    pair.peer_lost()
    assert pair.sure(60.0), "it does not lead, or cannot be reached: somebody has to serve"
    assert Pair().sure(60.0), "there is no peer"
