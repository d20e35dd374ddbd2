"""The watch over the tables' shapes: what changes them sends no rows.

Another replica identity, a new partition, a column that is gone: the plugin says nothing of them, and what it
says afterwards means something else.
"""

from __future__ import annotations

import time
from collections import deque
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
_LATER = 5.0
"""Seconds within which they are looked at after transactions with rows, which rarely change them as well."""


class SchemaWatch:
    """Owned by the follower's thread."""

    def __init__(self, catalog: Catalog, database: Database) -> None:
        self._catalog = catalog
        self._database = database
        self._unlooked: deque[tuple[int, Lsn]] = deque(maxlen=10_000)
        """Transactions (xid, end) since the last look at the tables: the next one has to see them."""
        self._look_by = inf
        self._looked_at = 0.0

    def note(self, transaction: Transaction) -> None:
        """Look after this transaction; one without rows may well have been DDL."""
        now = time.monotonic()
        self._unlooked.append((transaction.xid, transaction.end))
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
        gate = Gate(frozenset(xid for xid, _ in self._unlooked), self._unlooked[-1][1])
        if not gate.opens(self._database.evidence()):
            return False
        changed = self._catalog.changed(self._database)
        self._unlooked.clear()
        self._look_by = inf
        return changed
