"""What the applier still has to read: one task for each batch of transactions, or for the whole mapping.

Tasks need not be done in order. Each one reads the present state of its endpoints in a snapshot that sees its
transactions, so one that waits for its gate holds up nobody else. What must be in order is kept elsewhere:
the slot is confirmed only up to the oldest task that is not done, and a read never overwrites what a younger
read has brought.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from cdc.lsn import Lsn
from cdc.mapping.affected import LIMIT, Affected
from cdc.mapping.key_types import query_of
from cdc.observer import BatchSeen, TransactionSeen
from cdc.postgres.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from cdc.changes import Action
    from cdc.postgres.database import Read, Row
    from cdc.replication.assembler import Transaction
    from cdc.store.store import Store
    from cdc.units import Revision, Xid

_SHARE = 0.5
"""Share of all endpoints from which on naming them one by one costs more than reading everything."""
_RIPPLE_CHUNK = 500
"""Rows of a ripple that are applied at a time. A revocation that comes meanwhile waits for them, and for the
interpreter's lock besides, which they hold: in a whole read, which is rare, more of them save time.
"""
_SMALL = 10_000
"""Keys that are never worth a reconcile."""
_BYTES = 180
"""Memory that a `Committed` takes, where it shares its rows with the one before it."""
_XID_BYTES = 70
"""Memory that a transaction takes in its task's gate."""


