"""Tasks and open reads. A task is a read that still has to be made, for a batch of transactions or for the
whole mapping.

Tasks need not be done in order. Each task reads the current state of its endpoints in a snapshot that sees
its transactions, so a task that waits for its gate does not delay other tasks. Two rules elsewhere depend on
order: the slot is confirmed only up to the oldest open task, and a read never overwrites the rows of a
younger read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from cdc.lsn import Lsn
from cdc.mapping.affected import LARGE, LIMIT, Affected
from cdc.mapping.key_types import query_of
from cdc.observer import BatchSeen, TransactionSeen
from cdc.postgres.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from cdc.changes import Action
    from cdc.postgres.read import Read, Row
    from cdc.replication.assembler import Transaction
    from cdc.store.store import Batch, Store
    from cdc.units import Revision, Xid, Xid8

_SHARE = 0.5
"""If more than this share of all endpoints is affected, a reconcile costs less than reading them by key."""
_RIPPLE_CHUNK = 500
"""Number of rows of a ripple that are applied at a time. It is small, because a revocation has to wait for
them, and its threads wait for the interpreter's lock. A read of the whole mapping is rare, and applies more
rows at a time to save time.
"""
_SMALL = 10_000
"""Keys are replaced by a reconcile only if there are more than this number."""
_BYTES = 180
"""Memory of a `Committed` that shares its ``rows`` with another one, in bytes."""
_XID_BYTES = 70
"""Memory of a transaction id in its task's gate, in bytes."""


class Committed(msgspec.Struct, frozen=True, gc=False):
    """A transaction whose endpoints are to be read. It is kept for the report; its keys are in the task."""

    xid: Xid
    end: Lsn
    committed_at: float
    rows: Mapping[tuple[str, Action], int]


@dataclass(slots=True, eq=False)
class Task:
    """Endpoints to read again, and the gate that the read must pass."""

    affected: Affected
    gate: Gate
    since: Lsn
    """While the task is open, the map is known to include every transaction only up to this position."""
    end: Lsn = Lsn(0)
    """End of the last transaction, which becomes the endpoints' position; 0 if there is no transaction."""
    transactions: list[Committed] = field(default_factory=list)
    """The transactions to report when the task is done."""
    settles: bool = False
    """Whether the task reads ids that a read returned more than once, in case they now have one row."""
    asked_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, transactions: Sequence[Transaction], since: Lsn) -> Task:
        """Make one task of transactions that are in the order of their commits."""
        affected = Affected()
        committed: list[Committed] = []
        rows: Mapping[tuple[str, Action], int] = {}
        for one in transactions:
            affected.merge(one.affected)
            rows = rows if rows == one.rows else one.rows  # equal mappings are shared, to save memory
            committed.append(Committed(one.xid, one.end, one.committed_at, rows))
        gate = Gate(frozenset(one.xid for one in committed), committed[-1].end)
        return cls(affected, gate, since, committed[-1].end, committed)

    @classmethod
    def reconcile(cls, reason: str, gate: Gate, since: Lsn) -> Task:
        """Make a task that reads the whole mapping."""
        return cls(Affected(reconcile=reason), gate, since)

    @classmethod
    def settling(cls, kind: str, ids: Iterable[str], since: Lsn) -> Task:
        """Make a task that reads again the ids that a read returned more than once."""
        return cls(Affected({kind: set(ids)}), Gate(), since, settles=True)

    def apart(self, ids: str | None, few: int) -> list[Task]:
        """Return this task alone, or split it in two if it has a few endpoint ids in addition to other keys.

        ``ids`` is the query whose keys are endpoint ids. If there are fewer than ``few`` such keys, they
        become the first task, so that they do not wait for a ripple's rows. The second task reports the
        transactions.
        """
        keys = self.affected.keys
        by_id = [kind for kind in keys if query_of(kind) == ids]
        if not by_id or len(by_id) == len(keys) or sum(len(keys[kind]) for kind in by_id) >= few:
            return [self]
        return [replace(self, affected=self.affected.take(by_id), transactions=[]), self]

    def lasting_gate(self, next_xid: Xid8) -> Gate:
        """Replace the gate by one that stays valid for ever, and return it; see `Gate.settled`."""
        self.gate = self.gate.settled(next_xid)
        return self.gate

    def condense(self) -> None:
        """Free memory: the transactions will not be reported, and the ids of many become a range."""
        self.transactions.clear()
        self.gate = self.gate.bounded()

    @property
    def reason(self) -> str | None:
        """Why this task is a reconcile; None for a task with keys."""
        return self.affected.reconcile

    @property
    def size(self) -> int:
        """Approximate memory of the task, in bytes."""
        gate = _XID_BYTES * len(self.gate.xids)
        return _BYTES * len(self.transactions) + gate + self.affected.size

    def within(self, endpoints: int) -> Task:
        """Make this task a reconcile if it has keys for too large a share of ``endpoints``; return it."""
        if len(self.affected) > max(_SMALL, _SHARE * endpoints):
            self.affected.give_up(LARGE)
        return self

    def seen(self, affected: int) -> Iterator[TransactionSeen]:
        """Yield the transactions for the observer, each with the number of ``affected`` endpoints. Call it
        right after they have been published.
        """
        now = time.time()
        for one in self.transactions:
            yield TransactionSeen(one.xid, one.end, one.committed_at, now, one.rows, affected)


