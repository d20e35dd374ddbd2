"""The visibility gate: may a read count for what the slot delivered?

A logical slot delivers a transaction before other sessions can see it: the commit record is in the WAL first,
and with a synchronous standby that is away it stays invisible for as long as that lasts. A read that was made
too early shows the rows as they were *before* the change, and nothing would ever correct it. So each read
carries evidence of its snapshot (`Evidence`), and counts for a batch only if that snapshot sees every
transaction of the batch (`Gate`).

What counts as evidence depends on the server that was asked:

- a primary shows its snapshot, and every xid must be visible in it;
- a standby's ``pg_current_snapshot()`` leaves out transactions that are in progress there, so the replay
position,
  read *before* the snapshot was taken, must have reached the end of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc import lsn

if TYPE_CHECKING:
    from cdc.lsn import Lsn

_WRAP = 1 << 32


@dataclass(frozen=True)
class Snapshot:
    """What ``pg_current_snapshot()`` returned; its transaction ids have 64 bits."""

    xmin: int
    """Every transaction below is over."""
    xmax: int
    """No transaction from here on is visible."""
    running: frozenset[int]
    """Those between that were in progress."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the form ``xmin:xmax:xip,xip,...``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())

    def sees(self, xid: int) -> bool:
        """Tell whether a *committed* transaction is visible; ``xid`` has 32 bits, as wal2json gives it.

        The slot delivers nothing that is 2^31 transactions away from the present, so the nearest 64-bit id is
        meant.
        """
        full = self.xmax - ((self.xmax - xid + _WRAP // 2) % _WRAP - _WRAP // 2)
        return full < self.xmin or (full < self.xmax and full not in self.running)

    def covers(self, other: Snapshot) -> bool:
        """Tell whether this snapshot sees everything that the other one sees."""
        if self.xmax < other.xmax:
            return False
        return all(xid >= other.xmax or xid in other.running for xid in self.running)


@dataclass(frozen=True)
class Evidence:
    """What a read says of the server and the snapshot that it was made in."""

    system: str
    """The system identifier of the cluster that answered."""
    timeline: int | None
    """The timeline that a primary writes; None in recovery."""
    replayed: Lsn | None
    """On a standby: how far it had replayed *before* the snapshot; None on a primary."""
    snapshot: Snapshot
    """Meaningful on a primary only."""
    seen: Lsn
    """A position that nothing visible in the snapshot lies beyond."""


@dataclass(frozen=True)
class Gate:
    """What a read must have seen to count; the empty gate lets everything through."""

    xids: frozenset[int] = frozenset()
    """Transactions of the batch, 32 bits each."""
    end: Lsn = 0
    """End of the batch's last transaction."""
    snapshot: Snapshot | None = None
    """The snapshot that the slot was created with: what it sees is never delivered, so a load must see it."""

    def opens(self, evidence: Evidence) -> bool:
        """Tell whether a read with this evidence counts."""
        if evidence.replayed is not None:
            return evidence.replayed >= self.end
        if self.snapshot is not None and not evidence.snapshot.covers(self.snapshot):
            return False
        return all(evidence.snapshot.sees(xid) for xid in self.xids)

    def __or__(self, other: Gate) -> Gate:
        """Require both."""
        return Gate(self.xids | other.xids, max(self.end, other.end), self.snapshot or other.snapshot)

    def __str__(self) -> str:
        xids = ", ".join(map(str, sorted(self.xids)[:5])) + (", ..." if len(self.xids) > 5 else "")  # noqa: PLR2004
        return f"xids {xids or 'none'} up to {lsn.show(self.end)}"