class Committed(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a transaction until it is published, to report it: the keys are in the task."""

    xid: Xid
    end: Lsn
    committed_at: float
    rows: Mapping[tuple[str, Action], int]


@dataclass(slots=True, eq=False)
class Task:
    """Endpoints to read again, and what the read must have seen to count."""

    affected: Affected
    gate: Gate
    since: Lsn
    """The map holds everything up to here while this is not done."""
    end: Lsn = Lsn(0)
    """End of its last transaction: the position that the endpoints are at once it is done; 0 for a plain
    reconcile.
    """
    transactions: list[Committed] = field(default_factory=list)
    """Those that are reported when the task is done."""
    settles: bool = False
    """It asks for ids that came twice, to see whether they still do."""
    asked_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, transactions: Sequence[Transaction], since: Lsn) -> Task:
        """Make one task of some transactions with rows, in the order of their commits."""
        affected = Affected()
        committed: list[Committed] = []
        rows: Mapping[tuple[str, Action], int] = {}
        for one in transactions:
            affected.merge(one.affected)
            rows = rows if rows == one.rows else one.rows  # most are like the one before, and share its rows
            committed.append(Committed(one.xid, one.end, one.committed_at, rows))
        gate = Gate(frozenset(one.xid for one in committed), committed[-1].end)
        return cls(affected, gate, since, committed[-1].end, committed)

    @classmethod
    def reconcile(cls, reason: str, gate: Gate, since: Lsn) -> Task:
        """Make the task of comparing everything."""
        return cls(Affected(reconcile=reason), gate, since)

    @classmethod
    def settling(cls, kind: str, ids: Iterable[str], since: Lsn) -> Task:
        """Make the task of reading ids again that came twice."""
        return cls(Affected({kind: set(ids)}), Gate(), since, settles=True)

    def apart(self, ids: str | None, few: int) -> list[Task]:
        """Return it as one task, or as two if it has fewer than ``few`` keys of the query ``ids``, which are
        endpoint ids, beside others: what is named by its id must not wait for a ripple's rows.

        The transactions are reported with the second one, when all of them is in the store.
        """
        keys = self.affected.keys
        by_id = [kind for kind in keys if query_of(kind) == ids]
        if not by_id or len(by_id) == len(keys) or sum(len(keys[kind]) for kind in by_id) >= few:
            return [self]
        named = Affected(keys={kind: keys.pop(kind) for kind in by_id})
        return [replace(self, affected=named, transactions=[]), self]

    @property
    def reason(self) -> str | None:
        """Why this is a reconcile; None where keys suffice."""
        return self.affected.reconcile

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""
        gate = _XID_BYTES * len(self.gate.xids)
        return _BYTES * len(self.transactions) + gate + self.affected.size

    def within(self, endpoints: int) -> Task:
        """Return it as a reconcile if it names too many of all endpoints."""
        if len(self.affected) > max(_SMALL, _SHARE * endpoints):
            self.affected.give_up("large")
        return self

    def seen(self, affected: int) -> Iterator[TransactionSeen]:
        """Describe the transactions for whoever watches; to be called when they have just been published."""
        now = time.time()
        for one in self.transactions:
            yield TransactionSeen(one.xid, one.end, one.committed_at, now, one.rows, affected)


def merged(tasks: Sequence[Task]) -> Task:
    """Make one task of several; too much of it makes a reconcile."""
    first, *others = tasks
    for task in others:
        first.affected.merge(task.affected)
        first.gate |= task.gate
        first.since = min(first.since, task.since)
        first.end = max(first.end, task.end)
        first.transactions.extend(task.transactions)
        first.asked_at = min(first.asked_at, task.asked_at)
        first.settles = first.settles and task.settles
    if len(first.affected) > LIMIT:
        first.affected.give_up("large")
    return first


class OpenRead:
    """A read whose gate was open and whose rows are being applied, while younger reads may overtake it."""

    def __init__(self, task: Task, read: Read, began: float, reading: int = 0) -> None:
        """``reading`` is the store's number for it; 0 for one that has all of its rows at once."""
        self.task = task
        self.read = read
        self.began = began
        """Monotonic time before the statement was sent."""
        self._chunks = read.chunks() if task.reason is not None else read.chunks(_RIPPLE_CHUNK)
        self._overtaken: set[str] = set()
        self._left_out = False
        """Some rows may not be live, or may have come twice."""
        self.judges = False
        """It has all rows of the ids that it brings, at once."""
        self.doubtful: Collection[str] = ()
        """Ids that it passes over, since others judge them."""
        self.reading = reading
        self.upserts = self.deletes = self.rows = 0

    def next(self) -> list[Row] | None:
        """Return the next rows that still count; None at the end. May block as `Read.chunks` does."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return None
        self.rows += len(chunk)
        self._left_out = self._left_out or bool(self.read.odd)
        if self._overtaken:
            return [row for row in chunk if row[0] not in self._overtaken]
        return chunk

    @property
    def overtaken(self) -> Collection[str]:
        """What a younger read has brought meanwhile."""
        return self._overtaken

    def judge(self) -> None:
        """Note that it has all rows of the ids that it brings, at once."""
        self.judges = True

    def pass_over(self, doubtful: Collection[str]) -> None:
        """Skip these ids: a short read by id decides whether they still come twice."""
        self.doubtful = doubtful
        self.read.pass_over(doubtful)

    def came_again(self, ids: Collection[str]) -> None:
        """Note that some ids have come in more than one part."""
        self.read.pass_over(ids)
        self._left_out = self._left_out or bool(ids)

    def overtake(self, rows: Iterable[Row]) -> None:
        """Leave these ids alone from now on: a younger read has brought them."""
        self._overtaken.update(row[0] for row in rows)

    def missing(self, store: Store) -> list[Row]:
        """Return the deletes that a whole read of the mapping amounts to, once all of it is in the store."""
        if not self._overtaken and not self._left_out and not self.doubtful and self.rows == len(store):
            return []  # each of them is live, and so there is no other
        return [
            (endpoint_id, None)
            for endpoint_id in store.not_read(self.reading)
            if endpoint_id not in self._overtaken and endpoint_id not in self.doubtful
        ]

    def seen(self, revision: Revision) -> BatchSeen:
        """Describe what was read; to be called when it has just been published, up to ``revision``."""
        keyed = self.task.reason is None
        return BatchSeen(
            transactions=tuple(self.task.seen(self.rows)),
            affected=self.rows,
            upserts=self.upserts if keyed else 0,
            deletes=self.deletes if keyed else 0,
            suppressed=max(0, self.rows - self.upserts - self.deletes) if keyed else 0,
            requery_seconds=time.monotonic() - self.began,
            visibility_seconds=max(0.0, self.began - self.task.asked_at),
            revision=revision,
        )
