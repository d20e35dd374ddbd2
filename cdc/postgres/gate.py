"""The visibility gate: may a read count for what the slot delivered?

A logical slot delivers a transaction before other sessions can see it: the commit record is in the WAL first,
and with a synchronous standby that is away it stays invisible for as long as that lasts. A read that was made
too early shows the rows as they were *before* the change, and nothing would ever correct it. So each read
carries evidence of its snapshot (`Evidence`), and counts for a batch only if that snapshot sees every
transaction of the batch (`Gate`).

What counts as evidence depends on the server that was asked:

- a primary shows its snapshot, and every xid must be visible in it;
- a standby's ``pg_current_snapshot()`` leaves out transactions that are in progress there, so the replay
  position, read *before* the snapshot was taken, must have reached the end of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.lsn import Lsn
from cdc.units import Xid, Xid8

_WRAP = 1 << 32
_NAMED = 100_000
"""Transactions that a `bounded` gate names one by one."""
_REACH = 1 << 30
"""No transaction runs while so many others begin: Postgres takes no more writes at twice as many."""


@dataclass(frozen=True)
class Snapshot:
    """What ``pg_current_snapshot()`` returned; its transaction ids have 64 bits."""

    xmin: Xid8
    """Every transaction below is over."""
    xmax: Xid8
    """No transaction from here on is visible."""
    running: frozenset[Xid8]
    """Those between that were in progress."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the form ``xmin:xmax:xip,xip,...``."""
        xmin, xmax, running = text.split(":")
        xids = map(int, running.split(",")) if running else ()
        return cls(Xid8(int(xmin)), Xid8(int(xmax)), frozenset(map(Xid8, xids)))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def sees(self, xid: Xid) -> bool:
        """Tell whether a *committed* transaction is visible; ``xid`` has 32 bits, as wal2json gives it.

        The slot delivers nothing that is 2^31 transactions away from the present, so the nearest 64-bit id is
        meant. 0 is no transaction's id: one that could not be read is waited for by nobody.
        """
        if xid == 0:
            return True
        full = self.widen(xid)
        return full < self.xmin or (full < self.xmax and full not in self.running)

    def past(self, first: Xid, last: Xid) -> bool:
        """Tell whether every transaction from ``first`` to ``last`` (32 bits each) is over."""
        start, end = self.widen(first), self.widen(last)
        return end < self.xmax and not any(start <= xid <= end for xid in self.running)

    def widen(self, xid: Xid) -> Xid8:
        """Return the 64-bit id that 32 bits stand for: the nearest to this snapshot's end."""
        return Xid8(self.xmax - ((self.xmax - xid + _WRAP // 2) % _WRAP - _WRAP // 2))

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
    instance: str
    """Names one run of a server, from its start to its end; a promotion does not end it."""
    replayed: Lsn | None
    """On a standby: how far it had replayed *before* the snapshot; None on a primary."""
    snapshot: Snapshot
    """Meaningful on a primary only."""
    seen: Lsn
    """A position that nothing visible in the snapshot lies beyond."""
    bound: Lsn
    """Likewise, strictly: a standby shows a commit a moment before it counts it as replayed, and just then
    wakes who has waited for its locks. It has received it by then, and perhaps much that it does not show.
    """
    flushed: Lsn
    """As `seen`, of what the slot can deliver by now: a commit is flushed before anybody sees it, unless its
    session asked for ``synchronous_commit = off``.
    """


@dataclass(frozen=True)
class Gate:
    """What a read must have seen to count; the empty gate lets everything through."""

    xids: frozenset[Xid] = frozenset()
    """Transactions of the batch, 32 bits each."""
    end: Lsn = Lsn(0)
    """End of the batch's last transaction."""
    span: tuple[Xid, Xid] | None = None
    """First and last (32 bits) of transactions too many, or too long ago, to be named: all between must be
    over.
    """
    snapshot: Snapshot | None = None
    """The snapshot that the slot was created with: what it sees is never delivered, so a load must see it."""

    def opens(self, evidence: Evidence) -> bool:
        """Tell whether a read with this evidence counts."""
        if evidence.replayed is not None:
            return evidence.replayed >= self.end
        if self.snapshot is not None and not evidence.snapshot.covers(self.snapshot):
            return False
        if self.span is not None and not evidence.snapshot.past(*self.span):
            return False
        return all(evidence.snapshot.sees(xid) for xid in self.xids)

    def __or__(self, other: Gate) -> Gate:
        """Require both."""
        spans = [span for span in (self.span, other.span) if span is not None]
        if len(spans) == 2:  # noqa: PLR2004 - both have one
            spans = [(_least(spans[0][0], spans[1][0]), _greatest(spans[0][1], spans[1][1]))]
        return Gate(
            self.xids | other.xids,
            max(self.end, other.end),
            spans[0] if spans else None,
            self.snapshot or other.snapshot,
        )

    def bounded(self) -> Gate:
        """Return the same gate, or `spanned` where it names very many transactions."""
        return self if len(self.xids) <= _NAMED else self.spanned()

    def spanned(self) -> Gate:
        """Return a gate that is no easier and takes no room: for notes that outlive the process."""
        span = self.span
        for xid in self.xids - {0}:
            span = (xid, xid) if span is None else (_least(span[0], xid), _greatest(span[1], xid))
        if span is not None and (span[1] - span[0]) % _WRAP > _REACH:
            span = (Xid((span[1] - _REACH) % _WRAP), span[1])
        return Gate(end=self.end, span=span, snapshot=self.snapshot)

    def note(self) -> str:
        """Write a `spanned` gate for the state file; its snapshot is not in the note."""
        return " ".join(map(str, (self.end, *(self.span or ()))))

    @classmethod
    def parse(cls, note: str) -> Gate | None:
        """Read a `note`; None where there is none."""
        if not note:
            return None
        end, *span = map(int, note.split(" "))
        return cls(end=Lsn(end), span=(Xid(span[0]), Xid(span[1])) if span else None)


def _least(one: Xid, other: Xid) -> Xid:
    """Return the earlier of two 32-bit transaction ids, which are compared modulo 2^32."""
    return one if (other - one) % _WRAP < _WRAP // 2 else other


def _greatest(one: Xid, other: Xid) -> Xid:
    return other if _least(one, other) == one else one
