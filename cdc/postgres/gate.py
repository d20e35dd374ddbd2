"""The visibility gate: decides whether a read includes the transactions that the slot has delivered.

A logical slot delivers a transaction before other sessions can see it, because the commit record is in the
WAL first. While a synchronous standby is away, the transaction stays invisible. A read that starts too early
returns the rows as they were *before* the change, and no later event would correct them. So each read returns
evidence of its snapshot (`Evidence`). The read is used for a batch only if its snapshot sees every
transaction of the batch (`Gate`).

The evidence depends on the server that answered:

- A primary returns its snapshot, and every transaction of the batch must be visible in it.
- The ``pg_current_snapshot()`` of a standby leaves out transactions that are in progress there, so the
  standby's replay position, read *before* the snapshot was taken, must have reached the end of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdc.lsn import Lsn
from cdc.units import Xid, Xid8

_WRAP = 1 << 32
_NAMED = 100_000
"""Maximum number of transactions that a `bounded` gate lists one by one."""
_REACH = 1 << 30
"""No transaction stays open while this many others begin: at twice as many, Postgres refuses all writes."""


@dataclass(frozen=True)
class Snapshot:
    """The result of ``pg_current_snapshot()``. Its transaction ids have 64 bits."""

    xmin: Xid8
    """Every transaction below this id has ended."""
    xmax: Xid8
    """No transaction with this id or a higher one is visible."""
    running: frozenset[Xid8]
    """The transactions between `xmin` and `xmax` that were in progress."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Parse the form ``xmin:xmax:xip,xip,...``."""
        xmin, xmax, running = text.split(":")
        xids = map(int, running.split(",")) if running else ()
        return cls(Xid8(int(xmin)), Xid8(int(xmax)), frozenset(map(Xid8, xids)))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def sees(self, xid: Xid) -> bool:
        """Return whether a *committed* transaction is visible in this snapshot.

        The slot delivers no transaction that is 2^31 ids or more from the current one, so ``xid`` stands for
        the nearest 64-bit id. An unknown id (0) counts as visible, since no snapshot could ever show that it
        is.
        """
        if xid == 0:
            return True
        full = self.widen(xid)
        return full < self.xmin or (full < self.xmax and full not in self.running)

    def past(self, first: Xid8, last: Xid8) -> bool:
        """Return whether every transaction from ``first`` to ``last`` has ended."""
        return last < self.xmax and not any(first <= xid <= last for xid in self.running)

    def widen(self, xid: Xid) -> Xid8:
        """Return the 64-bit id that ``xid`` stands for: the one nearest to this snapshot's `xmax`."""
        return widened(xid, self.xmax)

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
    """Identifies one run of the server, from its start to its end. A promotion does not end the run."""
    replayed: Lsn | None
    """The position up to which a standby had replayed WAL *before* the snapshot was taken; None on a primary.
    """
    snapshot: Snapshot
    """On a standby only its `xmax` has a meaning: transactions that are in progress there are left out."""
    seen: Lsn
    """No transaction that is visible in the snapshot ends beyond this position."""
    bound: Lsn
    """Like `seen`, but without any exception. A standby shows a commit a moment before it counts the commit
    as replayed. So on a standby `bound` is the position up to which it has *received* WAL.
    """
    flushed: Lsn
    """Like `seen`, but only for transactions that the slot can already deliver. A commit is flushed before it
    becomes visible, unless its session has set ``synchronous_commit = off``.
    """
    shown: Lsn
    """No visible transaction ends beyond this position. On a primary it is the end of the written WAL, which
    may not be flushed yet. On a standby it is the replay position, plus one byte while the standby may show a
    commit that it does not count as replayed yet.
    """
    flushed_within: float = 0.0
    """Seconds after which a primary has flushed everything that it shows."""


