"""The logical replication slot: a thread that reads it, and the commands that make it.

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

from psycopg2.extensions import quote_ident

from cdc import lsn
from cdc.errors import MessageError, PadsCdcError, Refusal, SlotHeld, SourceError, fault_of_ours
from cdc.failpoints import reach
from cdc.postgres.connection import cancel_soon, identify
from cdc.postgres.errors import translated
from cdc.postgres.gate import Snapshot
from cdc.postgres.session import begin
from cdc.postgres.slot_state import SlotState
from cdc.replication import wal2json
from cdc.replication.backlog import Idle, Lost, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor, ReplicationMessage

    from cdc.freshness import Freshness
    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address
    from cdc.postgres.timeline import Timeline
    from cdc.replication.assembler import Assembler
    from cdc.replication.backlog import Backlog

PLUGIN = "wal2json"
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
_REMAKES = 3
"""How often in an hour a lost slot is made anew before a person has to look."""


class SlotReader(threading.Thread):
    """Reads one slot for as long as it can be had, and says when it cannot."""

    def __init__(
        self,
        address: Address,
        name: str,
        queries: dict[str, str],
        assemble: Callable[[ReplicationCursor], tuple[Assembler, list[str]]],
        backlog: Backlog,
        freshness: Freshness,
        observer: Observer,
        read_so_far: Callable[[], tuple[Timeline, Lsn]],
        *,
        failover: bool = False,
    ) -> None:
        """``assemble`` looks at the catalog and returns an assembler and the tables to ask the plugin for.

        ``read_so_far`` says how far in which history anything was read: a standby has to be there again.
        With ``failover``, standbys keep the slot too.
        """
        super().__init__(name="slot-reader", daemon=True)
        self._address = address
        self._name = name
        self._queries = queries
        self._assemble = assemble
        self._backlog = backlog
        self._freshness = freshness
        self._observer = observer
        self._read_so_far = read_so_far
        self._failover = failover
        self._stopping = threading.Event()
        self._dropping: str | None = None
        self._connection: LogicalReplicationConnection | None = None
        self._allowed: tuple[int, Lsn] = (0, 0)
        """The session that the applier spoke of, and up to where it may be confirmed: one value, so that the
        other thread never sees half of it.
        """
        self._session_number = 0
        self._remade: list[float] = []
        self.history: Timeline | None = None
        """Of the server, as the newest connection found it."""
        self.creating = False
        """The slot is being made, which waits for every transaction that runs."""

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
            slot = self._usable_slot(cursor)
            found = slot is not None
            created = None if found else self._create(connection, cursor)
            slot = slot or self._usable_slot(cursor)
            if slot is None:
                raise SourceError("slot_lost", f"the slot {self._name} vanished while it was made")
            assembler, tables = self._assemble(cursor)
            self._session_number += 1
            cursor.start_replication_expert(_start(quote_ident(self._name, connection), tables), decode=False)
            self._observer.connected(connected=True)
            self._backlog.tell(Started(self._session_number, history, slot.confirmed, created, found))
            try:
                self._read(connection, cursor, assembler, _Feedback(feedback))
            finally:
                last = self._may_confirm
                if last and not connection.closed:
                    feedback.send_feedback(flush_lsn=last, apply_lsn=last, force=True)

    def _wait_for_replay(self, cursor: ReplicationCursor, history: Timeline) -> None:
        """Take no standby that has restarted and replays again for a database that went back."""
        before, position = self._read_so_far()
        if not history.lags(before, position) or not _is_standby(cursor):
            return
        raise SourceError(
            "standby_behind",
            f"the standby is at {lsn.show(history.end)} and was read up to {lsn.show(position)}: waiting for"
            " it to replay that (if its primary was restored from a backup: remove STATE_FILE and restart)",
        )

    def _usable_slot(self, cursor: ReplicationCursor) -> SlotState | None:
        """Return our slot; None if it has to be made. One that is not ours to touch is an error."""
        cursor.execute(self._queries["Slot"], {"slot": self._name})
        slot = SlotState.of(cursor.fetchall())
        if slot is None:
            return None
        database = cursor.connection.info.dbname
        if slot.kind != "logical" or slot.plugin != PLUGIN:
            what = f"for the plugin {slot.plugin}" if slot.plugin else slot.kind
            raise Refusal(f"the slot {self._name} is {what}, not ours: choose another SLOT_NAME")
        if slot.database != database:
            raise Refusal(
                f"the slot {self._name} belongs to the database {slot.database}, not to {database}:"
                " choose another SLOT_NAME"
            )
        if slot.synced:
            raise SlotHeld(
                f"the slot {self._name} is a standby's copy of its primary's: it can be read once the standby"
                " is promoted; until then the primary's is the one to read",
                slot.active_pid,
            )
        if slot.wal_status == "lost":
            if slot.active_pid is not None:
                raise SourceError(
                    "slot_lost", f"the slot {self._name} is lost and process {slot.active_pid} still holds it"
                )
            self._drop_lost(cursor, f" ({slot.invalidation})" if slot.invalidation else "")
            return None
        if slot.active_pid is not None:
            raise SlotHeld(self._whose(cursor, slot.active_pid), slot.active_pid)
        if self._failover and not slot.failover:
            cursor.execute(f"ALTER_REPLICATION_SLOT {quote_ident(self._name, cursor)} (FAILOVER true)")
        return slot

    def _whose(self, cursor: ReplicationCursor, pid: int) -> str:
        cursor.execute(self._queries["Holder"], {"pid": pid})
        [holder] = cursor.fetchone() or ("",)
        shown = f" ({holder})" if holder else ""
        return (
            f"the slot {self._name} is active for PID {pid}{shown}; stop that process, or give this server a"
            " SLOT_NAME of its own; until then the mapping is polled"
        )

    def _drop_lost(self, cursor: ReplicationCursor, why: str) -> None:
        now = time.monotonic()
        self._remade = [at for at in self._remade if now - at < 3600]  # noqa: PLR2004 - an hour
        if len(self._remade) >= _REMAKES:
            raise SourceError(
                "slot_lost",
                f"the slot {self._name} was lost {_REMAKES} times within an hour and is not made anew:"
                " raise max_slot_wal_keep_size, or find out why we fall behind; it is tried again later",
            )
        self._remade.append(now)
        cursor.execute("SELECT pg_drop_replication_slot(%s)", (self._name,))
        self._observer.reconnecting(
            "slot_lost", f"the slot {self._name} was invalidated by the server{why}; making a new one"
        )

    def _create(self, connection: LogicalReplicationConnection, cursor: ReplicationCursor) -> Snapshot | None:
        """Make the slot; on a primary, return the snapshot that the stream starts from. Waits for all
        transactions.
        """
        standby = _is_standby(cursor)
        mode = "nothing" if standby else "export"
        name = quote_ident(self._name, connection)
        if standby and self._failover:
            raise Refusal(
                "SLOT_FAILOVER: a slot that is made on a standby is no failover slot; give the primary in"
                " POSTGRES_CONNECTION_STRING (all hosts, with target_session_attrs=primary), or"
                " SLOT_FAILOVER=false"
            )
        failover = ", FAILOVER true" if self._failover else ""
        self.creating = True
        try:
            if self._stopping.is_set():
                raise SourceError("stopped", "stopped before the slot was made")
            cursor.execute(f"CREATE_REPLICATION_SLOT {name} LOGICAL {PLUGIN} (SNAPSHOT '{mode}'{failover})")
        finally:
            self.creating = False
        row = cursor.fetchone()
        if standby or row is None:
            return None
        # The exported snapshot lives until the next command on this connection.
        importer = self._address.connect()
        try:
            with importer.cursor() as reader:
                reader.execute(begin(importer, "REPEATABLE READ") + "SET TRANSACTION SNAPSHOT %s", (row[2],))
                reader.execute("SELECT pg_current_snapshot()::text")
                [text] = reader.fetchone() or ("",)
            return Snapshot.parse(text)
        finally:
            importer.close()

    def _read(
        self,
        connection: LogicalReplicationConnection,
        cursor: ReplicationCursor,
        assembler: Assembler,
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
                    self._take(message, assembler, feedback)
                    if heard_at >= look_at:  # not for each message of a backlog
                        look_at = heard_at + _LOOK
                        feedback.send(self._freshness, self._may_confirm)
                    continue
                if assembler.between and cursor.wal_end > told:
                    told = cursor.wal_end
                    self._freshness.received(told)
                    self._backlog.tell(Idle(told))
                feedback.send(self._freshness, self._may_confirm)
                if cursor.io_timestamp != heard:
                    heard, heard_at = cursor.io_timestamp, time.monotonic()
                elif time.monotonic() - heard_at > _SILENCE:
                    raise SourceError("stalled", f"no sign of life from the server for {_SILENCE:.0f} s")
                selector.select(_TICK)

    def _take(self, message: ReplicationMessage, assembler: Assembler, feedback: _Feedback) -> None:
        raw = message.payload
        try:
            transaction = assembler.feed(wal2json.parse(raw))
        except MessageError as error:
            self._observer.decode_error(error.reason, str(error))
            transaction = assembler.spoil(error.reason, wal2json.Decoder().place(raw))
        if transaction is None:
            return
        reach("received")
        while not self._backlog.offer(transaction, _TICK):
            feedback.send(self._freshness, self._may_confirm)
            if self._stopping.is_set() or self._dropping is not None:
                return
        self._freshness.received(transaction.end)


def _is_standby(cursor: ReplicationCursor) -> bool:
    cursor.execute("SELECT pg_is_in_recovery()")
    [(standby,)] = cursor.fetchall()
    return bool(standby)


def _start(slot: str, tables: list[str]) -> str:
    """Return the command that starts the stream; psycopg2's own cannot write names that are not Latin-1."""
    options = {**wal2json.OPTIONS, "add-tables": ",".join(tables)}
    # The replication grammar knows doubled quotes, and no escapes by backslash.
    quoted = ((name, value.replace("'", "''")) for name, value in options.items())
    given = ", ".join(f"\"{name}\" '{value}'" for name, value in quoted)
    return f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({given})"


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
