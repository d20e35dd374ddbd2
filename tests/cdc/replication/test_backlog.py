"""The queue between the slot's reader and the applier: bounded, in order, in runs."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import SourceError
from cdc.postgres.timeline import Timeline
from cdc.replication.assembler import Transaction
from cdc.replication.backlog import Backlog, Event, Idle, PeerNews, Started, StreamEnded
from tests.plugins.server import wait_until

STARTED = Started(session=1, history=Timeline("1", 1), confirmed=0)
LOST = StreamEnded(SourceError("unreachable", "away"))


TRANSACTION, KEY = 900, 110
"""Bytes that each of them counts for."""


def transaction(end: int, keys: int = 0) -> Transaction:
    """Make one that counts for its keys and one more in a run."""
    made = Transaction(xid=end, end=end, committed_at=0.0)
    for key in range(keys):
        made.affected.name("kind", str(key))
    return made


def test_one_when_quiet_and_many_when_behind() -> None:
    backlog = Backlog(batch=10)
    first, *others = [transaction(end, keys=1) for end in range(8)]
    assert backlog.offer(first, 0)
    assert backlog.take(0) == [first]
    for other in others:
        assert backlog.offer(other, 0)
    assert backlog.take(0) == others[:5], "five that count twice are ten"
    assert backlog.take(0) == others[5:]
    assert backlog.take(0) == []


def test_there_is_a_bound_and_the_oversized_still_pass() -> None:
    backlog = Backlog(limit=TRANSACTION + 10 * KEY)
    assert backlog.offer(transaction(1, keys=1_000), 0), "into an empty one anything goes, or it would never"
    began = time.monotonic()
    assert not backlog.offer(transaction(2), 0.05)
    assert time.monotonic() - began >= 0.05
    assert len(backlog) == 1
    backlog.take(0)
    assert backlog.offer(transaction(2), 0)


def test_what_takes_no_room_is_never_refused() -> None:
    backlog = Backlog(limit=1)
    assert backlog.offer(transaction(1), 0)
    for event in (Idle(2), LOST, STARTED):
        backlog.tell(event)
    assert [backlog.take(0) for _ in range(4)] == [[transaction(1)], [Idle(2)], [LOST], [STARTED]]


def test_what_comes_after_an_idle_replaces_it_unless_the_stream_ends() -> None:
    backlog = Backlog()
    backlog.tell(Idle(1))
    backlog.tell(Idle(2))
    backlog.tell(LOST)
    backlog.tell(Idle(3))
    backlog.offer(transaction(4), 0)
    backlog.tell(Idle(5))
    assert [backlog.take(0) for _ in range(4)] == [[Idle(2)], [LOST], [transaction(4)], [Idle(5)]]


def test_moments_without_news_in_between_do_not_break_a_run() -> None:
    """A writer that commits 2,000 times a second leaves such a moment behind each commit."""
    backlog = Backlog()
    for end in (1, 3, 5):
        backlog.offer(transaction(end), 0)
        backlog.tell(Idle(end + 1))
    assert backlog.take(0) == [transaction(1), transaction(3), transaction(5)]
    assert backlog.take(0) == [Idle(6)]


def test_a_reader_that_waits_goes_on_when_there_is_room() -> None:
    backlog = Backlog(limit=1)
    backlog.offer(transaction(1), 0)
    offered: list[bool] = []
    reader = threading.Thread(target=lambda: offered.append(backlog.offer(transaction(2), 30)))
    reader.start()
    assert backlog.take(0) == [transaction(1)]
    reader.join(30)
    assert offered == [True]


def test_wake_ends_a_wait_and_only_one() -> None:
    backlog = Backlog()
    taken: list[list[Event]] = []
    applier = threading.Thread(target=lambda: taken.append(backlog.take(30)))
    applier.start()
    backlog.wake()
    wait_until(lambda: taken == [[]], "the wait ends with nothing")
    applier.join(30)
    assert backlog.take(0) == []


def test_who_is_full_takes_everything_but_transactions() -> None:
    backlog = Backlog()
    backlog.tell(STARTED)
    backlog.offer(transaction(1), 0)
    backlog.tell(Idle(2))
    assert backlog.take(0, full=True) == [STARTED]
    began = time.monotonic()
    assert backlog.take(0.05, full=True) == [], "an idle moment counts only after what came before it"
    assert time.monotonic() - began >= 0.05, "it waits, and does not spin"
    assert backlog.take(0) == [transaction(1)]
    assert backlog.take(0, full=True) == [Idle(2)]


def test_who_is_full_hears_of_the_end_of_a_stream_and_its_transactions_are_dropped() -> None:
    backlog = Backlog(limit=TRANSACTION)
    backlog.offer(transaction(1), 0)
    backlog.tell(Idle(2))
    news = PeerNews()
    for event in (LOST, news, STARTED):
        backlog.tell(event)
    assert not backlog.offer(transaction(3), 0)
    assert backlog.take(30, full=True) == [LOST]
    assert backlog.offer(transaction(3), 0), "what was dropped takes no room any more"
    assert [backlog.take(0, full=True) for _ in range(3)] == [[news], [STARTED], []]
    assert backlog.take(0) == [transaction(3)], "those of the next stream stay"


def test_who_is_full_and_waits_is_woken_by_the_end_of_the_stream() -> None:
    backlog = Backlog()
    backlog.offer(transaction(1), 0)
    taken: list[list[Event]] = []
    applier = threading.Thread(target=lambda: taken.append(backlog.take(30, full=True)))
    applier.start()
    backlog.tell(LOST)
    applier.join(30)
    assert taken == [[LOST]]


EVENTS = st.lists(
    st.one_of(
        st.integers(0, 8).map(lambda keys: transaction(1, keys)),
        st.just(STARTED),
        st.just(LOST),
        st.integers(1, 9).map(Idle),
        st.none(),
    )
)


@given(EVENTS, st.integers(1, 20_000), st.integers(1, 10))
def test_order_and_bounds_hold_whatever_comes(events: list[Event | None], limit: int, batch: int) -> None:
    """None stands for the follower's turn."""
    backlog = Backlog(limit, batch)
    put: list[Event] = []
    taken: list[Event] = []

    def turn() -> int:
        run = backlog.take(0)
        assert len(run) < 2 or all(isinstance(event, Transaction) for event in run)
        assert sum(keys(event) for event in run[:-1]) < batch
        taken.extend(run)
        return len(run)

    for event in events:
        if event is None:
            turn()
        elif isinstance(event, Transaction):
            held = sum(map(size, put[len(taken) :]))
            assert backlog.offer(event, 0) == (held < limit)
            if held < limit:
                if len(put) > len(taken) and isinstance(put[-1], Idle):
                    put.pop()
                put.append(event)
        else:
            if isinstance(event, Idle) and len(put) > len(taken) and isinstance(put[-1], Idle):
                put.pop()
            backlog.tell(event)
            put.append(event)
        assert len(backlog) == len(put) - len(taken)
    while turn():
        pass
    assert taken == put


def keys(event: Event) -> int:
    return 1 + len(event.affected) if isinstance(event, Transaction) else 0


def size(event: Event) -> int:
    return TRANSACTION + KEY * len(event.affected) if isinstance(event, Transaction) else 0
