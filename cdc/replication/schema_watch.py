"""Watches the definitions of the tables, because the stream does not contain changes of definitions.

The plugin does not report a new replica identity, a new partition, a dropped column, or a publication with
fewer columns, but such a change gives later rows another meaning. wal2json sends at least an empty
transaction for it. pgoutput sends nothing, so such a change may precede any progress of the stream.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

from cdc.errors import PadsCdcError
from cdc.lsn import Lsn
from cdc.postgres.gate import Gate
from cdc.units import Xid8

if TYPE_CHECKING:
    from cdc.postgres.database import Database
    from cdc.postgres.gate import Evidence
    from cdc.replication.assembler import Transaction
    from cdc.replication.catalog import Catalog, Relations
    from cdc.units import Xid

_LOOK = 1.0
"""Minimum time between two comparisons of the definitions, in seconds."""
_NAMED = 10_000
"""Maximum number of transactions that are listed one by one for the next comparison. If there are more, the
comparison waits for all transactions between the first and the last.
"""
_LATER = 5.0
"""Seconds from a transaction with rows to the next comparison. Such a transaction rarely changes a
definition.
"""


class SchemaWatch:
    """Compares the tables' definitions with those of the stream. Owned by the applier's thread."""

    def __init__(self, catalog: Catalog, database: Database) -> None:
        self._catalog = catalog
        self._database = database
        self._xids: list[Xid] = []
        """Transactions since the last comparison. The next comparison must see them."""
        self._gate = Gate()
        """A gate for the transactions that the next comparison must see and that are no longer listed in
        `_xids`.
        """
        self._awaited: Gate | None = None
        """The gate that was closed when a comparison was due. Transactions that come later do not belong to
        it, since there may always be one that is not visible yet.
        """
        self._end: Lsn = Lsn(0)
        """The position up to which the stream has been read."""
        self._progressed = False
        """Whether the stream has been read further since the last comparison."""
        self._unseen = Xid8(0)
        """Transactions below this id may have changed the tables and may not be visible yet."""
        self._suspects = Xid8(0)
        """Transactions below this id may have changed rows that the stream leaves out."""
        self._missed: Gate | None = None
        self._look_by = inf
        self._looked_at = 0.0

    def begin(self, suspects: Xid8) -> None:
        """Begin with a new stream; see `cdc.replication.backlog.Started` for ``suspects``."""
        self._suspects = suspects
        self._missed = None
        if suspects:
            self._look_by = 0.0

    def rewind(self) -> None:
        """Forget all transactions and positions, because they belong to another history."""
        self._xids.clear()
        self._gate, self._awaited, self._end = Gate(), None, Lsn(0)
        self._unseen = Xid8(0)

    def note(self, transaction: Transaction) -> None:
        """Schedule a comparison after this transaction. If it has no rows, it may have been DDL."""
        self._xids.append(transaction.xid)
        self._progress(transaction.end, _LATER if transaction.rows else 0.0)
        if len(self._xids) > _NAMED:
            self._gate = self._unlooked().spanned()
            self._xids.clear()

    def note_progress(self, end: Lsn) -> None:
        """Schedule a comparison, because the stream has progressed to ``end`` without a transaction."""
        self._progress(end, 0.0)

    def _progress(self, end: Lsn, within: float) -> None:
        if end > self._end:
            self._end, self._progressed = end, True
            self._look_by = min(self._look_by, time.monotonic() + within)

    def changed(self, next_xid: Xid8 | None) -> bool:
        """Compare the definitions if a comparison is due. Return whether they have changed, so that the
        stream must be started again. ``next_xid`` is the next transaction id of the slot's server, if known.

        Raises:
            SourceError, Refusal: the database cannot be read.

        """
        now = time.monotonic()
        if now < max(self._look_by, self._looked_at + _LOOK):
            return False
        self._looked_at = now
        try:
            evidence = self._database.evidence()
        except PadsCdcError:
            if next_xid is not None:
                self._settle(next_xid)  # the next look may come after 2^31 transactions
            raise
        if self._suspects and evidence.snapshot.xmin >= self._suspects:
            self._suspects, self._missed = Xid8(0), Gate(end=evidence.bound)
        if not (self._awaited or self._unlooked()).opens(evidence):
            self._settle(evidence.snapshot.xmax)
            return False
        relations = self._catalog.ask(self._database)
        if self._awaited is not None:
            self._awaited = None  # the next comparison, after `_LOOK`, is for those that came later
            return self._catalog.changed(relations)
        self._look_by = now + self._patience(evidence, relations)
        self._xids.clear()
        self._gate = Gate()
        self._progressed = False
        return self._catalog.changed(relations)

    def _patience(self, evidence: Evidence, relations: Relations) -> float:
        """Return the seconds until the next comparison, if nothing else arrives.

        A change in the WAL may not be visible yet. If the stream delivered no transaction, there is no
        transaction id to wait for. So the definitions are compared once more when all current transactions
        have ended.
        """
        if self._progressed:
            self._unseen = evidence.snapshot.widen(relations.next_xid)
            return _LOOK
        if evidence.snapshot.xmin < self._unseen:
            return _LATER
        return _LOOK if self._suspects else inf

    def missed(self) -> Gate | None:
        """Return the gate for a reconcile, once, if the stream may have left out rows; otherwise None."""
        missed, self._missed = self._missed, None
        return missed

    def _settle(self, next_xid: Xid8) -> None:
        """Give the transactions 64-bit ids, because the slot may be confirmed beyond them."""
        self._gate = self._unlooked().settled(next_xid)
        self._xids.clear()
        if self._awaited is None:
            self._awaited, self._gate = self._gate, Gate()

    def _unlooked(self) -> Gate:
        return self._gate | Gate(frozenset(self._xids), self._end)
