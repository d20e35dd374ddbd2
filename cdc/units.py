"""Integers that must not be confused: separate types for mypy, plain ints at run time. See also
`cdc.lsn.Lsn`.
"""

from __future__ import annotations

from typing import NewType

Xid = NewType("Xid", int)
"""A transaction id of 32 bits, as in the WAL; 0 if it is unknown. Only ids that are near each other can be
compared.
"""
Xid8 = NewType("Xid8", int)
"""A transaction id with its epoch, 64 bits, as in ``pg_current_snapshot()``. These ids are ordered."""
Revision = NewType("Revision", int)
"""A server's own counter, which each batch that changes the map increments. It has a meaning only within an
epoch.
"""
