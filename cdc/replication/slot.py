"""The logical replication slot: a thread that reads it.

The thread does nothing but read, reduce and hand over, so that the server's keepalives are answered however
long a re-query takes. What may be confirmed is decided by the applier.

Confirming has a trap. psycopg2 answers a keepalive by itself, with a flush position that it guesses from the
messages that were
*read*; inside a transaction that guess can cover complete transactions before it that are still pending, and
they would never be delivered again. So the reading cursor is never told of any flush position and answers
with none, which the server ignores; ours is sent by a second cursor on the same connection.
"""

from __future__ import annotations

import selectors
import threading
import time
from typing import TYPE_CHECKING

from psycopg2.errors import UndefinedObject
from psycopg2.extensions import quote_ident

from cdc import lsn
from cdc.errors import MessageError, PadsCdcError, SlotHeld, SourceError, fault_of_ours
from cdc.failpoints import reach
from cdc.postgres.connection import cancel_soon, identify
from cdc.postgres.errors import translated
from cdc.postgres.slot_state import is_standby
from cdc.replication.backlog import Idle, Lost, Started
from cdc.replication.own_slot import AUTO, OwnSlot

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor, ReplicationMessage

    from cdc.freshness import Freshness
    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address
    from cdc.postgres.timeline import Timeline
    from cdc.replication.backlog import Backlog
    from cdc.replication.stream import Stream

_TICK = 0.1
"""Seconds between looks at what may be confirmed."""
_LOOK = 0.01
"""Seconds between them while one message follows the other."""
_SIGN = 1.0
"""Seconds after which the server hears from us even if nobody can take what it sends: its patience with
readers (wal_sender_timeout) may be short.
"""
_ASK = 5.0
"""Seconds between feedbacks that ask the server for a sign of life."""
_SILENCE = 20.0
"""Seconds without a sign of life after which the connection is given up."""
_HELD = 10.0
"""Seconds after which a connection counts as one that worked."""