@dataclass(frozen=True)
class Gate:
    """The transactions that a read must see before its rows may be used. Every read passes the empty gate."""

    xids: frozenset[Xid] = frozenset()
    """The transactions of the batch."""
    end: Lsn = Lsn(0)
    """End of the batch's last transaction."""
    span: tuple[Xid, Xid] | None = None
    """The first and last id (32 bits) of transactions that are too many to list. All transactions between
    them must have ended.
    """
    lasting: tuple[Xid8, Xid8] | None = None
    """Like `span`, with 64 bits. A 32-bit id identifies a transaction only until 2^31 others have begun. This
    cannot happen before the slot is confirmed beyond the transaction, since the slot's ``catalog_xmin``
    prevents it. A gate that is kept for longer needs 64 bits: see `settled`.
    """
    snapshot: Snapshot | None = None
    """The snapshot with which the slot was created. The slot never delivers the transactions that this
    snapshot sees, so the first load must see them.
    """

    def opens(self, evidence: Evidence) -> bool:
        """Return whether the rows of a read with this evidence may be used."""
        if evidence.replayed is not None:
            return evidence.replayed >= self.end
        if self.snapshot is not None and not evidence.snapshot.covers(self.snapshot):
            return False
        snapshot = evidence.snapshot
        if self.span is not None and not snapshot.past(*map(snapshot.widen, self.span)):
            return False
        if self.lasting is not None and not snapshot.past(*self.lasting):
            return False
        return all(snapshot.sees(xid) for xid in self.xids)

    def __or__(self, other: Gate) -> Gate:
        """Return a gate that requires what both gates require."""
        spans = [span for span in (self.span, other.span) if span is not None]
        if len(spans) == 2:  # noqa: PLR2004 - both have one
            spans = [(_least(spans[0][0], spans[1][0]), _greatest(spans[0][1], spans[1][1]))]
        return Gate(
            self.xids | other.xids,
            max(self.end, other.end),
            spans[0] if spans else None,
            _hull(self.lasting, other.lasting),
            self.snapshot or other.snapshot,
        )

    def bounded(self) -> Gate:
        """Return this gate, or its `spanned` form if it lists very many transactions."""
        return self if len(self.xids) <= _NAMED else self.spanned()

    def spanned(self) -> Gate:
        """Return a gate of constant size that requires at least what this gate requires."""
        span = self.span
        for xid in self.xids - {0}:
            span = (xid, xid) if span is None else (_least(span[0], xid), _greatest(span[1], xid))
        if span is not None and (span[1] - span[0]) % _WRAP > _REACH:
            span = (Xid((span[1] - _REACH) % _WRAP), span[1])
        return replace(self, xids=frozenset(), span=span)

    def settled(self, next_xid: Xid8) -> Gate:
        """Return a gate as `spanned` does, but with 64-bit ids, so that it stays valid when 32-bit ids wrap
        around.

        ``next_xid`` is the server's next transaction id, of a time when the slot had not been confirmed
        beyond the gate's transactions. Without the slot, 2^31 others may have begun since.
        """
        span = self.spanned().span
        full = None if span is None else (widened(span[0], next_xid), widened(span[1], next_xid))
        return replace(self, xids=frozenset(), span=None, lasting=_hull(self.lasting, full))

    def note(self) -> str:
        """Return a `spanned` or `settled` gate as text for the state file. The text leaves out the snapshot.

        Earlier versions of pads-cdc, which have no `lasting`, read only the first three numbers.
        """
        if self.lasting is None:
            return " ".join(map(str, (self.end, *(self.span or ()))))
        first, last = self.lasting
        short = (Xid(max(first, last - _REACH) % _WRAP), Xid(last % _WRAP))
        in_short = (Gate(span=short) | Gate(span=self.span)).spanned().span
        return " ".join(map(str, (self.end, *(in_short or ()), first, last, *(self.span or ()))))

    @classmethod
    def parse(cls, note: str) -> Gate | None:
        """Parse the text of `note`; return None if it is empty."""
        if not note:
            return None
        end, *ids = map(int, note.split(" "))
        spans = [*zip(ids[::2], ids[1::2], strict=True)]
        lasting = spans.pop(1) if len(spans) > 1 else None
        short = spans[-1:] if lasting is None else spans[1:]
        return cls(
            end=Lsn(end),
            span=(Xid(short[0][0]), Xid(short[0][1])) if short else None,
            lasting=None if lasting is None else (Xid8(lasting[0]), Xid8(lasting[1])),
        )


def widened(xid: Xid, near: Xid8) -> Xid8:
    """Return the 64-bit id that ends in the 32 bits of ``xid`` and is nearest to ``near``."""
    return Xid8(near - ((near - xid + _WRAP // 2) % _WRAP - _WRAP // 2))


def _hull(one: tuple[Xid8, Xid8] | None, other: tuple[Xid8, Xid8] | None) -> tuple[Xid8, Xid8] | None:
    """Return the smallest span that contains both spans."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


def _least(one: Xid, other: Xid) -> Xid:
    """Return the earlier of two 32-bit transaction ids, which are compared modulo 2^32."""
    return one if (other - one) % _WRAP < _WRAP // 2 else other


def _greatest(one: Xid, other: Xid) -> Xid:
    return other if _least(one, other) == one else one
