"""Monotonic reads: a primary that is read after a standby must show everything that the standby has shown.

A standby shows a transaction as soon as it has replayed the commit. On the primary the same transaction may
not be visible yet, for example while the commit waits for a synchronous standby. A read from the primary
could then return older states of endpoints. So the primary is read only after the slot has delivered
everything that the standby had replayed, and all of these transactions have ended on the primary. If there is
no stream, it is read once it has all of that WAL and every transaction that the standby may have shown has
ended. A standby that has been promoted shows everything that it showed before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cdc.errors import SourceError
from cdc.postgres.gate import Gate
from cdc.units import Xid8

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.postgres.gate import Evidence
    from cdc.state.ledger import Ledger

UNDELIVERED: Final = "undelivered"
"""The reason of an error that lasts until the slot has delivered more."""


class MonotonicReads:
    """Keeps the gate that a read from a primary must pass. Owned by the applier's thread. The gate is also in
    the state file, since a restart of this process often comes with a new query server.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        kept = ledger.kept
        self._shown = None if kept.shown is None else replace(kept.shown, end=max(kept.shown.end, kept.seen))
        """The gate that a read from a primary has to pass; None if the newest read was from a primary."""
        self._below: Xid8 | None = None
        """Every transaction that a standby has shown has a lower id than this one; None if it is unknown."""
        self._instances: set[str] = set()
        """The server runs that have been read since the newest read from a primary."""

    def delivered(self, gate: Gate) -> None:
        """Add transactions that the slot has delivered. Standbys may show them from now on.

        If the process ends before a standby has been read for them, the slot delivers them again.
        """
        if self._shown is not None:
            self._shown = replace((self._shown | gate).spanned(), end=self._shown.end, snapshot=None)

    def read(self, evidence: Evidence) -> None:
        """Record the evidence of a read whose rows are used."""
        if evidence.replayed is None:
            if self._shown is not None:
                self.rewind()
            return
        self._instances.add(evidence.instance)
        if self._below is not None or self._shown is None or evidence.replayed >= self._shown.end:
            self._below = max(self._below or Xid8(0), evidence.snapshot.xmax)
        if self._shown is None:
            self._remember(Gate(end=evidence.shown))
        # This position needs no note in the state file, which gets it together with the rows.
        elif evidence.shown > self._shown.end:
            self._shown = replace(self._shown, end=evidence.shown)

    def check_evidence(self, evidence: Evidence, reached: Lsn) -> None:
        """Refuse a primary that may show less than the standby that was read before it.

        Raises:
            SourceError: the primary may still show less.

        """
        self.settle(evidence.snapshot.xmax)
        shown = self._shown
        if evidence.replayed is not None or shown is None or self._instances == {evidence.instance}:
            return
        if reached < shown.end and not self._has_all(evidence, shown.end):
            reason, what = UNDELIVERED, "the slot has not delivered yet what the standby has shown"
        elif not shown.opens(evidence):
            reason = "query_server_behind"
            what = "transactions that the standby has shown, or older ones, have not ended here"
        else:
            return
        raise SourceError(reason, f"the queries moved from a standby to a primary: {what}")

    def _has_all(self, evidence: Evidence, end: Lsn) -> bool:
        """Return whether a primary has the WAL up to ``end``, and shows whatever a standby has shown."""
        return self._below is not None and evidence.flushed >= end and evidence.snapshot.xmin >= self._below

    def rewind(self) -> None:
        """Forget the gate, because a primary has passed it or it belongs to another history."""
        self._shown = self._below = None
        self._instances.clear()
        self._ledger.note(shown="")

    def settle(self, next_xid: Xid8) -> None:
        """Give the delivered transactions 64-bit ids. This must be done before the slot is confirmed beyond
        them, since 2^31 other transactions may begin before the next evidence.
        """
        if self._shown is not None and self._shown.span is not None:
            self._remember(self._shown.settled(next_xid))

    def _remember(self, shown: Gate) -> None:
        if self._shown is None or shown.lasting != self._shown.lasting:
            self._ledger.note(shown=shown.note())
        self._shown = shown