class SlotReader(threading.Thread):
    """Reads one slot for as long as it can be had, and says when it cannot."""

    def __init__(
        self,
        address: Address,
        name: str,
        queries: dict[str, str],
        assemble: Callable[[ReplicationCursor, str], Stream],
        backlog: Backlog,
        freshness: Freshness,
        observer: Observer,
        read_so_far: Callable[[], tuple[Timeline, Lsn]],
        *,
        plugin: str = AUTO,
        failover: bool = False,
        max_retained_wal: int = 1 << 30,
    ) -> None:
        """``assemble`` looks at the catalog for a plugin, and returns what a stream is begun and read with.

        ``read_so_far`` says how far in which history anything was read: a standby has to be there again.
        With ``failover``, standbys keep the slot too. A slot that cannot be read, and retains more than
        ``max_retained_wal`` bytes, is given up.
        """
        super().__init__(name="slot-reader", daemon=True)
        self._address = address
        self._name = name
        self._backlog = backlog
        self._freshness = freshness
        self._observer = observer
        self._read_so_far = read_so_far
        self._stopping = threading.Event()
        self._slot = OwnSlot(
            address,
            name,
            queries,
            assemble,
            observer,
            self._stopping,
            plugin=plugin,
            failover=failover,
            max_retained_wal=max_retained_wal,
        )
        self._dropping: str | None = None
        self._connection: LogicalReplicationConnection | None = None
        self._allowed: tuple[int, Lsn] = (0, 0)
        """The session that the applier spoke of, and up to where it may be confirmed: one value, so that the
        other thread never sees half of it.
        """
        self._session_number = 0
        self.history: Timeline | None = None
        """Of the server, as the newest connection found it."""

    @property
    def creating(self) -> bool:
        """Whether the slot is being made, which waits for every transaction that runs."""
        return self._slot.creating

    # --- for the follower's thread
    # ---------------------------------------------------------------------------------

    def confirm(self, position: Lsn, session: int) -> None:
        """Let the server forget everything up to ``position``; it hears of it within a tenth of a second.

        Ignored when the connection that ``session`` names is gone: another one may read another history.
        """
        spoken_of, allowed = self._allowed
        self._allowed = session, max(position, allowed) if session == spoken_of else position

    def drop(self, reason: str) -> None:
        """Close the connection and start over: the tables have changed, or the server is going down."""
        self._dropping = reason

    def stop(self) -> None:
        """End the thread: what may be confirmed is sent, and the connection is closed."""
        self._stopping.set()
        connection = self._connection
        if self.creating and connection is not None:
            cancel_soon(connection)

    # --- the thread
    # ------------------------------------------------------------------------------------------------

    @property
    def _may_confirm(self) -> Lsn:
        session, position = self._allowed
        return position if session == self._session_number else 0

    def run(self) -> None:
        """Follow the slot until `stop`; each connection ends with a `Lost` in the backlog."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._session()
            except Exception as fault:  # noqa: BLE001 - the thread's boundary: it must not end without a word
                error = fault if isinstance(fault, PadsCdcError) else fault_of_ours(fault)
                self._backlog.tell(Lost(error, self.history))
                # A stream that held for a while starts anew; a slot that another holds is asked for steadily.
                steady = time.monotonic() - started > _HELD or isinstance(error, SlotHeld)
                failures = 0 if steady else failures + 1
                self._stopping.wait(min(5.0, 0.2 * 2 ** min(failures, 5)))

    def _session(self) -> None:
        self._dropping = None
        connection = self._address.connect_replication()
        self._connection = connection
        try:
            with translated(self._address.setting):
                self._follow(connection)
        finally:
            self._connection = None
            self._observer.connected(connected=False)
            connection.close()

    def _follow(self, connection: LogicalReplicationConnection) -> None:
        with connection.cursor() as cursor, connection.cursor() as feedback:
            history = identify(cursor)
            self._wait_for_replay(cursor, history)
            self.history = history
            opened = self._slot.open(connection, cursor)
            stream = opened.stream
            self._session_number += 1
            if stream.encoding is not None:
                cursor.execute("SET client_encoding TO 'SQL_ASCII'")
            cursor.start_replication_expert(stream.start(quote_ident(self._name, connection)), decode=False)
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
            try:
                self._read(connection, cursor, stream, _Feedback(feedback))
            except UndefinedObject as error:
                raise self._slot.unpublished(error) from error
            finally:
                last = self._may_confirm
                if last and not connection.closed:
                    feedback.send_feedback(flush_lsn=last, apply_lsn=last, force=True)

    def _wait_for_replay(self, cursor: ReplicationCursor, history: Timeline) -> None:
        """Take no standby that has restarted and replays again for a database that went back."""
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
        stream: Stream,
        feedback: _Feedback,
    ) -> None:
        told: Lsn = 0
        look_at = 0.0
        heard, heard_at = cursor.io_timestamp, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while not self._stopping.is_set():
                if self._dropping is not None:
                    raise SourceError(self._dropping, "the connection was closed to start over")
                message = cursor.read_message()
                if message is not None:
                    heard_at = time.monotonic()
                    self._take(message, stream, feedback)
                    if heard_at >= look_at:  # not for each message of a backlog
                        look_at = heard_at + _LOOK
                        feedback.send(self._freshness, self._may_confirm)
                    continue
                if stream.assembler.between and cursor.wal_end > told:
                    told = cursor.wal_end
                    self._freshness.received(told)
                    self._backlog.tell(Idle(told))
                feedback.send(self._freshness, self._may_confirm)
                if cursor.io_timestamp != heard:
                    heard, heard_at = cursor.io_timestamp, time.monotonic()
                elif time.monotonic() - heard_at > _SILENCE:
                    raise SourceError("stalled", f"no sign of life from the server for {_SILENCE:.0f} s")
                selector.select(_TICK)

    def _take(self, message: ReplicationMessage, stream: Stream, feedback: _Feedback) -> None:
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


class _Feedback:
    """Tells the server what it may forget and asks for signs of life; see the module for why it is a cursor
    of its own.
    """

    def __init__(self, cursor: ReplicationCursor) -> None:
        self._cursor = cursor
        self._sent_at = 0.0
        self._asked_at = time.monotonic()
        self._sent: Lsn = 0

    def send(self, freshness: Freshness, confirm: Lsn) -> None:
        now = time.monotonic()
        ask = now - self._asked_at >= _ASK
        news = confirm > self._sent and now - self._sent_at >= _TICK
        if not (ask or news or now - self._sent_at >= _SIGN):
            return
        received = freshness.positions().received
        if confirm > self._sent:
            reach("confirming")
        self._cursor.send_feedback(
            write_lsn=max(received, confirm), flush_lsn=confirm, apply_lsn=confirm, reply=ask, force=True
        )
        if confirm > self._sent:
            reach("confirmed")
        self._sent, self._sent_at = confirm, now
        if ask:
            self._asked_at = now
        if confirm:
            freshness.confirmed(confirm)
