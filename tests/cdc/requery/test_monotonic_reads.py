"""Queries that move from a standby to a primary, long after anything of ours has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdc.errors import SourceError
from cdc.lsn import Lsn
from cdc.postgres.gate import Evidence, Gate, Snapshot
from cdc.requery.monotonic_reads import MonotonicReads
from cdc.state.ledger import Ledger
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from pathlib import Path

LONG = (1 << 31) + 1_000
"""Transactions: 12 days at 2,000 a second. Then 32 bits of an id mean one that is still to come."""
CHANGE = 5_000_000_000
"""The 64-bit id of the last transaction that changed a mapped row."""


def evidence(xmax: int, *, standby: bool, running: frozenset[int] = frozenset()) -> Evidence:
    snapshot = Snapshot(min(running, default=xmax), xmax, running)
    return Evidence(
        "1",
        None if standby else 1,
        "1.5" if standby else "2.5",
        700 if standby else None,
        snapshot,
        seen=700,
        bound=700,
        flushed=700,
        shown=700,
    )


def after_a_change(ledger: Ledger) -> MonotonicReads:
    """Return what is known when a standby was read, also for a transaction that the slot has delivered."""
    reads = MonotonicReads(ledger)
    reads.read(evidence(CHANGE - 10, standby=True))
    reads.delivered(Gate(frozenset({CHANGE % 2**32}), end=600))
    now = evidence(CHANGE + 1, standby=True)
    reads.check_evidence(now, 700)
    reads.read(now)
    return reads


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("later", [0, 1 << 30, LONG, 2**32, 3 << 31])
def test_a_primary_is_read_however_long_nothing_has_changed(
    tmp_path: Path, later: int, restarted: bool
) -> None:
    ledger = Ledger(tmp_path / "state", "", Listener())
    reads = after_a_change(ledger)
    if restarted:
        ledger.close()
        ledger = Ledger(tmp_path / "state", "", Listener())
        reads = MonotonicReads(ledger)
    now = CHANGE + 1 + later
    with pytest.raises(SourceError, match="have not ended here"):
        reads.check_evidence(evidence(now, standby=False, running=frozenset({CHANGE})), 700)
    reads.check_evidence(evidence(now, standby=False), 700)
    ledger.close()


@pytest.mark.parametrize("later", [0, LONG, 2**32 - 5])
def test_a_change_after_a_long_time_has_to_be_over_there_too(tmp_path: Path, later: int) -> None:
    """It must not be lost behind the old one, than which it looks older by 32 bits."""
    ledger = Ledger(tmp_path / "state", "", Listener())
    reads = after_a_change(ledger)
    new = CHANGE + 10 + later
    reads.delivered(Gate(frozenset({new % 2**32}), end=650))
    for not_over in (
        evidence(new, standby=False),
        evidence(new + 2, standby=False, running=frozenset({new})),
    ):
        with pytest.raises(SourceError, match="have not ended here"):
            reads.check_evidence(not_over, 700)
    reads.check_evidence(evidence(new + 2, standby=False), 700)
    ledger.close()


@pytest.mark.parametrize("later", [0, LONG, 2**32 - 5])
def test_a_change_that_the_slot_let_go_of_before_any_read_does_not_age(tmp_path: Path, later: int) -> None:
    """No server is read for days, and the slot is confirmed beyond a change: it is named by 64 bits first."""
    ledger = Ledger(tmp_path / "state", "", Listener())
    reads = after_a_change(ledger)
    new = CHANGE + 10
    reads.delivered(Gate(frozenset({new % 2**32}), end=650))
    reads.settle(new + 1)
    now = new + 1 + later
    with pytest.raises(SourceError, match="have not ended here"):
        reads.check_evidence(evidence(now, standby=False, running=frozenset({new})), 700)
    reads.check_evidence(evidence(now, standby=False), 700)
    ledger.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_without_a_stream_a_primary_is_read_once_it_shows_what_the_standby_has(
    tmp_path: Path, restarted: bool
) -> None:
    """The slot delivers nothing, so the place that it has reached says nothing."""
    ledger = Ledger(tmp_path / "state", "", Listener())
    reads = MonotonicReads(ledger)
    reads.read(evidence(CHANGE, standby=True))
    reads.read(evidence(CHANGE + 5, standby=True))
    if restarted:
        ledger.close()
        ledger = Ledger(tmp_path / "state", "", Listener())
        reads = MonotonicReads(ledger)
    has_all = evidence(CHANGE + 5, standby=False)
    for too_little in (
        evidence(CHANGE + 4, standby=False),
        evidence(CHANGE + 9, standby=False, running=frozenset({CHANGE + 4})),
        replace(has_all, flushed=Lsn(699)),
    ):
        with pytest.raises(SourceError, match="has not delivered yet"):
            reads.check_evidence(too_little, Lsn(0))
    if restarted:  # the file does not say which transactions were shown; a standby says it again
        with pytest.raises(SourceError, match="has not delivered yet"):
            reads.check_evidence(has_all, Lsn(0))
        reads.read(evidence(CHANGE + 5, standby=True))
    reads.check_evidence(has_all, Lsn(0))
    reads.check_evidence(evidence(CHANGE + 9, standby=False, running=frozenset({CHANGE + 5})), Lsn(0))
    ledger.close()
