"""The thread that reads the logical replication slot.

It only decodes messages, reduces rows to keys, and puts transactions into the backlog, so that keepalives are
answered however long a re-query takes. The applier decides how far the slot is confirmed, and
`cdc.replication.feedback` sends the confirmation to the server.
"""

from __future__ import annotations

import selectors
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.errors import UndefinedObject
from psycopg2.extensions import quote_ident

from cdc import lsn
from cdc.errors import MessageError, PadsCdcError, SlotHeld, SourceError, fault_of_ours
from cdc.failpoints import reach
from cdc.lsn import Lsn
from cdc.postgres.connection import identify
from cdc.postgres.errors import translated
from cdc.postgres.slot_state import is_standby
from cdc.replication import synchronous_standby
from cdc.replication.backlog import Idle, Started, StreamEnded
from cdc.replication.feedback import ASK, Feedback
from cdc.replication.synchronous_standby import Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor, ReplicationMessage

    from cdc.freshness import Freshness
    from cdc.observer import Observer
    from cdc.postgres.timeline import Timeline
    from cdc.replication.backlog import Backlog
    from cdc.replication.own_slot import OwnSlot
    from cdc.replication.stream import SlotStream
    from cdc.units import Xid8

_TICK = 0.1
"""Seconds between confirmations."""
_LOOK = 0.01
"""Seconds between confirmations while messages follow each other without a pause."""
_SILENCE = 15.0
"""Seconds that a request for a keepalive may remain unanswered. A request is sent every 5 s."""
_EVIDENCE = 5.0
"""Seconds for which the wal sender counts as busy after it was last found to be busy."""
_LAST = 1.0
"""Maximum time that the thread's end waits until the last position may be confirmed, in seconds."""
_ASIDE = 1.0
"""Seconds between attempts to read while the server would take us for a synchronous standby."""
_PAUSE_FIRST, _PAUSE_MOST = 0.2, 5.0
"""Seconds between attempts to read the slot, after the first failure and at most."""
_NEVER = 1e9
_HELD = 10.0
"""Seconds after which a connection counts as a working one, so that the next attempt is made soon."""


