"""The gate against a model that knows every transaction by its 64-bit number."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.postgres.gate import Evidence, Gate, Snapshot
from cdc.units import Xid

WRAP = 1 << 32


def evidence(snapshot: Snapshot | None = None, *, replayed: int | None = None) -> Evidence:
    shown = snapshot or Snapshot(10, 10, frozenset())
    return Evidence("1", None if replayed is not None else 1, "1.5", replayed, shown, 0, 0, 0, 0)


@dataclass(frozen=True)
class Moment:
    """A model: which transactions of a stretch are over, at a moment."""

    first: int
    over: tuple[bool, ...]

    def snapshot(self) -> Snapshot:
        """Make it as Postgres does: xmin is the oldest that runs, xmax one past the newest that is over."""
        newest = max((at for at, over in enumerate(self.over) if over), default=-1)
        running = [self.first + at for at, over in enumerate(self.over[: newest + 1]) if not over]
        xmax = self.first + newest + 1
        return Snapshot(min(running, default=xmax), xmax, frozenset(running))

    def visible(self) -> set[int]:
        return {self.first + at for at, over in enumerate(self.over) if over}


FIRST = st.one_of(
    st.integers(3, 1 << 40),
    st.integers(1, 5).flatmap(lambda epoch: st.integers(-30, 30).map(lambda near: epoch * WRAP + near)),
    st.integers(1, 5).map(lambda epoch: epoch * WRAP + WRAP // 2),
)
MOMENTS = st.builds(Moment, FIRST, st.lists(st.booleans(), max_size=30).map(tuple))


@given(MOMENTS)
@example(Moment(WRAP - 3, (True, False, True, True, False, True)))
@example(Moment(2 * WRAP - 2, (False, True, True, True)))
def test_a_snapshot_sees_what_is_over_by_32_bits_alone(moment: Moment) -> None:
    snapshot = moment.snapshot()
    for xid in range(moment.first, moment.first + len(moment.over) + 3):
        if xid % WRAP >= 3:  # Postgres skips 0, 1 and 2 at each wrap
            assert snapshot.sees(xid % WRAP) == (xid in moment.visible()), xid


@given(MOMENTS, st.integers(1, (1 << 31) - 100))
def test_what_was_over_long_ago_is_seen(moment: Moment, ago: int) -> None:
    xid = moment.first - ago
    if xid >= 3:
        assert moment.snapshot().sees(xid % WRAP)


@given(MOMENTS, st.integers(100, (1 << 31) - 100))
def test_what_comes_later_is_not_seen(moment: Moment, later: int) -> None:
    xid = moment.first + later
    if xid % WRAP >= 3:
        assert not moment.snapshot().sees(xid % WRAP)


def test_an_id_that_could_not_be_read_is_waited_for_by_nobody() -> None:
    assert Snapshot(WRAP - 5, WRAP - 5, frozenset()).sees(0)


@given(FIRST, st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_a_snapshot_covers_another_that_sees_no_more(first: int, over: list[tuple[bool, bool]]) -> None:
    one = Moment(first, tuple(a for a, _ in over))
    other = Moment(first, tuple(b for _, b in over))
    assert one.snapshot().covers(other.snapshot()) == (one.visible() >= other.visible())


@pytest.mark.parametrize(
    ("text", "snapshot"),
    [
        ("10:20:", Snapshot(10, 20, frozenset())),
        ("10:20:10", Snapshot(10, 20, frozenset({10}))),
        (
            "4294967290:4294967300:4294967290,4294967297",
            Snapshot(WRAP - 6, WRAP + 4, frozenset({WRAP - 6, WRAP + 1})),
        ),
    ],
)
def test_parse(text: str, snapshot: Snapshot) -> None:
    assert Snapshot.parse(text) == snapshot
    assert str(snapshot) == text


def test_a_primary_must_see_every_transaction() -> None:
    gate = Gate(frozenset({11, 13}), end=500)
    assert gate.opens(evidence(Snapshot(20, 20, frozenset())))
    assert gate.opens(evidence(Snapshot(12, 14, frozenset({12}))))
    assert not gate.opens(evidence(Snapshot(11, 14, frozenset({11}))))
    assert not gate.opens(evidence(Snapshot(12, 13, frozenset({12}))))


def test_a_primary_must_cover_what_the_slot_was_made_with() -> None:
    gate = Gate(snapshot=Snapshot(10, 15, frozenset({10, 12})))
    assert gate.opens(evidence(Snapshot(12, 15, frozenset({12}))))
    assert not gate.opens(evidence(Snapshot(10, 15, frozenset({10, 11}))))
    assert not gate.opens(evidence(Snapshot(14, 14, frozenset())))


def test_a_standby_must_have_replayed_the_end() -> None:
    """Its own snapshot says nothing: there, a transaction in progress looks as if it were over."""
    gate = Gate(frozenset({11}), end=500)
    everything, nothing = Snapshot(99, 99, frozenset()), Snapshot(1, 1, frozenset())
    assert not gate.opens(evidence(everything, replayed=499))
    assert gate.opens(evidence(nothing, replayed=500))
    assert gate.opens(evidence(nothing, replayed=501))
    assert gate.opens(evidence(nothing)) is False, "promoted in between: asked as the primary that it is"


def test_the_empty_gate_is_open() -> None:
    assert Gate().opens(evidence(Snapshot(3, 3, frozenset())))
    assert Gate().opens(evidence(replayed=0))


def test_both_gates() -> None:
    made = Snapshot(1, 2, frozenset())
    both = Gate(frozenset({1}), 10, snapshot=made) | Gate(frozenset({2}), 30)
    assert both == Gate(frozenset({1, 2}), 30, snapshot=made)
    assert Gate(frozenset({2}), 30) | Gate(frozenset({1}), 10, snapshot=made) == both


@given(MOMENTS, st.data())
def test_a_gate_that_takes_no_room_is_no_easier(moment: Moment, data: st.DataObject) -> None:
    """What was owed must be seen after a restart too, by a note of two numbers."""
    stretch = st.integers(0, len(moment.over) + 2).map(lambda at: (moment.first + at) % WRAP)
    xids = frozenset(data.draw(st.sets(stretch, max_size=5)))
    gate = Gate(xids, end=9)
    seen = evidence(moment.snapshot())
    for spanned in (gate.spanned(), Gate.parse(gate.spanned().note())):
        assert spanned is not None
        assert spanned.end == 9
        assert not spanned.xids
        if spanned.opens(seen):
            assert gate.opens(seen)
    real = {
        xid for xid in range(moment.first, moment.first + len(moment.over) + 3) if xid % WRAP in xids - {0}
    }
    if (
        real
        and set(range(min(real), max(real) + 1)) <= moment.visible()
        and max(real) < moment.snapshot().xmax
    ):
        assert gate.spanned().opens(seen), "all between is over, and it waits nevertheless"


@given(MOMENTS, st.data())
def test_both_spans_are_one_that_is_no_easier(moment: Moment, data: st.DataObject) -> None:
    stretch = st.integers(0, len(moment.over) + 2).map(lambda at: (moment.first + at) % WRAP)
    one, other = (Gate(frozenset({data.draw(stretch)})).spanned() for _ in range(2))
    seen = evidence(moment.snapshot())
    assert not (one | other).opens(seen) or (one.opens(seen) and other.opens(seen))


@pytest.mark.parametrize("shift", [0, WRAP - 7, 3 * WRAP], ids=["begin", "wrap", "late"])
@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ((5, 6), (8, 9), (5, 9)),
        ((5, 8), (6, 9), (5, 9)),
        ((5, 9), (6, 8), (5, 9)),
        ((5, 5), (5 + (3 << 29), 6 + (3 << 29)), (5, 6 + (3 << 29))),
    ],
)
def test_a_gate_of_both_reaches_from_the_first_to_the_last_and_no_further(
    one: tuple[int, int], other: tuple[int, int], both: tuple[int, int], shift: int
) -> None:
    def lasting(ids: tuple[int, int]) -> Gate:
        return Gate(lasting=(ids[0] + shift, ids[1] + shift))

    def span(ids: tuple[int, int]) -> Gate:
        return Gate(span=((ids[0] + shift) % WRAP, (ids[1] + shift) % WRAP))

    for make in (lasting, span):
        assert make(one) | make(other) == make(other) | make(one) == make(both)
        assert make(one) | Gate() == Gate() | make(one) == make(one)


def test_a_note_of_half_a_span_is_refused() -> None:
    """A gate without its last transaction would open too early."""
    for damaged in ("9 5", "9 5 30 7"):
        with pytest.raises(ValueError, match="shorter"):
            Gate.parse(damaged)


def test_a_gate_names_a_hundred_thousand_transactions_and_no_more() -> None:
    """Only a gate of so many waits for long transactions that began between its first and its last."""
    few, many = (Gate(frozenset(range(1, count + 1)), end=9) for count in (100_000, 100_001))
    assert few.bounded() is few
    assert many.bounded() == Gate(end=9, span=(1, 100_001))


def test_no_note_is_no_gate() -> None:
    assert Gate.parse("") is None


@given(FIRST, st.sets(st.integers(0, 30), min_size=1, max_size=3), st.integers(0, 1 << 34))
@example(5, {0}, 1 << 31)
def test_what_the_slot_has_let_go_of_does_not_age(first: int, numbers: set[int], later: int) -> None:
    """Not a transaction of ours for 12 days, at 2,000 others a second: then 32 bits would mean the future."""
    xids = {first + number for number in numbers if (first + number) % WRAP >= 3}
    gate = Gate(frozenset(Xid(xid % WRAP) for xid in xids), end=9)
    now = Snapshot(first + 31, first + 31, frozenset())
    kept = Gate.parse(gate.settled(now.xmax).note())
    assert kept is not None
    assert kept == gate.settled(now.xmax)
    xmax = now.xmax + later
    assert kept.opens(evidence(Snapshot(xmax, xmax, frozenset())))
    for xid in xids:
        assert not kept.opens(evidence(Snapshot(xid, xmax, frozenset({xid}))))
    if later == 1 << 31:
        assert not gate.opens(evidence(Snapshot(xmax, xmax, frozenset()))), "32 bits do age"


@given(MOMENTS, st.integers(1 << 31, 1 << 34))
def test_what_comes_long_after_is_waited_for_as_well(moment: Moment, later: int) -> None:
    """One that was let go of long ago and a new one: each is named by its own age."""
    newest = moment.first + 40 + later
    if moment.first % WRAP < 3 or newest % WRAP < 3:
        return
    old = Gate(frozenset({moment.first % WRAP})).settled(moment.first + 1)
    both = Gate.parse((old | Gate(frozenset({newest % WRAP}))).spanned().note())
    assert both is not None
    assert not both.opens(evidence(Snapshot(newest, newest, frozenset())))
    assert not both.opens(evidence(Snapshot(newest, newest + 1, frozenset({newest}))))
    assert both.opens(evidence(Snapshot(newest + 1, newest + 1, frozenset())))
    settled = both.settled(newest + 1)
    assert settled.lasting == (moment.first, newest)
    assert settled.span is None


def test_a_note_can_be_read_by_versions_that_know_32_bits_alone() -> None:
    """They read three numbers, and no others: a peer may be one, or a server that was taken back."""
    settled = Gate(end=9, lasting=(WRAP + 5, WRAP + 9))
    assert settled.note() == f"9 5 9 {WRAP + 5} {WRAP + 9}"
    both = Gate(end=9, span=(20, 30), lasting=(WRAP + 5, WRAP + 9))
    assert both.note() == f"9 5 30 {WRAP + 5} {WRAP + 9} 20 30"
    assert Gate.parse(both.note()) == both
    assert Gate.parse("9 5 30") == Gate(end=9, span=(5, 30))
    assert Gate(lasting=(5, 3 << 30)).note().startswith(f"0 {2 << 30} {3 << 30} ")


def test_a_span_of_more_than_half_of_all_ids_forgets_the_oldest() -> None:
    """A standby that is read for months: compared modulo 2^32, all but the newest would be forgotten."""
    gate = Gate()
    for full in range(0, 5 << 29, 1 << 29):
        gate = (gate | Gate(frozenset({(1_000 + full) % 2**32}))).spanned()
    newest = 1_000 + (4 << 29)
    assert gate.opens(evidence(Snapshot(newest + 1, newest + 1, frozenset())))
    assert not gate.opens(evidence(Snapshot(newest - 5, newest + 1, frozenset({newest - 5}))))
    assert not gate.opens(evidence(Snapshot(newest, newest, frozenset())))
