"""The watch over the tables' shapes: what changes them sends no rows.

Another replica identity, a new partition, a column that is gone: the plugin says nothing of them, and what it
says afterwards means something else.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

from cdc.postgres.gate import Gate

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.postgres.database import Database
    from cdc.replication.assembler import Transaction
    from cdc.replication.catalog import Catalog

_LOOK = 1.0
"""Seconds between looks at the tables' shapes."""
_NAMED = 10_000
"""Transactions that are waited for one by one; of more, all that began between the first and the last."""
_LATER = 5.0
"""Seconds within which they are looked at after transactions with rows, which rarely change them as well."""


class SchemaWatch:
    """Owned by the follower's thread."""

    def __init__(self, catalog: Catalog, database: Database) -> None:
        self._catalog = catalog
        self._database = database
        self._xids: list[int] = []
        """Transactions since the last look at the tables: the next one has to see them."""
        self._gate = Gate()
        """What has to be seen of them, those in `_xids` aside."""
        self._end: Lsn = 0
        self._look_by = inf
        self._looked_at = 0.0

    def note(self, transaction: Transaction) -> None:
        """Look after this transaction; one without rows may well have been DDL."""
        now = time.monotonic()
        self._xids.append(transaction.xid)
        self._end = transaction.end
        if len(self._xids) > _NAMED:
            self._gate = self._unlooked().spanned()
            self._xids.clear()
        self._look_by = min(self._look_by, now + _LATER if transaction.rows else now)

    def changed(self) -> bool:
        """Look, when it is time; tells whether the stream has to begin anew with other tables.

        Raises:
            SourceError, Refusal: the database cannot be read.

        """
        now = time.monotonic()
        if now < max(self._look_by, self._looked_at + _LOOK):
            return False
        self._looked_at = now
        if not self._unlooked().opens(self._database.evidence()):
            return False
        changed = self._catalog.changed(self._database)
        self._xids.clear()
        self._gate, self._look_by = Gate(), inf
        return changed

    def _unlooked(self) -> Gate:
        return self._gate | Gate(frozenset(self._xids), self._end)
