"""Integers that must not be mixed, beside `cdc.lsn.Lsn`: types for mypy, plain ints at run time."""

from __future__ import annotations

from typing import NewType

Xid = NewType("Xid", int)
"""A transaction id as the WAL has it, 32 bits; 0 where it is unknown. Only near ids can be compared."""
Xid8 = NewType("Xid8", int)
"""A transaction id with its epoch, 64 bits, as ``pg_current_snapshot()`` has it. These are ordered."""
Revision = NewType("Revision", int)
"""A server's own counter: one more for each batch that changes its map. Only meaningful within one epoch."""
