"""Log sequence numbers: positions in Postgres' write-ahead log. mypy keeps them apart from other integers.

An LSN is a position in bytes, so the difference of two LSNs is a number of bytes. Postgres prints an LSN as
two hexadecimal halves.
"""

from __future__ import annotations

from typing import NewType

Lsn = NewType("Lsn", int)
"""A position in the write-ahead log in bytes; 0 is Postgres' "invalid" (no position known)."""


def parse(text: str) -> Lsn:
    """Read Postgres' form, such as ``16/B374D848``.

    Raises:
        ValueError: the text is not an LSN.

    """
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    return Lsn(int(high, 16) << 32 | int(low, 16))


def show(lsn: Lsn) -> str:
    """Write an LSN as Postgres does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
