"""Re-queries: keeps the tasks that still have to be read, reads them, and applies their rows to the store.

A task waits until its gate is open. Then it is read, and its rows are applied chunk by chunk. Several reads
can be open at once, so that a revocation does not wait for a ripple. Three rules keep the map exact:

- Reads are ordered by the time at which they began. An older read must not change an endpoint that a younger
  read has returned.
- A read of the whole mapping replaces all older reads, which end when it begins.
- If a read fails, its task continues to wait. A task is done only when all of its rows have been applied.
"""

from __future__ import annotations

import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from cdc.errors import PadsCdcError, SourceError
from cdc.failpoints import reach
from cdc.lsn import Lsn
from cdc.mapping.affected import LARGE
from cdc.mapping.key_types import is_exact, query_of
from cdc.mapping.row_rule import TWICE
from cdc.observer import ReconcileSeen
from cdc.postgres.errors import ABOUT_A_ROW
from cdc.postgres.gate import Gate
from cdc.postgres.timeline import Timeline
from cdc.requery.attempts import Attempts
from cdc.requery.consistency import Consistency
from cdc.requery.odd_rows import OddRows
from cdc.requery.parents_read import ParentsRead
from cdc.requery.read_positions import ReadPositions
from cdc.requery.table_troubles import TableTroubles
from cdc.requery.task import OpenRead, Task, merged
from cdc.state.origin import Reread
from cdc.store.express import FEW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cdc.mapping.affected import Affected
    from cdc.mapping.parents import Parents
    from cdc.mapping.row_rule import Oddity
    from cdc.observer import Observer
    from cdc.postgres.database import Database, ParentRows
    from cdc.postgres.gate import Evidence
    from cdc.postgres.read import Read, Row
    from cdc.replication.assembler import Transaction
    from cdc.replication.catalog import Catalog
    from cdc.requery.audit import Audit
    from cdc.state.ledger import Ledger
    from cdc.state.origin import CurrentOrigin
    from cdc.store.store import Batch, Store
    from cdc.units import Xid8

_MANY = 64
"""Maximum number of waiting tasks that are kept apart. If there are more, they are merged, since each task
costs time at every check.
"""
_ABREAST = 3
"""Maximum number of long reads that are open at once. Each uses a connection."""
_GIVE_WAY = 0.002
"""Seconds that a ripple pauses after a small change has overtaken it. Without the pause, the threads that
send the small change would wait for the interpreter's lock several times.
"""
_FLUSHED_AGAIN = 2.0
"""Seconds until the position up to which WAL is flushed is queried again, if the query failed."""
_ROOM = 64 * 2**20
"""If the open tasks take more than this number of bytes, no more transactions are taken, and they wait in the
WAL. This is more than one transaction can use, so that the transactions after a large one do not wait for its
read.
"""
_CHUNK = 5_000
"""Maximum number of deletes that are published in one batch."""
_KEY_SHAPE = "key_shape"


