"""The visibility gate: decides whether a read counts for the transactions that the slot has delivered.

A logical slot delivers a transaction before other sessions can see it, because the commit record is in the
WAL first. While a synchronous standby is away, the transaction stays invisible. A read that starts too early
shows the rows as they were *before* the change, and no later event would correct that. So each read carries
evidence of its snapshot (`Evidence`), and it counts for a batch only if that snapshot sees every transaction
of the batch (`Gate`).

The evidence depends on the server that answered:

- a primary shows its snapshot, and every transaction of the batch must be visible in it;
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
"""No transaction stays open while this many others begin: at twice as many, Postgres refuses all writes."""


@dataclass(frozen=True)
class Snapshot:
    """What ``pg_current_snapshot()`` returned; its transaction ids have 64 bits."""

    xmin: Xid8
    """Every transaction below this id is over."""
    xmax: Xid8
    """No transaction with this id or a higher one is visible."""
    running: frozenset[Xid8]
    """The transactions between `xmin` and `xmax` that were in progress."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the form ``xmin:xmax:xip,xip,...``."""
        xmin, xmax, running = text.split(":")
        xids = map(int, running.split(",")) if running else ()
        return cls(Xid8(int(xmin)), Xid8(int(xmax)), frozenset(map(Xid8, xids)))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def sees(self, xid: Xid) -> bool:
        """Return whether a *committed* transaction is visible in this snapshot.

        The slot delivers no transaction that is 2^31 ids or more from the present, so ``xid`` stands for the
        nearest 64-bit id. An unknown id (0) counts as visible: nothing could ever show that it is.
        """
        if xid == 0:
            return True
        full = self.widen(xid)
        return full < self.xmin or (full < self.xmax and full not in self.running)

    def past(self, first: Xid, last: Xid) -> bool:
        """Return whether every transaction from ``first`` to ``last`` is over."""
        start, end = self.widen(first), self.widen(last)
        return end < self.xmax and not any(start <= xid <= end for xid in self.running)

    def widen(self, xid: Xid) -> Xid8:
        """Return the 64-bit id that ``xid`` stands for: the one nearest to this snapshot's `xmax`."""
        return Xid8(self.xmax - ((self.xmax - xid + _WRAP // 2) % _WRAP - _WRAP // 2))

    def covers(self, other: Snapshot) -> bool:
        """Return whether this snapshot sees every transaction that the other one sees."""
        if self.xmax < other.xmax:
            return False
        return all(xid >= other.xmax or xid in other.running for xid in self.running)


@dataclass(frozen=True)
class Evidence:
    """The server that answered a read, and the snapshot in which it read."""

    system: str
    """The system identifier of the cluster."""
    timeline: int | None
    """The timeline that a primary writes; None in recovery."""
    instance: str
    """Identifies one run of the server, from its start to its end; a promotion does not end it."""
    replayed: Lsn | None
    """On a standby: how far it had replayed *before* the snapshot was taken; None on a primary."""
    snapshot: Snapshot
    """Meaningful on a primary only."""
    seen: Lsn
    """No transaction that is visible in the snapshot ends beyond this position."""
    bound: Lsn
    """Like `seen`, and without exception. A standby shows a commit a moment before it counts the commit as
    replayed. So on a standby this is the position up to which it has *received* WAL.
    """
    flushed: Lsn
    """Like `seen`, but only of transactions that the slot can deliver by now. A commit is flushed before it
    becomes visible, unless its session has set ``synchronous_commit = off``.
    """


@dataclass(frozen=True)
class Gate:
    """The transactions that a read must see to count. Every read passes the empty gate."""

    xids: frozenset[Xid] = frozenset()
    """The transactions of the batch."""
    end: Lsn = Lsn(0)
    """End of the batch's last transaction."""
    span: tuple[Xid, Xid] | None = None
    """The first and the last of a range of transactions that all must be over. It takes the place of `xids`
    where these are too many, or too old, to be listed.
    """
    snapshot: Snapshot | None = None
    """The snapshot with which the slot was created. The slot never delivers the transactions that this
    snapshot sees, so the first load must see them.
    """

    def opens(self, evidence: Evidence) -> bool:
        """Return whether a read with this evidence counts."""
        if evidence.replayed is not None:
            return evidence.replayed >= self.end
        if self.snapshot is not None and not evidence.snapshot.covers(self.snapshot):
            return False
        if self.span is not None and not evidence.snapshot.past(*self.span):
            return False
        return all(evidence.snapshot.sees(xid) for xid in self.xids)

    def __or__(self, other: Gate) -> Gate:
        """Return a gate that requires both."""
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
        """Return this gate, or its `spanned` form where it lists very many transactions."""
        return self if len(self.xids) <= _NAMED else self.spanned()

    def spanned(self) -> Gate:
        """Return a gate of constant size that requires at least as much: for a note in the state file."""
        span = self.span
        for xid in self.xids - {0}:
            span = (xid, xid) if span is None else (_least(span[0], xid), _greatest(span[1], xid))
        if span is not None and (span[1] - span[0]) % _WRAP > _REACH:
            span = (Xid((span[1] - _REACH) % _WRAP), span[1])
        return Gate(end=self.end, span=span, snapshot=self.snapshot)

    def note(self) -> str:
        """Return a `spanned` gate as text for the state file. The note leaves out the gate's snapshot."""
        return " ".join(map(str, (self.end, *(self.span or ()))))

    @classmethod
    def parse(cls, note: str) -> Gate | None:
        """Read a `note`; return None for an empty one."""
        if not note:
            return None
        end, *span = map(int, note.split(" "))
        return cls(end=Lsn(end), span=(Xid(span[0]), Xid(span[1])) if span else None)


def _least(one: Xid, other: Xid) -> Xid:
    """Return the earlier of two 32-bit transaction ids, which are compared modulo 2^32."""
    return one if (other - one) % _WRAP < _WRAP // 2 else other


def _greatest(one: Xid, other: Xid) -> Xid:
    return other if _least(one, other) == one else one
