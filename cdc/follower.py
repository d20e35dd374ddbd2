"""The follower: the one loop that knows both the I/O and the logic, with its collaborators given to it.

It takes transactions from the backlog, re-reads what they affect through the gate, and puts the difference
into the state file and then into the store. Whatever goes wrong with a read leaves its task waiting; nothing
is confirmed past a task that is not done, so nothing can be lost, only late.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from cdc.assembler import Transaction
from cdc.backlog import Idle, Lost, Started
from cdc.errors import PadsCdcError, Refusal, SourceError
from cdc.gate import Evidence, Gate
from cdc.observer import BatchSeen, ReconcileSeen
from cdc.postgres_errors import is_shutdown
from cdc.task import OpenRead, Task, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cdc.backlog import Backlog, Event
    from cdc.catalog import Catalog
    from cdc.database import Database, Row
    from cdc.freshness import Freshness
    from cdc.ledger import Ledger
    from cdc.lsn import Lsn
    from cdc.observer import Mode, Observer
    from cdc.parents import Parents
    from cdc.slot import SlotReader
    from cdc.store import Store

_IDLE = 0.5
"""Seconds that the loop sleeps when nothing comes, to look after what can wait."""
_GRACE = 1.0
"""Seconds without a stream after which polling begins: a reconnect is usually quicker."""
_POLL = 2.0
"""Seconds between polls of the mapping while there is no stream; at most a quarter of the time is spent on
them.
"""
_WAIT_FIRST, _WAIT_MOST = 0.0005, 0.02
"""Seconds between looks at a gate that is shut: a commit becomes visible within microseconds, or it hangs."""
_RETRY_FIRST, _RETRY_MOST = 0.05, 2.0
"""Seconds between attempts when the database does not answer."""
_MANY = 64
"""Waiting tasks that are kept apart; more are merged, since each costs a look."""
_ABREAST = 3
"""Long reads at a time; each holds a connection."""
_SHARE = 0.5
"""Share of all endpoints from which on naming them one by one costs more than reading everything."""
_SMALL = 10_000
"""Keys that are never worth a reconcile."""


class Follower(threading.Thread):
    """Runs until `stop`; `failure` says why if it ended by itself."""

    def __init__(
        self,
        *,
        backlog: Backlog,
        reader: SlotReader,
        database: Database,
        catalog: Catalog,
        parents: Parents,
        store: Store,
        ledger: Ledger,
        freshness: Freshness,
        observer: Observer,
        on_failure: Callable[[], None],
    ) -> None:
        """``on_failure`` is called from this thread when it ends because of an error that no retry mends."""
        super().__init__(name="follower", daemon=True)
        self._backlog = backlog
        self._reader = reader
        self._database = database
        self._catalog = catalog
        self._parents = parents
        self._store = store
        self._ledger = ledger
        self._freshness = freshness
        self._observer = observer
        self._on_failure = on_failure
        self.failure: BaseException | None = None
        self._stopping = threading.Event()

        self._waiting: list[Task] = []
        self._reads: list[OpenRead] = []
        self._reached: Lsn = 0
        self._session = 0
        self._system, self._timeline = "", 0
        self._failing = False
        self._streamed = False
        self._streaming = False
        self._lost_at = time.monotonic()
        self._lost_reason = "start"
        self._poll_at = 0.0
        self._look_at = 0.0
        self._pause = _WAIT_FIRST
        self._retry = _RETRY_FIRST
        self._mode: Mode | None = None
        self._schema_due = False
        self._read_up_to: Lsn = 0

    # --- for others
    # -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the thread to end; a read that runs is cancelled, and its transactions stay unconfirmed."""
        self._stopping.set()
        self._backlog.wake()
        self._database.cancel()

    # --- the thread
    # -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until `stop`."""
        try:
            self._restore()
            while not self._stopping.is_set():
                self._turn()
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: whoever waits is told
            self.failure = error
            self._on_failure()
        finally:
            self._abandon()
            self._database.close()
            self._ledger.close()

    def _restore(self) -> None:
        kept = self._ledger.kept
        self._store.restore(kept.entries, kept.head)
        kept.entries = []
        self._set_mode("waiting")

    def _turn(self) -> None:
        """Take what has come, then do one step of everything that is open."""
        events = self._backlog.take(self._patience())
        transactions = [event for event in events if isinstance(event, Transaction)]
        if transactions:
            self._take(transactions)
        for event in events:
            self._hear(event)
        now = time.monotonic()
        try:
            if self._waiting and now >= self._look_at:
                self._look()
            for read in tuple(self._reads):
                self._step(read)
            self._poll(now)
            self._watch_schema(now)
        except PadsCdcError as error:
            self._read_failed(error)
        if not self._waiting and not self._reads and not len(self._backlog):
            self._ledger.tend(self._store)

    def _patience(self) -> float:
        """Return how long the loop may sleep, in seconds."""
        if self._reads:
            return 0.0
        if self._waiting:
            return max(0.0, self._look_at - time.monotonic())
        return _IDLE

    # --- what comes
    # -----------------------------------------------------------------------------------------------

    def _take(self, transactions: Sequence[Transaction]) -> None:
        since = self._reached
        for transaction in transactions:
            self._parents.resolve(transaction.affected, transaction.end)
            self._reached = max(self._reached, transaction.end)
            self._schema_due = self._schema_due or not transaction.rows
        touching = [one for one in transactions if one.affected.reconcile or len(one.affected)]
        if touching:
            task = Task.of(touching, since)
            if len(task.affected) > max(_SMALL, _SHARE * len(self._store)):
                task.affected.give_up("large")
            self._waiting.append(task)
            if not self._failing:
                self._look_at = 0.0
        self._settle()

    def _hear(self, event: Event) -> None:
        match event:
            case Started():
                self._begin_stream(event)
            case Idle():
                self._reached = max(self._reached, event.lsn)
                self._settle()
            case Lost():
                self._end_stream(event)
            case Transaction():
                pass  # those come in runs, and are taken as one

    def _begin_stream(self, started: Started) -> None:
        """The stream comes again from what was confirmed: one reconcile answers for everything that was
        open.
        """
        self._abandon()
        self._session = started.session
        self._system, self._timeline = started.system, started.timeline
        self._reached = started.confirmed
        reason = "slot_created" if started.created is not None else self._lost_reason
        gate = Gate(end=max(started.confirmed, self._read_up_to), snapshot=started.created)
        self._waiting = [Task.reconcile(reason, gate, started.confirmed)]
        self._look_at = 0.0
        self._streaming = self._streamed = True
        self._set_mode("streaming")

    def _end_stream(self, lost: Lost) -> None:
        if isinstance(lost.error, Refusal) and not self._streamed:
            raise lost.error
        if self._streaming:
            self._lost_at = time.monotonic()
        self._streaming = False
        self._lost_reason = lost.error.reason if isinstance(lost.error, SourceError) else "refused"
        self._observer.reconnecting(self._lost_reason, str(lost.error))
        if is_shutdown(lost.error):
            self._database.close()

    # --- reading
    # --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Try the tasks that wait: read those whose gate is open, all in one statement where keys suffice."""
        if len(self._waiting) > _MANY:
            self._waiting = [merged(self._waiting)]
        if len(self._reads) >= _ABREAST:
            return
        ready = self._waiting
        if len(ready) > 1 or ready[0].reason is not None:
            # The usual case is one task with keys: it is read at once, and its gate looked at afterwards.
            ready = self._open(self._database.evidence())
        if ready:
            self._waiting = [task for task in self._waiting if task not in ready]
            if self._begin(merged(ready)):
                self._pause = _WAIT_FIRST
                return
        self._pause = min(self._pause * 1.5, _WAIT_MOST)
        self._look_at = time.monotonic() + self._pause

    def _open(self, evidence: Evidence) -> list[Task]:
        """Return the tasks whose gate is open; a second reconcile waits for the first one to end."""
        self._trust(evidence)
        reconciling = any(read.task.reason for read in self._reads)
        return [
            task for task in self._waiting if task.gate.opens(evidence) and not (reconciling and task.reason)
        ]

    def _begin(self, task: Task) -> bool:
        """Read for a task; False when the gate was shut for it, and it waits. Short reads are done on
        return.
        """
        began = time.monotonic()
        self._waiting.append(task)
        if task.reason is not None:
            self._load_parents()
            read = self._database.read()
        else:
            read = self._database.read(task.affected.keys)
        try:
            self._trust(read.evidence)
            if not task.gate.opens(read.evidence):
                read.close()
                return False
        except PadsCdcError:
            read.close()
            raise
        self._waiting.remove(task)
        self._read_up_to = max(self._read_up_to, read.evidence.seen)
        if self._failing:
            self._failing, self._retry = False, _RETRY_FIRST
            self._observer.trouble("query", None)
        opened = OpenRead(task, read, began)
        self._reads.append(opened)
        self._step(opened)
        return True

    def _trust(self, evidence: Evidence) -> None:
        """Refuse a server that is not the one whose slot we read, or that lags behind what was read
        already.
        """
        if self._system and evidence.system != self._system:
            raise SourceError("other_system", "the query server belongs to another cluster than the slot")
        if evidence.timeline is not None and self._timeline and evidence.timeline != self._timeline:
            self._reader.drop(
                "timeline"
            )  # if the slot's server was promoted, it will say so when asked again
            raise SourceError(
                "other_timeline", "the query server is a primary of another timeline than the slot's"
            )
        if evidence.replayed is not None and evidence.replayed < self._read_up_to:
            raise SourceError("query_server_behind", "the query server has not replayed what was read before")

    def _load_parents(self) -> None:
        rules = self._catalog.look(self._database).nameless(self._database.mapping.rules)
        rows = self._database.parents(rules)
        self._parents.load(rows, self._database.evidence().seen if rules else 0)

    def _step(self, read: OpenRead) -> None:
        """Apply the next chunk of a read, and finish it with the last one."""
        try:
            rows = read.next()
            while rows is not None and read.read.complete:
                self._apply(read, rows)
                rows = read.next()
        except PadsCdcError:
            self._reads.remove(read)
            self._waiting.append(read.task)
            raise
        if rows is None:
            self._finish(read)
        else:
            self._apply(read, rows)

    def _apply(self, read: OpenRead, rows: list[Row]) -> None:
        task, evidence = read.task, read.read.evidence
        named = task.reason is None
        batch = self._store.prepare(rows, task.end if named else evidence.seen, named=named)
        read.upserts += batch.upserts
        read.deletes += batch.deletes
        for other in self._reads:
            if other is read:
                break
            other.overtake(rows)
        last = read.read.complete and not task.reason and self._done_with(read)
        position = self._reached if last else 0
        self._ledger.append(batch, position=position or self._store.position, seen=evidence.seen)
        self._store.publish(batch, whole=last, position=position, seen=evidence.seen)

    def _done_with(self, read: OpenRead) -> bool:
        """Tell whether nothing else is open, so that the map is whole once this read is in."""
        return self._reads == [read] and not self._waiting

    def _finish(self, read: OpenRead) -> None:
        task = read.task
        if task.reason is not None:
            gone = read.missing(self._store.live_ids())
            for start in range(0, len(gone), 5_000):
                self._apply(read, gone[start : start + 5_000])
        self._reads.remove(read)
        if task.reason is not None:
            self._reconciled(read)
        if task.transactions:
            self._observer.batch(
                BatchSeen(
                    tuple(task.seen(read.rows)),
                    read.rows,
                    read.upserts,
                    read.deletes,
                    max(0, read.rows - read.upserts - read.deletes),
                    time.monotonic() - read.began,
                    max(0.0, read.began - task.asked_at),
                    self._store.head,
                )
            )
        self._settle(task.committed_at)

    def _reconciled(self, read: OpenRead) -> None:
        now = time.monotonic()
        self._freshness.exact(read.began)
        self._poll_at = now + max(_POLL, 3 * (now - read.began))
        self._observer.reconciled(
            ReconcileSeen(
                read.task.reason or "", len(self._store), read.upserts, read.deletes, now - read.began
            )
        )
        self._lost_reason = "reconnect"

    def _settle(self, committed_at: float = 0.0) -> None:
        """Work out up to where everything is in the store and in the state file, and let the slot go up to
        there.
        """
        open_tasks = [*self._waiting, *(read.task for read in self._reads)]
        position = min((task.since for task in open_tasks), default=self._reached)
        self._freshness.applied(position, committed_at)
        if self._streaming:
            self._reader.confirm(position, self._session)
        if not open_tasks:
            self._store.settle(position)

    # --- when things are not as they should be
    # ---------------------------------------------------------------------

    def _read_failed(self, error: PadsCdcError) -> None:
        if self._stopping.is_set():
            return
        if is_shutdown(error):
            self._reader.drop("shutdown")
            self._database.close()
        if not self._streaming:
            self._set_mode("waiting")
        self._failing = True
        self._observer.trouble("query", f"re-queries fail: {error}")
        self._retry = min(self._retry * 2, _RETRY_MOST)
        self._look_at = self._poll_at = time.monotonic() + self._retry

    def _poll(self, now: float) -> None:
        """Without a slot, read everything again and again: late is better than never."""
        if (
            self._streaming
            or self._waiting
            or self._reads
            or now < max(self._poll_at, self._lost_at + _GRACE)
        ):
            return
        self._set_mode("polling")
        self._waiting.append(Task.reconcile("polling", Gate(end=self._read_up_to), self._reached))
        self._look_at = 0.0

    def _watch_schema(self, now: float) -> None:
        """A transaction without rows may have been DDL, which the slot does not show (at most one look a
        second).
        """
        if not self._schema_due or not self._streaming or now < self._catalog.look_again_at:
            return
        self._schema_due = False
        if self._catalog.changed(self._database):
            self._reader.drop("schema")

    def _abandon(self) -> None:
        for read in self._reads:
            read.read.close()
        self._reads.clear()
        self._waiting.clear()

    def _set_mode(self, mode: Mode) -> None:
        if mode != self._mode:
            self._mode = mode
            self._observer.mode(mode)
