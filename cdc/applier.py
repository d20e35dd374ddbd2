"""The applier: the loop that takes events from the slot's reader, re-queries endpoints, and confirms the
slot.

It decides the mode (streaming or polling), adopts the timeline of the slot's server, and decides how far the
slot may be confirmed. `Requery` decides which endpoints to read, and whether a read is recent enough.
"""

from __future__ import annotations

import threading
import time
from itertools import chain
from typing import TYPE_CHECKING

from cdc.errors import ConfigurationError, PadsCdcError, Refusal, SourceError
from cdc.failpoints import reach
from cdc.fault import Fault
from cdc.lsn import Lsn
from cdc.postgres.errors import is_shutdown
from cdc.postgres.gate import Gate
from cdc.postgres.timeline import Timeline
from cdc.replication.assembler import Transaction
from cdc.replication.backlog import Idle, PeerNews, Started, StreamEnded
from cdc.replication.schema_watch import SchemaWatch
from cdc.requery.task import Task, merged
from cdc.requery.throttle import Throttle
from cdc.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cdc.freshness import Freshness
    from cdc.mapping.parents import Parents
    from cdc.observer import Mode, Observer
    from cdc.pair.standby_role import StandbyRole
    from cdc.postgres.database import Database
    from cdc.replication.backlog import Backlog, Event
    from cdc.replication.catalog import Catalog
    from cdc.replication.slot import SlotReader
    from cdc.requery.auditor import Auditor
    from cdc.requery.requery import Requery
    from cdc.state.forgetting import Forgetting
    from cdc.state.ledger import Ledger
    from cdc.state.origin import CurrentOrigin
    from cdc.store.store import Store
    from cdc.units import Xid8

_IDLE = 0.5
"""Maximum sleep of the loop, in seconds. After each sleep the loop does its upkeep."""
_GRACE = 1.0
"""Seconds without a stream after which polling begins. A reconnect usually takes less."""
_POLL = 2.0
"""Seconds between two polls of the mapping while there is no stream. Polls take at most a quarter of the
time.
"""
_BEHIND = 20.0
"""Seconds for which the stream may be behind the database and deliver nothing. Then polling begins, because
the server may need minutes to decode a large transaction of other tables.
"""
_OWED = "owed"
_DECODING = "decoding"
_FAULT = "fault"
_UNPUBLISHED = "unpublished"