class SlotReader(threading.Thread):
    """A thread that reads the slot until `stop`. When a connection ends, it reports the end and connects
    again.
    """

    def __init__(
        self,
        slot: OwnSlot,
        backlog: Backlog,
        freshness: Freshness,
        observer: Observer,
        read_so_far: Callable[[], tuple[Timeline, Lsn]],
    ) -> None:
        """``read_so_far`` returns the followed timeline, and the newest position in it that was read. A
        standby must have replayed WAL up to that position.
        """
        super().__init__(name="slot-reader", daemon=True)
        self._slot = slot
        self._stopping = slot.stopping
        self._backlog = backlog
        self._freshness = freshness
        self._observer = observer
        self._read_so_far = read_so_far
        self._dropping: SourceError | None = None
        self._connection: LogicalReplicationConnection | None = None
        self._pending: tuple[int, Lsn] = (0, Lsn(0))
        """The number of a connection, and the position up to which the applier wants the slot confirmed on
        it. They are one value, so that no other thread sees half of a change.
        """
        self._allowed: tuple[int, Lsn] = (0, Lsn(0))
        """The newest value of `_pending` that `judge` has allowed."""
        self._judged = threading.Event()
        self._session_number = 0
        """The number of the newest connection."""
        self.history: Timeline | None = None
        """The server's timeline, as of the newest connection."""
        self.sender: Sender | None = None
        """The server's description of the connection that is being read; None if there is none."""
        self.silence = 0.0
        """Seconds since `sender` was asked for a keepalive that it has not sent yet; 0.0 if there is none."""
        self._at_work_at = -_EVIDENCE
        self.next_xid: Xid8 | None = None
        """The server's next transaction id, by the probe's newest answer; None before that. It is forgotten
        with the connection, because the next one may be to another server.
        """

    @property
    def creating(self) -> bool:
        """Whether the slot is being created. Its creation waits until every running transaction has ended."""
        return self._slot.creating is not None

    # --- for the applier's thread

    def confirm(self, position: Lsn, session: int) -> None:
        """Confirm the slot up to ``position``, as soon as `judge` allows it.

        The position is ignored if the connection with the number ``session`` has ended, because the next
        connection may have another history.
        """
        spoken_of, pending = self._pending
        self._pending = session, max(position, pending) if session == spoken_of else position

    def drop(self, reason: str, message: str = "the connection was closed to start over") -> None:
        """Close the connection and connect again."""
        self._dropping = SourceError(reason, message)

    def stop(self) -> None:
        """End the thread. The last confirmation is sent, and the connection is closed."""
        self._stopping.set()
        if self.creating:
            threading.Thread(target=self._slot.give_up_creating, name="give-up", daemon=True).start()

    # --- for the probe's thread

    @property
    def to_judge(self) -> bool:
        """Whether a position waits for `judge`."""
        pending = self._pending
        return self.sender is not None and pending[0] == self._session_number and pending != self._allowed

    def judge(self, find: Callable[[], Sender]) -> None:
        """Stop reading if the server would now take us for a synchronous standby. Otherwise allow the
        confirmation of the position that was pending before the server was asked. ``find`` asks on another
        connection.
        """
        ours, pending = self.sender, self._pending
        found = find()
        if ours is None:
            return
        text = synchronous_standby.refusal(replace(found, application=ours.application))
        if text is not None:
            self.drop(synchronous_standby.REASON, text)
        else:
            self._allowed = pending
        self._judged.set()

    def note_next_xid(self, next_xid: Xid8) -> None:
        """Record the next transaction id of the server."""
        self.next_xid = next_xid

    def at_work(self) -> None:
        """Record that the wal sender is busy: it is decoding, and will answer afterwards."""
        self._at_work_at = time.monotonic()

    # --- the thread

    @property
    def _may_confirm(self) -> Lsn:
        session, position = self._allowed
        return position if session == self._session_number else Lsn(0)

    def run(self) -> None:
        """Follow the slot until `stop`. When a connection fails, put a `StreamEnded` into the backlog."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._session()
            except Exception as fault:  # noqa: BLE001 - the thread's boundary: it must not end silently
                error = fault if isinstance(fault, PadsCdcError) else fault_of_ours(fault)
                self._backlog.tell(StreamEnded(error, self.history))
                # The pause grows with each failure, but not after a stream that worked or while the peer
                # reads.
                steady = time.monotonic() - started > _HELD or isinstance(error, SlotHeld)
                failures = 0 if steady else failures + 1
                pause = min(_PAUSE_MOST, _PAUSE_FIRST * 2 ** min(failures, 5))
                self._stopping.wait(_ASIDE if _stands_aside(error) else pause)

    def _session(self) -> None:
        self._dropping = None
        connection = self._slot.address.connect_replication()
        self._connection = connection
        try:
            with translated(self._slot.address.setting):
                self._follow(connection)
        finally:
            self._connection = self.sender = self.next_xid = None
            self.silence = 0.0
            self._observer.connected(connected=False)
            connection.close()

    def _follow(self, connection: LogicalReplicationConnection) -> None:
        with connection.cursor() as cursor, connection.cursor() as confirming, connection.cursor() as signs:
            history = identify(cursor)
            self._wait_for_replay(cursor, history)
            self.history = history
            self._count_as_no_standby(cursor)
            opened = self._slot.open(connection, cursor)
            self._count_as_no_standby(cursor)  # again, because creating the slot may have taken long
            stream = opened.stream
            self._session_number += 1
            if stream.encoding is not None:
                cursor.execute("SET client_encoding TO 'SQL_ASCII'")
            start = stream.start(quote_ident(self._slot.name, connection))
            # psycopg2 would also send feedback at an interval, which would look like an answer of the server.
            cursor.start_replication_expert(start, decode=False, status_interval=_NEVER)
            self._observer.connected(connected=True)
            self._backlog.tell(
                Started(
                    self._session_number,
                    history,
                    opened.confirmed,
                    opened.created,
                    opened.found,
                    opened.suspects,
                )
            )
            feedback = Feedback(confirming, signs)
            try:
                self._read(connection, cursor, stream, feedback)
            except UndefinedObject as error:
                raise self._slot.unpublished(error) from error
            except psycopg2.Error as error:
                self._slot.ended(error, opened.confirmed)
                raise
            finally:
                self._await_judgement()
                if not connection.closed and not _stands_aside(self._dropping):
                    feedback.confirm(self._may_confirm)

    def _await_judgement(self) -> None:
        """If the thread is to end, wait until the applier's last position may be confirmed."""
        until = time.monotonic() + _LAST
        while self._stopping.is_set() and self._dropping is None and self.to_judge:
            if not self._judged.wait(until - time.monotonic()):
                return
            self._judged.clear()

    def _count_as_no_standby(self, cursor: ReplicationCursor) -> None:
        """Make sure that the server does not take us for a synchronous standby.

        Raises:
            SourceError: the server would take us for a synchronous standby.

        """
        cursor.execute(self._slot.queries["Sender"])
        self.sender = sender = Sender.of(cursor.fetchall())
        text = synchronous_standby.refusal(sender)
        self._observer.trouble(synchronous_standby.REASON, text)
        if text is not None:
            error = SourceError(synchronous_standby.REASON, text)
            self._slot.leave_unread(cursor, error)
            raise error

    def _wait_for_replay(self, cursor: ReplicationCursor, history: Timeline) -> None:
        """Refuse a standby that has restarted and has not replayed enough WAL yet.

        Raises:
            SourceError: the standby is behind the position that was read.

        """
        before, position = self._read_so_far()
        if not history.lags(before, position) or not is_standby(cursor):
            return
        raise SourceError(
            "standby_behind",
            f"the standby is at {lsn.show(history.end)} and was read up to {lsn.show(position)}: waiting for"
            " it to replay that (if its primary was restored from a backup: remove STATE_FILE and restart)",
        )

    def _read(
        self,
        connection: LogicalReplicationConnection,
        cursor: ReplicationCursor,
        stream: SlotStream,
        feedback: Feedback,
    ) -> None:
        told: Lsn = Lsn(0)
        look_at = 0.0
        heard = cursor.io_timestamp
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while not self._stopping.is_set():
                if self._dropping is not None:
                    raise self._dropping
                message = cursor.read_message()
                if message is not None:
                    self._take(message, stream, feedback)
                    feedback.heard()  # after `_take`, which may have waited for long
                    now = time.monotonic()
                    if now >= look_at:  # not for every message of a backlog
                        look_at = now + _LOOK
                        feedback.send(self._freshness, self._may_confirm)
                    continue
                if stream.assembler.between and cursor.wal_end > told:
                    told = cursor.wal_end
                    self._freshness.received(told)
                    self._backlog.tell(Idle(told))
                if cursor.io_timestamp != heard:  # a keepalive
                    heard = cursor.io_timestamp
                    feedback.heard()
                self._look_at_silence(feedback)
                feedback.send(self._freshness, self._may_confirm)
                selector.select(_TICK)

    def _look_at_silence(self, feedback: Feedback) -> None:
        """Abandon the connection if the server does not answer, unless its wal sender is busy.

        Servers before PostgreSQL 16 send no keepalive while the plugin skips a large transaction of other
        tables, however long that takes. A new connection would begin the same work again, for ever.

        Raises:
            SourceError: the connection or the server is dead.

        """
        self.silence = feedback.silence
        if self.silence > _SILENCE and time.monotonic() - self._at_work_at > _EVIDENCE:
            raise SourceError("stalled", f"the server has sent nothing for {_SILENCE + ASK:.0f} s")

    def _take(self, message: ReplicationMessage, stream: SlotStream, feedback: Feedback) -> None:
        raw, transaction = message.payload, None
        try:
            for change in stream.decoder.decode(raw):
                transaction = stream.assembler.feed(change)
        except MessageError as error:
            self._observer.decode_error(error.reason, str(error))
            transaction = stream.assembler.spoil(error.reason, stream.decoder.place(raw))
        if transaction is None:
            return
        reach("received")
        while not self._backlog.offer(transaction, _TICK):
            feedback.send(self._freshness, self._may_confirm)
            if self._stopping.is_set() or self._dropping is not None:
                return
        self._freshness.received(transaction.end)


def _stands_aside(error: PadsCdcError | None) -> bool:
    """Return whether the slot is not read because the server would take us for a synchronous standby."""
    return isinstance(error, SourceError) and error.reason == synchronous_standby.REASON
