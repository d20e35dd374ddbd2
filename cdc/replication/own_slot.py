"""Our own slot. It is found, created or dropped here, before it is read.

An existing slot determines the plugin. A new slot is created for the first of the allowed `PLUGINS` that the
server loads.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg2.errors import InsufficientPrivilege, UndefinedFile
from psycopg2.extensions import quote_ident

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError
from cdc.postgres.errors import translated
from cdc.postgres.gate import Snapshot
from cdc.postgres.session import ask, begin
from cdc.postgres.slot_state import SlotState, is_standby
from cdc.replication import pgoutput, wal2json
from cdc.units import Xid8

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg2
    from psycopg2.errors import UndefinedObject
    from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor

    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address
    from cdc.replication.stream import SlotStream

PLUGINS = (wal2json.NAME, pgoutput.NAME)
"""The plugins whose output we can decode, in the order in which they are tried."""
AUTO = "auto"
"""The value of PLUGIN that allows all of `PLUGINS`."""

_ASK_AGAIN = 0.1
"""Seconds between two requests to stop creating the slot. A request that comes too early has no effect."""
_ENDS = 3
"""After this number of streams that the server ended at the same place, the slot is dropped."""
_CANNOT = ("22", "53200", "54", "58P01", "XX")
"""SQLSTATEs, or their classes, of errors that mean that the server cannot send a change. 58P01 means that a
file is missing, because a person has removed or reset WAL, for example on a full disk.
"""
_REMAKES = 3
"""Maximum number of times per hour that a lost slot is created again. After that, a person has to find the
cause.
"""
_REMADE_WITHIN = 3600.0
"""That hour, in seconds."""


@dataclass(frozen=True)
class OpenedSlot:
    """A slot that is ready to be read."""

    stream: SlotStream
    confirmed: Lsn
    found: bool
    """Whether the slot existed before."""
    created: Snapshot | None
    """The snapshot that the stream starts from if the slot has just been created on a primary; otherwise
    None.
    """
    suspects: Xid8
    """Transactions below this id (64 bits) may have changed rows that the stream leaves out."""


class OwnSlot:
    """Our slot, on its server. Owned by the thread that reads the slot."""

    def __init__(
        self,
        address: Address,
        name: str,
        queries: dict[str, str],
        assemble: Callable[[ReplicationCursor, str], SlotStream],
        observer: Observer,
        *,
        plugin: str = AUTO,
        failover: bool = False,
        max_retained_wal: int = 1 << 30,
    ) -> None:
        """``assemble`` reads the catalog, and returns the `SlotStream` for a plugin.

        With ``failover``, standbys keep a copy of the slot. If the slot cannot be read and retains more than
        ``max_retained_wal`` bytes, it is dropped.
        """
        self.address = address
        self.name = name
        self.queries = queries
        self._assemble = assemble
        self._observer = observer
        self.stopping = threading.Event()
        """Set when the reader is to stop. The creation of a slot is then abandoned."""
        self._plugins = PLUGINS if plugin == AUTO else (plugin,)
        self._failover = failover
        self._max_retained_wal = max_retained_wal
        self._remade: list[float] = []
        self._unpublished = False
        """Whether the slot contains changes that are older than the publication, so that every stream ends at
        them.
        """
        self._ends: list[tuple[Lsn, str]] = []
        """The last streams that the server ended: the position at which each began, and the SQLSTATE of its
        end.
        """
        self.creating: int | None = None
        """The process id of the server's session that creates the slot; None unless a slot is being created.
        """

    def open(self, connection: LogicalReplicationConnection, cursor: ReplicationCursor) -> OpenedSlot:
        """Find the slot, or create it. ``cursor`` belongs to the connection that will read the slot.

        Raises:
            SourceError, Refusal: the slot cannot be read now.

        """
        slot = self._find(cursor)
        found = slot is not None
        created, published_as = (None, None) if found else self._make(connection, cursor)
        slot = slot or self._find(cursor)
        if slot is None:
            raise SourceError("slot_lost", f"the slot {self.name} disappeared while it was being created")
        stream = self._stream(cursor, slot)
        # A slot that is younger than the publication sends no changes from before the publication.
        suspects = Xid8(0) if not found and stream.published_as == published_as else stream.suspects
        return OpenedSlot(stream, slot.confirmed, found, created, suspects)

    def give_up_creating(self) -> None:
        """Make the server stop creating the slot, from another thread. Blocks until it has stopped.

        The request is sent on a connection of its own. psycopg2's ``cancel`` would block all threads of this
        process until the server answers, and a frozen server never answers.
        """
        with suppress(PadsCdcError), closing(self.address.connect()) as connection:
            while (pid := self.creating) is not None:
                with translated(self.address.setting):
                    ask(connection, self.queries["GiveUpCreating"], {"slot": self.name, "pid": pid})
                time.sleep(_ASK_AGAIN)

    def unpublished(self, error: UndefinedObject) -> SourceError:
        """Return the error for a stream that ended because the publication did not exist when a change was
        made. The slot is created again once there is a publication.

        PostgreSQL 18 and later do not end the stream, but silently leave out such changes.
        """
        self._unpublished = True
        said = str(error).splitlines()[0]
        return SourceError(
            "publication",
            f"the slot {self.name} holds changes from before the publication existed ({said}): once the"
            " publication exists, a new slot is created, and everything is read again",
        )

    def ended(self, error: psycopg2.Error, confirmed: Lsn) -> None:
        """Record that the server ended a stream that began at ``confirmed``.

        A change that the plugin cannot write, such as a value of 200 MB that becomes 1.2 GB of JSON, ends
        every stream at the same place. Removed WAL has the same effect. The slot would then retain WAL for
        ever and send nothing, so it is dropped.
        """
        code = error.pgcode or ""
        self._ends = [*self._ends[1 - _ENDS :], (confirmed, code)] if code.startswith(_CANNOT) else []

    @property
    def _stuck(self) -> bool:
        return len(self._ends) == _ENDS and len(set(self._ends)) == 1

    def _stream(self, cursor: ReplicationCursor, slot: SlotState) -> SlotStream:
        """Return the stream for the slot. If it cannot be read, drop the slot before it fills the disk."""
        try:
            return self._assemble(cursor, slot.plugin)
        except PadsCdcError as error:
            self._bound(cursor, slot, error)
            raise

    def leave_unread(self, cursor: ReplicationCursor, why: PadsCdcError) -> None:
        """Record that the slot, if it exists, is not being read. Drop it before it fills the disk."""
        cursor.execute(self.queries["Slot"], {"slot": self.name})
        slot = SlotState.of(cursor.fetchall())
        if slot is not None:
            self._refuse_others(slot, cursor.connection.info.dbname)
            self._bound(cursor, slot, why)

    def _bound(self, cursor: ReplicationCursor, slot: SlotState, why: PadsCdcError) -> None:
        retained = slot.retained_bytes or 0
        if slot.active_pid is None and retained > self._max_retained_wal:
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (self.name,))
            self._observer.reconnecting(
                "slot_lost",
                f"the slot {self.name} cannot be read ({why}), and retains {retained >> 20} MB, more than"
                " MAX_RETAINED_WAL: it is dropped now, and a new one is created as soon as possible",
            )

    def _find(self, cursor: ReplicationCursor) -> SlotState | None:
        """Return our slot; None if it must be created. Raises an error if the slot is not ours."""
        cursor.execute(self.queries["Slot"], {"slot": self.name})
        slot = SlotState.of(cursor.fetchall())
        if slot is None:
            return None
        self._refuse_others(slot, cursor.connection.info.dbname)
        if slot.wal_status == "lost":
            if slot.active_pid is not None:
                raise SourceError(
                    "slot_lost", f"the slot {self.name} is lost and process {slot.active_pid} still holds it"
                )
            why = f" ({slot.invalidation})" if slot.invalidation else ""
            self._drop_lost(cursor, f"was invalidated by the server{why}")
            return None
        if slot.active_pid is not None:
            raise SlotHeld(self._whose(cursor, slot.active_pid), slot.active_pid)
        if self._unpublished and slot.plugin == pgoutput.NAME:
            self._assemble(cursor, slot.plugin)  # raises as long as the publication does not exist
            self._drop_lost(cursor, "holds changes that are older than the publication")
            return None
        if self._stuck:
            self._drop_lost(
                cursor, f"holds a change that the server cannot send (SQLSTATE {self._ends[0][1]})"
            )
            return None
        if self._failover and not slot.failover:
            cursor.execute(f"ALTER_REPLICATION_SLOT {quote_ident(self.name, cursor)} (FAILOVER true)")
        return slot

    def _refuse_others(self, slot: SlotState, database: str) -> None:
        if slot.kind != "logical" or slot.plugin not in self._plugins:
            what = f"for the plugin {slot.plugin}" if slot.plugin else slot.kind
            remedy = "choose another SLOT_NAME"
            if slot.plugin in PLUGINS:
                remedy += f", or PLUGIN={slot.plugin} (docs/operate.md: from one plugin to the other)"
            raise Refusal(f"the slot {self.name} is {what}, not ours: {remedy}")
        if slot.database != database:
            raise Refusal(
                f"the slot {self.name} belongs to the database {slot.database}, not to {database}:"
                " choose another SLOT_NAME"
            )
        if slot.synced:
            raise SlotHeld(
                f"the slot {self.name} is a standby's copy of its primary's slot, and cannot be read before"
                " the standby is promoted; until then read the primary's slot",
                slot.active_pid,
            )

    def _whose(self, cursor: ReplicationCursor, pid: int) -> str:
        cursor.execute(self.queries["Holder"], {"pid": pid})
        [holder] = cursor.fetchone() or ("",)
        shown = f" ({holder})" if holder else ""
        return (
            f"the slot {self.name} is active for PID {pid}{shown}; stop that process, or give this server a"
            " SLOT_NAME of its own; until then the mapping is polled"
        )

    def _drop_lost(self, cursor: ReplicationCursor, what: str) -> None:
        now, self._ends = time.monotonic(), []  # if the slot is not created again, it is read again
        self._remade = [at for at in self._remade if now - at < _REMADE_WITHIN]
        if len(self._remade) >= _REMAKES:
            raise SourceError(
                "slot_lost",
                f"the slot {self.name} {what}; it was created again {_REMAKES} times in the last hour, so we"
                " wait: find the cause, or raise max_slot_wal_keep_size if WAL was removed",
            )
        self._remade.append(now)
        cursor.execute("SELECT pg_drop_replication_slot(%s)", (self.name,))
        self._unpublished = False
        self._observer.reconnecting("slot_lost", f"the slot {self.name} {what}; we create a new one")

    def _make(
        self, connection: LogicalReplicationConnection, cursor: ReplicationCursor
    ) -> tuple[Snapshot | None, str | None]:
        """Create the slot for the first plugin that the server loads. Waits for all running transactions.

        Returns the snapshot that the stream starts from (None on a standby), and the value of
        `SlotStream.published_as` before the slot was created.
        """
        refused: psycopg2.Error | None = None
        for plugin in self._plugins:
            try:
                published_as = self._assemble(cursor, plugin).published_as
                return self._make_for(plugin, connection, cursor), published_as
            except SourceError as error:
                if refused is None or error.reason != "publication":
                    raise
                said = str(refused).splitlines()[0]
                raise Refusal(
                    f"this server does not load wal2json ({said}), and for pgoutput {error}; or install"
                    " wal2json and list it in output_plugin_libraries, if the server has that setting"
                ) from error
            except (UndefinedFile, InsufficientPrivilege) as error:
                if plugin == self._plugins[-1]:
                    raise
                refused = error
        raise AssertionError("no plugin is asked for")

    def _make_for(
        self, plugin: str, connection: LogicalReplicationConnection, cursor: ReplicationCursor
    ) -> Snapshot | None:
        standby = is_standby(cursor)
        mode = "nothing" if standby else "export"
        name = quote_ident(self.name, connection)
        if standby and self._failover:
            raise Refusal(
                "SLOT_FAILOVER: a slot that is created on a standby cannot be a failover slot; give the"
                " primary in POSTGRES_CONNECTION_STRING (all hosts, with target_session_attrs=primary), or"
                " SLOT_FAILOVER=false"
            )
        failover = ", FAILOVER true" if self._failover else ""
        cursor.execute("SELECT pg_catalog.pg_backend_pid()")
        [(self.creating,)] = cursor.fetchall()
        try:
            if self.stopping.is_set():
                raise SourceError("stopped", "stopped before the slot was made")
            cursor.execute(f"CREATE_REPLICATION_SLOT {name} LOGICAL {plugin} (SNAPSHOT '{mode}'{failover})")
        finally:
            self.creating = None
        row = cursor.fetchone()
        if standby or row is None:
            return None
        # The exported snapshot is valid until the next command on this connection.
        importer = self.address.connect()
        try:
            with importer.cursor() as reader:
                reader.execute(begin(importer, "REPEATABLE READ") + "SET TRANSACTION SNAPSHOT %s", (row[2],))
                reader.execute("SELECT pg_current_snapshot()::text")
                [text] = reader.fetchone() or ("",)
            return Snapshot.parse(text)
        finally:
            importer.close()