def merged(tasks: Sequence[Task]) -> Task:
    """Make one task of several. With too many keys it becomes a reconcile."""
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
        first.affected.give_up(LARGE)
    return first


class OpenRead:
    """A read that has passed its gate and whose rows are being applied. Younger reads may overtake it."""

    def __init__(self, task: Task, read: Read, began: float, reading: int = 0) -> None:
        """``reading`` is the store's number for this read; 0 if all of its rows arrived at once."""
        self.task = task
        self.read = read
        self.began = began
        """Monotonic time before the statement was sent."""
        self._chunks = read.chunks() if task.reason is not None else read.chunks(_RIPPLE_CHUNK)
        self._overtaken: set[str] = set()
        self._left_out = False
        """Whether some of its rows may be odd, or may share an id."""
        self.judges = False
        """Whether it returned all rows of its ids at once, so that it can determine ids with several rows."""
        self.doubtful: Collection[str] = ()
        """Ids that it skips, since a read by id determines them."""
        self.reading = reading
        self.upserts = self.deletes = self.rows = 0

    def next(self) -> list[Row] | None:
        """Return the next rows that no younger read has returned; None at the end.

        May block as `Read.chunks` does.
        """
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
        """The ids that younger reads have returned."""
        return self._overtaken

    def judge(self) -> None:
        """Record that this read returned all rows of its ids at once."""
        self.judges = True

    def pass_over(self, doubtful: Collection[str]) -> None:
        """Skip these ids, because a short read by id determines whether they still have several rows."""
        self.doubtful = doubtful
        self.read.pass_over(doubtful)

    def came_again(self, ids: Collection[str]) -> None:
        """Record that these ids were in more than one chunk, and skip them from now on."""
        self.read.pass_over(ids)
        self._left_out = self._left_out or bool(ids)

    def overtake(self, rows: Iterable[Row]) -> None:
        """Skip these ids from now on, because a younger read has returned them."""
        self._overtaken.update(row[0] for row in rows)

    def applied(self, batch: Batch) -> None:
        """Count the changes that a batch of its rows has caused."""
        self.upserts += batch.upserts
        self.deletes += batch.deletes

    def missing(self, store: Store) -> list[Row]:
        """Return deletes for the endpoints that a read of the whole mapping did not return. Call it after all
        rows of the read have been applied.
        """
        if not self._overtaken and not self._left_out and not self.doubtful and self.rows == len(store):
            return []  # there are as many rows as live endpoints, so none is missing
        return [
            (endpoint_id, None)
            for endpoint_id in store.not_read(self.reading)
            if endpoint_id not in self._overtaken and endpoint_id not in self.doubtful
        ]

    def seen(self, revision: Revision) -> BatchSeen:
        """Describe this read for the observer. Call it right after the read was published as ``revision``."""
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
