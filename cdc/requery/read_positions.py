"""Remembers how far the reads so far have seen, and decides which further reads may be used.

A read must be from the slot's history, and must not show less than earlier reads have shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.lsn import Lsn
from cdc.postgres.timeline import Timeline, check_evidence
from cdc.requery.monotonic_reads import MonotonicReads

if TYPE_CHECKING:
    from cdc.postgres.gate import Evidence, Gate
    from cdc.state.ledger import Ledger
    from cdc.units import Xid8


class ReadPositions:
    """The newest positions that reads saw. Owned by the applier's thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._monotonic_reads = MonotonicReads(ledger)
        self.history: Timeline | None = None
        """The timeline of the slot's server; None while unknown."""
        self.read_up_to: Lsn = Lsn(0)
        """The newest position that any read saw."""
        self._shown_up_to: Lsn = Lsn(0)
        """The newest `Evidence.shown` of a standby; `_shown_by` is the standby's `Evidence.instance`. Any
        other server must have replayed WAL up to this position.
        """
        self._shown_by = ""

    def follow(self, history: Timeline | None) -> None:
        """Use only reads from this timeline; with None, use reads from any timeline."""
        self.history = history

    def restore(self, seen: Lsn) -> None:
        """Start with the map of the state file. Nothing in it is newer than ``seen``."""
        self.read_up_to = seen

    def rewind(self, to: Lsn) -> None:
        """Record that nothing in the map is newer than ``to``."""
        self.read_up_to = self._shown_up_to = to
        self._monotonic_reads.rewind()

    def delivered(self, gate: Gate) -> None:
        """Add transactions that the slot has delivered; see `MonotonicReads.delivered`."""
        self._monotonic_reads.delivered(gate)

    def settle(self, next_xid: Xid8) -> None:
        """Give the delivered transactions 64-bit ids; see `MonotonicReads.settle`."""
        self._monotonic_reads.settle(next_xid)

    def read(self, evidence: Evidence) -> None:
        """Record the evidence of a read whose rows are used."""
        self._monotonic_reads.read(evidence)
        self.read_up_to = max(self.read_up_to, evidence.seen)
        if evidence.replayed is not None and evidence.shown > self._shown_up_to:
            self._shown_up_to, self._shown_by = evidence.shown, evidence.instance

    def check_evidence(self, evidence: Evidence, reached: Lsn, read_up_to: Lsn | None = None) -> None:
        """Refuse a read from another history, or one that may show less than earlier reads.

        The slot has delivered every transaction up to ``reached``. ``read_up_to`` is the value of the
        attribute when the read began; the default is the current value.

        Raises:
            SourceError: the read must not be used.

        """
        if read_up_to is None:
            read_up_to = self.read_up_to
            if evidence.instance != self._shown_by:
                read_up_to = max(read_up_to, self._shown_up_to)
        check_evidence(evidence, self.history, read_up_to)
        self._monotonic_reads.check_evidence(evidence, reached)