class Applier(threading.Thread):
    """A thread that runs until `stop`. If it ends by itself, `failure` is the error."""

    def __init__(
        self,
        *,
        backlog: Backlog,
        reader: SlotReader,
        requery: Requery,
        auditor: Auditor,
        database: Database,
        catalog: Catalog,
        parents: Parents,
        store: Store,
        ledger: Ledger,
        origin: CurrentOrigin,
        freshness: Freshness,
        observer: Observer,
        standby_role: StandbyRole,
        forgetting: Forgetting,
        max_retained_wal: int,
        on_failure: Callable[[], object],
    ) -> None:
        """``max_retained_wal`` is in bytes.

        If an error that a retry cannot cure ends this thread, the thread calls ``on_failure``.
        """
        super().__init__(name="applier", daemon=True)
        self._backlog = backlog
        self._reader = reader
        self._requery = requery
        self._auditor = auditor
        self._database = database
        self._schema = SchemaWatch(catalog, database)
        self._parents = parents
        self._store = store
        self._ledger = ledger
        self._origin = origin
        self._freshness = freshness
        self._observer = observer
        self._standby_role = standby_role
        self._forgetting = forgetting
        self._max_retained_wal = max_retained_wal
        self._on_failure = on_failure
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._tending = False
        """Whether upkeep is left, so that the loop must not sleep."""
        self._fault = Fault(observer, "follower")  # the key that operators know, from /healthz
        self._throttle = Throttle()
        self._session = Session()
        self._mode: Mode | None = None
        self._poll_at = 0.0

    def stop(self) -> None:
        """Ask the thread to end. A running read is cancelled, and its transactions stay unconfirmed."""
        self._stopping.set()
        self._backlog.wake()
        self._database.connections.give_way(0.0)

    def read_so_far(self) -> tuple[Timeline, Lsn]:
        """Return the timeline that the map follows, and the newest position in it that any read has seen.

        Any thread may call this, even before this thread runs: the state file contains both values.
        """
        kept = self._ledger.kept
        return self._known, max(kept.position, kept.seen, self._store.position, self._store.seen)

    @property
    def _known(self) -> Timeline:
        kept = self._ledger.kept
        return self._requery.history or Timeline(kept.system, kept.timeline)

    def run(self) -> None:
        """Follow the slot until `stop`."""
        try:
            self._restore()
            while not self._stopping.is_set():
                try:
                    self._step()
                except PadsCdcError:
                    raise  # `_step` has handled the errors that a retry can cure
                except Exception as error:
                    if not self._session.streamed:
                        raise
                    self._begin_anew(error)
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: the server must hear of it
            self.failure = error
            self._on_failure()
        finally:
            self._requery.abandon()
            self._database.close()
            self._ledger.close()

    def _begin_anew(self, error: Exception) -> None:
        """Start the stream again from the confirmed position, after an unexpected exception in our own code.

        The map is still served.
        """
        self._fault.met(error)
        self._session.lose()  # nothing is confirmed until the stream begins again
        self._requery.owe(_FAULT)
        self._reader.drop(_FAULT)
        self._stopping.wait(_POLL)

    def _restore(self) -> None:
        self._requery.restore(self._ledger.restore(self._store))  # a standby that is behind does not count
        self._session.owe(self._ledger.kept.owed)
        self._set_mode("waiting")

    def _step(self) -> None:
        """Take the events that have arrived, then do one step of every open task."""
        self._throttle.rest(self._stopping.wait)
        patience = 0.0 if self._tending else self._auditor.patience(self._requery.patience(_IDLE))
        events = self._backlog.take(patience, full=self._requery.full)
        transactions = [event for event in events if isinstance(event, Transaction)]
        if transactions:
            self._take(transactions)
        for event in events:
            self._hear(event)
        try:
            self._parents.tell()
            self._poll()
            with self._throttle.timed(self._requery):
                self._requery.step()
            self._settle()
            if self._session.streaming:
                self._watch_the_schema()
            self._forgetting.step(leading=self._session.streaming)
            self._auditor.step(may_start=self._session.streaming and self._store.ready)
        except PadsCdcError as error:
            self._read_failed(error)
        self._tending = False
        if not self._requery.busy and not len(self._backlog):
            self._tending = self._ledger.tend(self._store) | self._store.tend()
        elif self._ledger.overgrown(self._store):
            self._ledger.tend(self._store)

    def _watch_the_schema(self) -> None:
        if self._schema.changed(self._reader.next_xid):
            self._reader.drop("schema")
        missed = self._schema.missed()
        if missed is not None:
            self._observer.trouble(_UNPUBLISHED, None)
            self._requery.add(Task.reconcile(_UNPUBLISHED, missed, self._requery.reached))

    def _suspect(self, suspects: Xid8) -> None:
        """Arrange for everything to be read once more when all transactions below the id ``suspects`` have
        ended.

        They began before the publication was changed, so the stream may leave out some of their rows.
        """
        self._schema.begin(suspects)
        text = (
            "transactions that began before the publication was last changed may still run, and the stream"
            " may lack their changes: everything is read again once they have ended"
        )
        self._observer.trouble(_UNPUBLISHED, text if suspects else None)

    # --- events from the slot's reader and from the peer

    def _take(self, transactions: Sequence[Transaction]) -> None:
        since = self._requery.reached
        # If a message outside of transactions cannot be decoded, it arrives as a transaction without an end.
        transactions = [one for one in transactions if one.end > self._session.held or not one.end]
        early: list[Task] = []
        for transaction in transactions:
            named = self._parents.resolve(transaction.affected, transaction.end)
            if named is not None and len(named):  # these do not wait for the reconcile
                gate = Gate(frozenset({transaction.xid}), transaction.end)
                early.append(Task(named, gate, since, transaction.end))
            self._schema.note(transaction)
            self._requery.advance(transaction.end)
        if early:
            self._requery.add(merged(early))
        touching = [one for one in transactions if one.affected.reconcile or len(one.affected)]
        if touching:
            self._requery.take(touching, since)

    def _hear(self, event: Event) -> None:
        match event:
            case Started():
                self._begin_stream(event)
            case Idle():
                self._requery.advance(event.lsn)
                self._schema.note_progress(event.lsn)
            case StreamEnded():
                self._end_stream(event)
            case PeerNews():
                if self._standby_role.hear(event):
                    self._set_mode("waiting")
            case Transaction():
                pass  # `_take` has already taken the transactions

    def _begin_stream(self, started: Started) -> None:
        """Start again at the confirmed position. One reconcile replaces all open tasks."""
        self._session.owe(self._standby_role.inherit(self._session.owed))
        self._requery.abandon()
        self._database.forget_types()
        self._adopt(started.history)
        memory = self._standby_role.take_over(started, chain(*self._database.mapping.rules.values()))
        if memory is not None:  # the map is a copy of the peer's: compare it with the database soon
            self._auditor.hurry()
        elif started.found and self._ledger.kept.fresh and not self._session.streamed:
            self._observer.state_file_error(
                "the slot has been read before, and there is no state file: clients of the legacy contract"
                " that missed deletes must be restarted; keep STATE_FILE on a disk that outlives the process"
            )
        # At the start and with a new slot, there may be transactions that were never delivered.
        gap = started.created is not None or started.confirmed > self._requery.reached
        held = self._requery.reached if memory is not None else Lsn(0)
        # Without the peer's memory of parents, the reconcile loads that memory again.
        self._parents.load(memory or {}, held)
        if started.confirmed > self._requery.reached:  # true at the start, and with a new slot
            self._origin.gap(started.confirmed)
        self._requery.restart_at(max(started.confirmed, held))
        gate = Gate(end=max(started.confirmed, self._requery.read_up_to))
        reason = self._session.reason
        if started.created is not None:
            reason = "slot_created"
            self._ledger.bootstrap(started.created)
        # This also holds if the process that created the slot ended before it had loaded the map.
        if (bootstrap := self._ledger.kept.bootstrap) is not None:
            gate |= Gate(snapshot=bootstrap)
        if self._session.owed is not None:
            gate, reason = gate | self._session.owed, _OWED
        if memory is None:
            self._requery.add(Task.reconcile(reason, gate, started.confirmed))
        self._suspect(started.suspects)
        self._session.begin(started.session, gap=gap, held=held)
        self._fault.over()
        self._set_mode("streaming")

    def _adopt(self, history: Timeline) -> None:
        """Follow this history from now on. If it does not continue the previous one, start a new epoch."""
        known, store = self._known, self._store
        switch = history.left_at(known)
        if not history.continues(known, store.position, store.seen):
            self._break_with_the_past(history)
        elif switch is None or history.promoted_from(known):
            store.follow_timeline(history)
        else:  # the old timeline was followed beyond the switch point, but nothing was read there
            store.follow_timeline(history, switch)
            self._freshness.rewound()
            self._requery.restart_at(min(self._requery.reached, switch))
        if switch is not None:
            self._origin.timeline_changed()
            self._database.close()  # with several hosts, another one may be the right one now
        self._requery.follow(history)
        self._ledger.follow(history)

    def _break_with_the_past(self, history: Timeline) -> None:
        """Start a new epoch: positions and tokens of the old history are meaningless in the new one."""
        self._requery.rewind()
        self._schema.rewind()
        self._freshness.rewound()
        self._store.rewind(history)
        self._requery.restart_at(Lsn(0))
        self._origin.broken()
        self._ledger.new_epoch(self._store)

    def _end_stream(self, lost: StreamEnded) -> None:
        if isinstance(lost.error, Refusal | ConfigurationError) and not self._session.streamed:
            raise lost.error
        reason = lost.error.reason if isinstance(lost.error, SourceError) else "refused"
        self._session.lose(reason)
        if not self._standby_role.lost(lost):
            self._observer.reconnecting(reason, str(lost.error))
        if is_shutdown(lost.error):
            self._database.close()
        known, history = self._requery.history, lost.history
        if self._session.streamed and history and known and history.left_at(known) is not None:
            self._requery.abandon()  # the server was promoted without its slot, but it can be polled
            self._session.miss()
            self._adopt(history)

    # --- confirming the slot

    def _settle(self) -> None:
        """Confirm the slot up to the position that the store and the state file have both reached."""
        requery = self._requery
        session = self._session
        if not requery.busy and session.streaming:
            self._pay()
        if session.streaming:
            if session.exact:
                self._freshness.applied(requery.done_up_to, lossy=requery.lossy)
            confirmable = self._standby_role.confirmable(
                requery.confirmable, exact=session.exact, owed=session.owed
            )
            self._reader.confirm(confirmable, session.number)
            self._let_go()
        self._standby_role.look()
        requery.mark_consistent()
        exact_at = requery.take_exact_at()
        if exact_at is not None:
            self._freshness.exact(exact_at)
            now = time.monotonic()
            self._poll_at = now + max(_POLL, 3 * (now - exact_at))
            self._auditor.postpone()
            session.exact_again()

    def _let_go(self) -> None:
        """Confirm the slot beyond the open tasks if it retains more than MAX_RETAINED_WAL, and note in the
        state file that a reconcile is owed for them. Otherwise the database's disk would fill up while the
        tasks cannot be done.

        The tasks stay open, since they may be about to succeed. If there is no room for more transactions,
        the WAL of those that wait in the slot counts as well.
        """
        requery, full = self._requery, self._requery.full
        end = max(requery.reached, self._freshness.positions().server_end) if full else requery.reached
        if not requery.busy or end - requery.confirmable <= self._max_retained_wal:
            return
        next_xid = self._reader.next_xid
        if next_xid is None:
            return  # the probe has not answered yet; without its answer nothing is confirmed
        gate = requery.open_gate(next_xid)
        gate = gate if self._session.owed is None else gate | self._session.owed
        if not self._ledger.note(owed=gate.note()):
            return  # without a durable note the slot must not be confirmed
        reach("noted")
        self._session.owe(gate)
        requery.let_go()
        if full:
            requery.condense(_OWED)
        self._observer.trouble(
            _OWED,
            "the slot retained more than MAX_RETAINED_WAL, so it was confirmed beyond changes that are not in"
            " the map yet: a reconcile is owed",
        )

    def _pay(self) -> None:
        """Record that no task is open, so the gap is filled and the owed reconcile is done."""
        if self._session.owed is not None:
            self._ledger.note(owed="")
            self._observer.trouble(_OWED, None)
        self._ledger.bootstrap(None)
        self._session.settled()

    def _read_failed(self, error: PadsCdcError) -> None:
        if self._stopping.is_set():
            return
        if is_shutdown(error):
            self._reader.drop("shutdown")
            self._database.close()
        elif isinstance(error, SourceError) and error.reason == "other_timeline":
            self._reader.drop("timeline")  # reconnecting shows whether the slot's server was promoted
        if self._session.streaming:
            self._let_go()
        else:
            self._set_mode("waiting")

    def _poll(self) -> None:
        """Read the whole mapping every few seconds while there is no stream, or while it is far behind or
        lacks changes of a table.
        """
        streaming, behind = self._session.streaming, self._freshness.stream_behind() >= _BEHIND
        if streaming and not behind and not self._requery.lossy:
            self._set_mode("streaming")
            return
        busy = (
            self._requery.reconciling
            if streaming and not behind
            else self._requery.busy or len(self._backlog)
        )
        if busy or self._standby_role.waiting:
            return
        if time.monotonic() < max(self._poll_at, self._session.lost_at + _GRACE):
            return
        self._set_mode("polling")
        if streaming and behind:
            self._observer.trouble(
                _DECODING,
                f"the stream is more than {_BEHIND:.0f} s behind and delivers nothing: the server is decoding"
                " changes of other tables; the mapping is polled until the stream has caught up",
            )
        else:
            self._observer.trouble(_DECODING, None)
            if not streaming:
                self._standby_role.part_ways()
        gate = Gate(end=self._requery.read_up_to)
        self._requery.add(Task.reconcile("polling", gate, self._requery.reached))

    def _set_mode(self, mode: Mode) -> None:
        if mode != self._mode:
            self._mode = mode
            self._observer.mode(mode)
            if mode != "polling":  # it is unknown whether a new stream is behind
                self._observer.trouble(_DECODING, None)