class Requery:
    """The open tasks and their reads. Owned by the applier's thread."""

    def __init__(
        self,
        *,
        database: Database,
        catalog: Catalog,
        parents: Parents,
        store: Store,
        ledger: Ledger,
        origin: CurrentOrigin,
        observer: Observer,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._parents = parents
        self._parents_read = ParentsRead(database, parents)
        self._store = store
        self._ledger = ledger
        self._origin = origin
        self._observer = observer
        self._attempts = Attempts(observer)
        self._table_troubles = TableTroubles(observer)
        self._positions = ReadPositions(ledger)
        self.odd_rows = OddRows(observer)
        self._waiting: list[Task] = []
        self._reads: list[OpenRead] = []
        self._audit: Audit | None = None
        self._consistency = Consistency(self._are_ids)
        self._reached: Lsn = Lsn(0)
        self._let_go_to: Lsn = Lsn(0)
        """The slot may be confirmed up to here, beyond open tasks, because the state file says that a
        reconcile is owed for them.
        """
        self._exact_at: float | None = None
        self._flushed_by = inf
        """Monotonic time by which a primary has flushed everything that it has shown to the reads."""

    # --- progress

    @property
    def reached(self) -> Lsn:
        """End of the last transaction that was taken from the backlog."""
        return self._reached

    @property
    def read_up_to(self) -> Lsn:
        """The newest position that any read saw.

        A standby that has replayed less WAL may return older states.
        """
        return self._positions.read_up_to

    @property
    def history(self) -> Timeline | None:
        """The timeline of the slot's server; None while unknown. Reads from other timelines are not used."""
        return self._positions.history

    def advance(self, to: Lsn) -> None:
        """Record that every transaction up to ``to`` has been taken from the backlog."""
        self._reached = max(self._reached, to)

    def restart_at(self, position: Lsn) -> None:
        """Record that transactions will be delivered from ``position`` on, even if it is before `reached`."""
        self._reached = position

    def follow(self, history: Timeline | None) -> None:
        """Use only reads from this timeline; with None, use reads from any timeline."""
        self._positions.follow(history)

    def restore(self, seen: Lsn) -> None:
        """Start with the map of the state file. Nothing in it is newer than ``seen``."""
        self._positions.restore(seen)

    def take_exact_at(self) -> float | None:
        """Return the monotonic time at which the newest finished read of the whole mapping began, and forget
        it. Returns None if there has been no such read since the last call.
        """
        at, self._exact_at = self._exact_at, None
        return at

    # --- tasks

    def take(self, transactions: Sequence[Transaction], since: Lsn) -> None:
        """Add tasks for transactions, which are in the order of their commits and follow ``since``.

        The transactions that name few endpoints by id become a separate task. It waits neither until the
        other transactions become visible, nor for the rows of a ripple.
        """
        urgent: list[Transaction] = []
        others: list[Transaction] = []
        for transaction in transactions:
            (urgent if self._is_short(transaction.affected) else others).append(transaction)
        for some in (urgent, others):
            if some:
                self.add(Task.of(some, since))

    def add(self, task: Task) -> None:
        """Add a task. It is tried at the next step, or at the next attempt if the database is away."""
        task = task.within(len(self._store))
        self._waiting += task.apart(self._database.mapping.endpoint_keys, self._database.at_once)
        self._positions.delivered(task.gate)
        self._attempts.added()
        self._make_room()

    @property
    def busy(self) -> bool:
        """Whether any task is open, so that the map is not known to be exact."""
        return bool(self._waiting or self._reads)

    @property
    def reconciling(self) -> bool:
        """Whether a read of the whole mapping is running or waiting."""
        return any(task.reason is not None for task in self._open_tasks())

    @property
    def full(self) -> bool:
        """Whether the open tasks take so much memory that no more transactions should be taken."""
        return sum(task.size for task in self._open_tasks()) >= _ROOM

    @property
    def blind(self) -> bool:
        """Whether all open tasks wait for transactions that no read can see yet."""
        waits = not self._waiting or (self._attempts.all_tried and not self._parents_read.waiting)
        return not self._reads and not self._attempts.failing and waits

    @property
    def consistent(self) -> bool:
        """Whether the database had exactly this map at some moment: no read is partly applied, and no read
        has shown a part of a later transaction.
        """
        return (
            self._store.ready and not self._reads and not self._consistency.shows(self.reached, self._waiting)
        )

    def mark_consistent(self) -> None:
        """If the map is consistent, mark the store as consistent."""
        if self.consistent and (not self._store.consistent or self._store.position < self.done_up_to):
            self._store.mark_consistent(self.done_up_to)

    @property
    def done_up_to(self) -> Lsn:
        """The position up to which the store and the state file include every transaction."""
        return min((task.since for task in self._open_tasks()), default=self.reached)

    @property
    def confirmable(self) -> Lsn:
        """The position up to which the slot may be confirmed.

        If it is beyond `done_up_to`, a reconcile is owed.
        """
        return max(self.done_up_to, self._let_go_to)

    def patience(self, idle: float) -> float:
        """Return the number of seconds until `step` has work again, or ``idle`` if it is unknown."""
        if any(not read.read.waiting for read in self._reads):
            return 0.0
        if any(map(self._may_begin, self._waiting)):
            return self._attempts.seconds_left
        if self._consistency.waits(self.reached):
            return min(idle, max(0.0, self._flushed_by - time.monotonic()))
        return idle

    def rewind(self, to: Lsn = Lsn(0)) -> None:
        """Record that nothing in the map is newer than ``to``. It is 0 if the positions so far belong to
        another history.
        """
        self._positions.rewind(to)
        self._consistency.mend()
        self._consistency.read(to)

    def owe(self, reason: str) -> None:
        """Replace all open tasks by one reconcile."""
        task = merged([*self._open_tasks(), Task.reconcile(reason, Gate(), self.reached)])
        self.abandon()
        task.affected.give_up(reason)
        task.transactions.clear()
        self._waiting = [task]

    def condense(self, reason: str) -> None:
        """Replace all waiting tasks by one reconcile, to free memory. Open reads continue, but their
        transactions are not reported.
        """
        if self._waiting:
            task = merged([*self._waiting, Task.reconcile(reason, Gate(), self.reached)])
            task.condense()
            self._waiting = [task]
        for read in self._reads:
            read.task.transactions.clear()

    def open_gate(self, next_xid: Xid8) -> Gate:
        """Return the gate that a read must pass to replace all open tasks. The gate stays valid after the
        slot has been confirmed beyond their transactions. ``next_xid`` is the server's next transaction id.
        """
        self._positions.settle(next_xid)
        gate = Gate()
        for task in self._open_tasks():
            gate |= task.lasting_gate(next_xid)
        return gate

    def let_go(self) -> None:
        """Allow the slot to be confirmed beyond the open tasks.

        The state file must contain a note that a reconcile is owed, since the process may end before the
        tasks are done.
        """
        self._let_go_to = self.reached

    def abandon(self) -> None:
        """Drop all open tasks, because the slot will deliver them again or the process ends."""
        self._reached, self._let_go_to = self.done_up_to, Lsn(0)
        self._close_reads()
        self._parents_read.abandon()
        self._waiting.clear()
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    @property
    def audit(self) -> Audit | None:
        """The running audit, which is given the ids that reads return; None if there is none."""
        return self._audit

    def begin_audit(self, audit: Audit) -> None:
        """From now on, pass the ids that reads return to this audit."""
        self._audit = audit

    def end_audit(self) -> None:
        """Record that the audit has ended."""
        self._audit = None

    def doubtful(self) -> frozenset[str]:
        """Return the ids that a read returned more than once. Only a short read by id may determine them."""
        return frozenset(self.odd_rows.doubtful if self._database.mapping.endpoint_keys else ())

    def settle_doubts(self, since: Lsn) -> None:
        """Add a task for the ids that other reads have skipped. These reads were for transactions after
        ``since``, which count as done only when this task is done.
        """
        kind, doubtful = self._database.mapping.endpoint_keys, self.doubtful()
        if kind and doubtful:
            self.add(Task.settling(kind, doubtful, since))

    # --- reading

    def step(self) -> None:
        """Do one step of each open read, and begin the reads that may begin.

        Blocks for one round trip for each read that begins, and does not wait for further rows. Call `step`
        again after `patience`, or when the database calls `wake` because rows have arrived.

        Raises:
            SourceError, Refusal: a read failed. Its task waits for the next attempt.

        """
        self.mark_consistent()  # newly taken transactions may show that the map is consistent
        self.odd_rows.report()
        reads = tuple(self._reads)  # a read that begins in this step is stepped by `_begin`
        try:
            self._look_at_flushed()
            if self._waiting and self._attempts.due:
                self._look()
            for read in reads:
                if read in self._reads and not read.read.waiting:
                    self._step(read)
        except PadsCdcError as error:
            self._attempts.failed(error)
            self._make_room()
            raise

    def _make_room(self) -> None:
        """While every read is refused until the slot has delivered more, replace the waiting tasks by one
        reconcile once they fill the memory. Otherwise no more would be taken from the slot, and no read would
        be used.
        """
        if self._attempts.undelivered and self.full:
            self.condense(LARGE)

    def _look(self) -> None:
        """Begin to read the tasks whose gate is open, with one short read by endpoint ids and one read for
        the other tasks.
        """
        ready = [task for task in self._waiting if self._may_begin(task)]
        if not ready:
            if len(self._waiting) > _MANY:  # they all wait for long reads, or for the memory of parents
                self._waiting = [*map(merged, self._apart(self._waiting))]
            return
        if len(self._waiting) > 1 or ready[0].reason is not None:
            # Usually there is only one task, and it has keys. It skips this check: it is read at once, and
            # its gate is checked afterwards.
            opened = self._open_gates(self._database.evidence())
            ready = [task for task in ready if task in opened]
        shut = [task for task in self._waiting if task not in ready]
        if len(shut) > _MANY:  # a task with an open gate is not merged with them, since it would have to wait
            self._waiting = [*ready, *(merged(tasks) for tasks in self._apart(shut))]
        began = False
        for tasks in self._apart(ready):
            self._waiting = [task for task in self._waiting if task not in tasks]
            began = self._begin(merged(tasks)) or began
        if began:
            self._attempts.began()
        else:
            self._attempts.shut()

    def _apart(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Return a list of the tasks for one short read, and a list of all others.

        Empty lists are left out.
        """
        urgent: list[Task] = []
        others: list[Task] = []
        room = self._database.at_once
        for task in tasks:
            if self._is_short(task.affected) and len(task.affected) < room:
                urgent.append(task)
                room -= len(task.affected)
            else:
                others.append(task)
        return [some for some in (urgent, others) if some]

    def _may_begin(self, task: Task) -> bool:
        """Return whether a read for this task may begin. Only long reads count towards the limit."""
        if task.reason is not None and self._parents_read.running:
            return False
        return self._is_short(task.affected) or len(self._reads) < _ABREAST

    def _is_short(self, affected: Affected) -> bool:
        return self._is_by_id(affected) and len(affected) < self._database.at_once

    def _is_by_id(self, affected: Affected) -> bool:
        queries = {query_of(kind) for kind in affected.keys}
        return affected.reconcile is None and queries <= {self._database.mapping.endpoint_keys}

    def _are_ids(self, kind: str) -> bool:
        """Return whether the keys of a kind are endpoint ids, and equal only if they are spelled alike."""
        exact = is_exact(kind) and self._database.types.id_type.exact
        return exact and query_of(kind) == self._database.mapping.endpoint_keys

    def _open_gates(self, evidence: Evidence) -> list[Task]:
        """Return the tasks whose gate is open. A second reconcile waits until the first one has ended."""
        try:
            self._positions.check_evidence(evidence, self.reached)
        except PadsCdcError:
            self._database.close()  # with several hosts, another host may be the right one
            raise
        reconciling = any(read.task.reason for read in self._reads)
        opened = [
            task for task in self._waiting if task.gate.opens(evidence) and not (reconciling and task.reason)
        ]
        if not opened:  # else the reads decide: the evidence needs no locks, and they do
            self._attempts.recovered()
        return opened

    def _begin(self, task: Task) -> bool:
        """Begin to read a task. Return False if it waits, because its gate was closed or because the memory
        of parents must be read first. On return a short read is done; other reads still have to receive their
        rows.
        """
        began = time.monotonic()
        self._waiting.append(task)
        if task.reason is not None and not self._have_parents():
            return False
        keys = None if task.reason is not None else task.affected.keys
        try:
            # The rows of a read that may take long are not awaited here, so that other reads can continue.
            read = self.checked(self._database.read(keys, at_once=self._is_short(task.affected)))
        except SourceError as error:
            if error.reason != ABOUT_A_ROW or task.reason is not None:
                raise
            # The type of a key does not accept its value, for example from a signal table: read everything.
            self._observer.decode_error(_KEY_SHAPE, f"the endpoints of some keys cannot be queried: {error}")
            task.affected.give_up(_KEY_SHAPE)
            return False
        self._attempts.recovered()
        if not task.gate.opens(read.evidence):
            read.close()
            return False
        self._waiting.remove(task)
        self._positions.read(read.evidence)
        if task.reason is not None and self._reads:
            # This read replaces the older ones: it determines every endpoint, even those that it does not
            # return.
            task = merged([task, *(older.task for older in self._reads)])
            self._close_reads()
        reach("read")
        in_parts = task.reason is not None or not read.complete
        opened = OpenRead(task, read, began, self._store.begin_reading() if in_parts else 0)
        if task.settles or (not in_parts and self._is_by_id(task.affected)):
            opened.judge()
        else:
            opened.pass_over(self.doubtful())
        self._reads.append(opened)
        if task.reason is None and not self._is_by_id(task.affected):
            # A read by a plan's key may have missed endpoints that have left the plan, and their ids are
            # unknown. So consistency is unknown until the slot has passed the read.
            self._show(read.evidence)
        if not read.waiting:
            self._step(opened)
        return True

    def _step(self, read: OpenRead) -> None:
        """Apply the next chunk of a read, and finish it with the last one."""
        try:
            rows = read.next()
            while rows is not None and read.read.complete:
                self._apply(read, rows, read.read.odd)
                rows = read.next()
        except PadsCdcError:
            self._reads.remove(read)
            self._waiting.append(read.task)
            raise
        if rows is None:
            self._finish(read)
        else:
            self._apply(read, rows, read.read.odd)

    def _apply(self, read: OpenRead, rows: list[Row], odd: Mapping[str, Oddity | None]) -> None:
        task, evidence = read.task, read.read.evidence
        named, by_id = task.reason is None, self._is_by_id(task.affected)
        # On a primary this is `flushed` and not the end of WAL. The last WAL may stay unflushed for minutes
        # if no other transaction commits, and the slot delivers only flushed WAL. If tokens contained the end
        # of WAL, their clients would be refused until then.
        seen = evidence.flushed if evidence.replayed is None else evidence.shown
        # The entries' positions bound everything that the rows may show. With lower ones, a client that comes
        # from another server and lacks the newest commit would never be sent what this commit has changed.
        batch = self._store.prepare(
            rows,
            task.end if named else evidence.shown,
            named=named,
            asked=task.affected.asked,
            seen=evidence.shown,
            reading=read.reading,
        )
        read.applied(batch)
        self._note_odd(read, rows, dict(odd), batch)
        for older in self._reads[: self._reads.index(read)]:
            older.overtake(rows)
        if self._audit is not None:
            self._audit.overtake(rows)
        spelled = by_id and all(map(self._are_ids, task.affected.keys))
        self._show(evidence, (row[0] for row in rows) if spelled else None)
        last = named and read.read.complete and self._reads == [read] and not self._waiting
        last = last and not read.read.passed and not self._consistency.shows(self.reached, ())
        position = self.reached if last else Lsn(0)
        reach("prepared")
        # The file has a standby's replay position itself. A new process waits for it, and would wait for the
        # byte beyond it as long as replay stands still.
        self._ledger.append(batch, position=position or self._store.position, seen=evidence.flushed)
        reach("written")
        express = by_id and read.read.complete and len(rows) <= FEW
        self._store.publish(batch, consistent=last, position=position, seen=seen, express=express)
        if express and len(self._reads) > 1:
            time.sleep(_GIVE_WAY)
        reach("published")

    def _show(self, evidence: Evidence, ids: Iterable[str] | None = None) -> None:
        """Record the ids that a read returned, and the newest position that its server may have shown."""
        self._consistency.read(evidence.shown, ids)
        if evidence.replayed is None and evidence.shown > evidence.flushed:
            self._flushed_by = time.monotonic() + evidence.flushed_within

    def _look_at_flushed(self) -> None:
        """If the slot does not pass the newest read in time, query the position up to which WAL is flushed.

        The end of WAL that was noted with the newest read may include records of running transactions. They
        may stay unflushed for minutes, and no read shows them. All commits that a read has shown are flushed
        by now, so no read has shown anything beyond the flushed end.
        """
        now = time.monotonic()
        if now < self._flushed_by:
            return
        if self._consistency.waits(self.reached):
            self._flushed_by = now + _FLUSHED_AGAIN
            evidence = self._database.evidence()
            self._positions.check_evidence(evidence, self.reached)
            if not self._waiting:
                self._attempts.recovered()
            if evidence.replayed is None:
                self._consistency.flushed(evidence.flushed)
        self._flushed_by = inf

    def _note_odd(self, read: OpenRead, rows: list[Row], odd: dict[str, Oddity | None], batch: Batch) -> None:
        """Record the odd rows, and the ids that the read has returned more than once."""
        odd_rows, reading = self.odd_rows, read.reading or self._store.reading
        odd.update(dict.fromkeys(batch.twice, TWICE))
        odd_rows.take(rows, odd, reading, overtaken=read.overtaken, whole=read.task.reason is not None)
        if read.judges:
            odd_rows.judge(rows, read.read.again)
        odd_rows.doubt((*read.read.again, *batch.again))
        read.came_again(batch.again)

    def _finish(self, read: OpenRead) -> None:
        task = read.task
        if task.reason is not None:
            gone = read.missing(self._store)
            for start in range(0, len(gone), _CHUNK):
                self._apply(read, gone[start : start + _CHUNK], {})
        self._reads.remove(read)
        self._consistency.done(task.end)
        if task.reason is not None:
            if not read.overtaken:
                self._consistency.mend()
            self._exact_at = read.began
            self.odd_rows.passed_over(read.doubtful, read.reading)
            self.odd_rows.end(read.reading)
            self._store.loaded()
            self._update_origin(read)
            seconds = time.monotonic() - read.began
            self._observer.reconciled(
                ReconcileSeen(task.reason, len(self._store), read.upserts, read.deletes, seconds)
            )
        if read.read.passed or (task.reason is not None and self.odd_rows.doubtful):
            self.settle_doubts(task.since)
        self.mark_consistent()
        if task.transactions:
            self._observer.batch(read.seen(self._store.head))

    def _have_parents(self) -> bool:
        """Return whether the memory of parents has just been loaded, or is not needed. Otherwise begin to
        read it.
        """
        if self._parents_read.running:
            return False
        if self._parents_read.finish():
            return True
        relations, all_rules = self._catalog.look(self._database), self._database.mapping.rules
        self._table_troubles.report_lossy(self._catalog.lossy(relations))
        self._table_troubles.report_refused(self._catalog.refusing(self._database, relations))
        rules = relations.nameless(all_rules)
        if not rules:
            self._parents.load({}, Lsn(0))
            return True
        gates = [task.gate for task in self._waiting]
        self._parents_read.begin(rules, gates, partial(self._use_parents, self.read_up_to))
        return False

    def _use_parents(self, read_up_to: Lsn, found: ParentRows) -> None:
        """Refuse rows that may show less than earlier reads. ``read_up_to`` is the value of
        `Requery.read_up_to` when the read of these rows began. The next read of the mapping must show at
        least what these rows show.

        Raises:
            SourceError: the rows must not be used.

        """
        try:
            self._positions.check_evidence(found.before, self.reached, read_up_to)
        except PadsCdcError:
            self._database.close()  # with several hosts, another host may be the right one
            raise
        self._positions.read(found.after)

    @property
    def lossy(self) -> bool:
        """Whether changes of some table never arrive."""
        return self._table_troubles.lossy

    def checked(self, read: Read, read_up_to: Lsn | None = None) -> Read:
        """Return the read if its rows may be used; otherwise discard it.

        ``read_up_to`` is the value of `Requery.read_up_to` when the read began; the default is the current
        value.

        Raises:
            SourceError: the read must not be used. Its connection is closed too, since with several hosts
            another host may be the right one.

        """
        try:
            self._positions.check_evidence(read.evidence, self.reached, read_up_to)
        except PadsCdcError:
            read.discard()
            raise
        return read

    def _update_origin(self, read: OpenRead) -> None:
        evidence = read.read.evidence
        covers = evidence.flushed if evidence.replayed is None else evidence.replayed
        if not self._store.history.system:  # no slot has been read yet, so only this read knows the system
            self._store.follow_timeline(Timeline(evidence.system))
        self._origin.reread(Reread(read.began, covers, evidence.timeline))
        self._origin.gap(read.task.end)

    def _open_tasks(self) -> list[Task]:
        return [*self._waiting, *(read.task for read in self._reads)]

    def _close_reads(self) -> None:
        for read in self._reads:
            read.read.close()
        self._reads.clear()
