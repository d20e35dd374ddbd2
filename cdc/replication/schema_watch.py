"""The watch over the tables' shapes: what changes them sends no rows.

Another replica identity, a new partition, a column that is gone, a publication that lets less through: the
plugin says nothing of them, and what it says afterwards means something else. wal2json sends at least an
empty transaction for each; pgoutput sends nothing, so that any progress of the stream may have been one.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

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
"""Seconds between looks at the tables' shapes."""
_NAMED = 10_000
"""Transactions that are waited for one by one; of more, all that began between the first and the last."""
_LATER = 5.0
"""Seconds within which they are looked at after transactions with rows, which rarely change them as well."""


class SchemaWatch:
    """Owned by the applier's thread."""

    def __init__(self, catalog: Catalog, database: Database) -> None:
        self._catalog = catalog
        self._database = database
        self._xids: list[Xid] = []
        """Transactions since the last look at the tables: the next one has to see them."""
        self._gate = Gate()
        """What has to be seen of them, those in `_xids` aside."""
        self._end: Lsn = Lsn(0)
        """The end of whatever has been read since, transactions or not."""
        self._progressed = False
        """Something has been read since the last look."""
        self._unseen = Xid8(0)
        """Transactions below this id (64 bits) may have changed the tables without being visible yet."""
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

    def note(self, transaction: Transaction) -> None:
        """Look after this transaction; one without rows may well have been DDL."""
        self._xids.append(transaction.xid)
        self._progress(transaction.end, _LATER if transaction.rows else 0.0)
        if len(self._xids) > _NAMED:
            self._gate = self._unlooked().spanned()
            self._xids.clear()

    def note_progress(self, end: Lsn) -> None:
        """Look after the stream has come this far without a word."""
        self._progress(end, 0.0)

    def _progress(self, end: Lsn, within: float) -> None:
        if end > self._end:
            self._end, self._progressed = end, True
            self._look_by = min(self._look_by, time.monotonic() + within)

    def changed(self) -> bool:
        """Look, when it is time; tells whether the stream has to begin anew with other tables.

        Raises:
            SourceError, Refusal: the database cannot be read.

        """
        now = time.monotonic()
        if now < max(self._look_by, self._looked_at + _LOOK):
            return False
        self._looked_at = now
        evidence = self._database.evidence()
        if self._suspects and evidence.snapshot.xmin >= self._suspects:
            self._suspects, self._missed = Xid8(0), Gate(end=evidence.bound)
        if not self._unlooked().opens(evidence):
            return False
        relations = self._catalog.ask(self._database)
        self._look_by = now + self._patience(evidence, relations)
        self._xids.clear()
        self._gate = Gate()
        self._progressed = False
        return self._catalog.changed(relations)

    def _patience(self, evidence: Evidence, relations: Relations) -> float:
        """Return how long nothing more has to be looked at, unless more comes.

        What is in the WAL is not always visible yet, and where no transaction came, no xid tells whether it
        is: so there is one more look, once everything that ran at this one is over.
        """
        if self._progressed:
            self._unseen = evidence.snapshot.widen(relations.next_xid)
            return _LOOK
        if evidence.snapshot.xmin < self._unseen:
            return _LATER
        return _LOOK if self._suspects else inf

    def missed(self) -> Gate | None:
        """Return, once, what a read of everything has to have seen, if something may have been missed."""
        missed, self._missed = self._missed, None
        return missed

    def _unlooked(self) -> Gate:
        return self._gate | Gate(frozenset(self._xids), self._end)
