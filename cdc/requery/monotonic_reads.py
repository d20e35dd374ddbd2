"""From a standby to a primary: what the one has shown, the other may not show yet.

A standby shows a transaction as soon as it has replayed its commit. On the primary the same commit may still
be on its way out, or hang in its wait for a synchronous standby: whoever reads there next would take
endpoints back. So a primary is read in a standby's place only once the slot has delivered everything that the
standby had replayed, and all of that is over on the primary. A standby that was promoted itself shows
everything that it has shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cdc.errors import SourceError
from cdc.postgres.gate import Gate

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.postgres.gate import Evidence
    from cdc.state.ledger import Ledger


class MonotonicReads:
    """Owned by the applier's thread. It outlives the process, in the state file: moves come with
    restarts.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        kept = ledger.kept
        self._shown = None if kept.shown is None else replace(kept.shown, end=max(kept.shown.end, kept.seen))
        """What a primary has to show; None while a primary was read last."""
        self._instances: set[str] = set()

    def delivered(self, gate: Gate) -> None:
        """Take transactions that the slot has delivered: standbys may show them from now on."""
        if self._shown is not None:
            end = self._shown.end
            self._remember(replace((self._shown | gate).spanned(), end=end, snapshot=None))

    def read(self, evidence: Evidence) -> None:
        """Take note of a read that counts."""
        if evidence.replayed is None:
            if self._shown is not None:
                self.rewind()
            return
        self._instances.add(evidence.instance)
        if self._shown is None:
            self._remember(Gate(end=evidence.seen))
        # How far it was read is in the state file with what was read.
        elif evidence.seen > self._shown.end:
            self._shown = replace(self._shown, end=evidence.seen)

    def check_evidence(self, evidence: Evidence, reached: Lsn) -> None:
        """Refuse a primary that may show less than the standby that was read before it.

        Raises:
            SourceError: it may, for now.

        """
        shown = self._shown
        if evidence.replayed is not None or shown is None or self._instances == {evidence.instance}:
            return
        if reached < shown.end:
            what = "the slot has not delivered yet what the standby has shown"
        elif not shown.opens(evidence):
            what = "transactions that the standby has shown, or older ones, are not over here"
        else:
            return
        raise SourceError("query_server_behind", f"the queries moved from a standby to a primary: {what}")

    def rewind(self) -> None:
        """Forget it: a primary shows it, or the history that it was of has been left."""
        self._shown = None
        self._instances.clear()
        self._ledger.note(shown="")

    def _remember(self, shown: Gate) -> None:
        if self._shown is None or shown.span != self._shown.span:
            self._ledger.note(shown=shown.note())
        self._shown = shown
