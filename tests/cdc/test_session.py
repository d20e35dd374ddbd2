"""The applier's session: which transitions are legal, and when the map is exact."""

from __future__ import annotations

from itertools import product

import pytest

from cdc.postgres.gate import Gate
from cdc.session import IllegalTransitionError, Session

GATE = Gate(end=500)


def seen(session: Session) -> tuple[bool, bool, Gate | None, bool]:
    return session.streaming, session.streamed, session.owed, session.exact


def test_the_worked_example_of_the_docstring() -> None:
    session = Session()
    assert seen(session) == (False, False, None, False)
    session.begin(1, gap=True)
    assert seen(session) == (True, True, None, False)
    session.settled()
    assert seen(session) == (True, True, None, True)
    session.owe(GATE)
    assert seen(session) == (True, True, GATE, False)
    session.lose("connection")
    assert seen(session) == (False, True, GATE, False)
    assert session.reason == "connection"
    session.begin(2, gap=False)
    assert seen(session) == (True, True, GATE, False), "a new stream pays no debt"
    session.settled()
    assert seen(session) == (True, True, None, True)


def test_a_gap_and_a_debt_each_forbid_to_claim_exactness() -> None:
    for gap, owed, streaming in product((False, True), (None, GATE), (False, True)):
        session = Session()
        session.begin(1, gap=gap)
        session.owe(owed)
        if not streaming:
            session.lose()
        assert session.exact is (streaming and not gap and owed is None), (gap, owed, streaming)


def test_without_a_stream_nothing_is_settled() -> None:
    session = Session()
    with pytest.raises(IllegalTransitionError, match="WAITING cannot be settled"):
        session.settled()
    session.begin(1, gap=True)
    session.lose()
    with pytest.raises(IllegalTransitionError, match="LOST cannot be settled"):
        session.settled()
    session.begin(2, gap=False)
    session.miss()
    session.settled()
    assert session.exact


def test_a_stream_that_is_open_does_not_begin() -> None:
    session = Session()
    session.begin(1, gap=False)
    with pytest.raises(IllegalTransitionError, match="STREAMING cannot become STREAMING"):
        session.begin(2, gap=False)
    assert session.number == 1


def test_a_loss_is_timed_once_and_its_reason_is_the_newest() -> None:
    session = Session()
    session.lose("refused")
    assert not session.streamed, "an attempt that failed is no stream"
    session.begin(1, gap=False)
    began = session.lost_at
    session.lose("connection")
    lost_at = session.lost_at
    assert lost_at > began
    session.lose("slot_held")
    assert (session.lost_at, session.reason) == (lost_at, "slot_held")
    session.lose()
    assert session.reason == "slot_held"
