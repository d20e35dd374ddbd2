"""The slot that is ours: found, made, or given up, before anything is read from it.

Once there is one, it says which plugin it is read with. A new one is made for the first of the allowed
`PLUGINS` that the server loads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg2.errors import InsufficientPrivilege, UndefinedFile
from psycopg2.extensions import quote_ident

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError
from cdc.postgres.gate import Snapshot
from cdc.postgres.session import begin
from cdc.postgres.slot_state import SlotState, is_standby
from cdc.replication import pgoutput, wal2json
from cdc.units import Xid8

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import psycopg2
    from psycopg2.errors import UndefinedObject
    from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor

    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address
    from cdc.replication.stream import SlotStream

PLUGINS = (wal2json.NAME, pgoutput.NAME)
"""Those that can be read, in the order in which they are tried."""
AUTO = "auto"
"""Stands for whichever of them it is."""

_ENDS = 3
"""How many streams of a slot the server ends at the same place before the slot is given up."""
_CANNOT = ("22", "53200", "54", "XX")
"""SQLSTATEs, or their classes, by which a server says that it cannot send something."""
_REMAKES = 3
"""How often in an hour a lost slot is made anew before a person has to look."""


@dataclass(frozen=True)
class OpenedSlot:
    """A slot that can be read now."""

    stream: SlotStream
    confirmed: Lsn
    found: bool
    """It was there before."""
    created: Snapshot | None
    """Set when it was made just now, on a primary: the snapshot that the stream starts from."""
    suspects: Xid8
    """Transactions below this id (64 bits) may have changed rows that the stream leaves out."""


class OwnSlot:
    """Owned by the thread that reads it."""

    def __init__(
        self,
        address: Address,
        name: str,
        queries: dict[str, str],
        assemble: Callable[[ReplicationCursor, str], SlotStream],
        observer: Observer,
        stopping: threading.Event,
        *,
        plugin: str,
        failover: bool,
        max_retained_wal: int,
    ) -> None:
        """``assemble`` looks at the catalog for a plugin, and returns what a stream is begun and read with.

        With ``failover``, standbys keep the slot too. A slot that cannot be read, and retains more than
        ``max_retained_wal`` bytes, is given up.
        """
        self._address = address
        self._name = name
        self._queries = queries
        self._assemble = assemble
        self._observer = observer
        self._stopping = stopping
        self._plugins = PLUGINS if plugin == AUTO else (plugin,)
        self._failover = failover
        self._max_retained_wal = max_retained_wal
        self._remade: list[float] = []
        self._unpublished = False
        """It holds changes that are older than the publication, at which every stream of it ends."""
        self._ends: list[tuple[Lsn, str]] = []
        """From where the last streams were begun that the server ended, and by which SQLSTATE."""
        self.creating = False
        """The slot is being made, which waits for every transaction that runs."""

    def open(self, connection: LogicalReplicationConnection, cursor: ReplicationCursor) -> OpenedSlot:
        """Find the slot, or make it; ``cursor`` is of the connection that is going to read it.

        Raises:
            SourceError, Refusal: it cannot be had.

        """
        slot = self._find(cursor)
        found = slot is not None
        created, published_as = (None, None) if found else self._make(connection, cursor)
        slot = slot or self._find(cursor)
        if slot is None:
            raise SourceError("slot_lost", f"the slot {self._name} vanished while it was made")
        stream = self._stream(cursor, slot)
        # A slot that is younger than the publication sends nothing that is older.
        suspects = Xid8(0) if not found and stream.published_as == published_as else stream.suspects
        return OpenedSlot(stream, slot.confirmed, found, created, suspects)

    def unpublished(self, error: UndefinedObject) -> SourceError:
        """Return the error for a stream that ended because the publication was not there yet, or not any
        more, when a change was made; the slot is made anew once it is there.

        PostgreSQL 18 and later leave such changes out, without a word.
        """
        self._unpublished = True
        said = str(error).splitlines()[0]
        return SourceError(
            "publication",
            f"the slot {self._name} holds changes from a time without the publication ({said}): once there is"
            " one, the slot is made anew, and everything read again",
        )

    def ended(self, error: psycopg2.Error, confirmed: Lsn) -> None:
        """Note that the server ended a stream that was begun from ``confirmed``.

        A change that the plugin cannot write, such as a value of 200 MB that is 1.2 GB of JSON, ends every
        stream of the slot at the same place, and its WAL would be held for ever. So it is given up then.
        """
        code = error.pgcode or ""
        self._ends = [*self._ends[1 - _ENDS :], (confirmed, code)] if code.startswith(_CANNOT) else []

    @property
    def _stuck(self) -> bool:
        return len(self._ends) == _ENDS and len(set(self._ends)) == 1

    def _stream(self, cursor: ReplicationCursor, slot: SlotState) -> SlotStream:
        """Return what the slot is read with. While it cannot be read it must not fill the disk."""
        try:
            return self._assemble(cursor, slot.plugin)
        except PadsCdcError as error:
            self._bound(cursor, slot, error)
            raise

    def leave_unread(self, cursor: ReplicationCursor, why: PadsCdcError) -> None:
        """Note that the slot, if there is one, is not read now: it must not fill the disk."""
        cursor.execute(self._queries["Slot"], {"slot": self._name})
        slot = SlotState.of(cursor.fetchall())
        if slot is not None:
            self._refuse_others(slot, cursor.connection.info.dbname)
            self._bound(cursor, slot, why)

    def _bound(self, cursor: ReplicationCursor, slot: SlotState, why: PadsCdcError) -> None:
        retained = slot.retained_bytes or 0
        if slot.active_pid is None and retained > self._max_retained_wal:
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (self._name,))
            self._observer.reconnecting(
                "slot_lost",
                f"the slot {self._name} cannot be read ({why}), and has retained {retained >> 20} MB,"
                " more than MAX_RETAINED_WAL: it is dropped, and made anew when it can be",
            )

    def _find(self, cursor: ReplicationCursor) -> SlotState | None:
        """Return our slot; None if it has to be made. One that is not ours to touch is an error."""
        cursor.execute(self._queries["Slot"], {"slot": self._name})
        slot = SlotState.of(cursor.fetchall())
        if slot is None:
            return None
        self._refuse_others(slot, cursor.connection.info.dbname)
        if slot.wal_status == "lost":
            if slot.active_pid is not None:
                raise SourceError(
                    "slot_lost", f"the slot {self._name} is lost and process {slot.active_pid} still holds it"
                )
            why = f" ({slot.invalidation})" if slot.invalidation else ""
            self._drop_lost(cursor, f"was invalidated by the server{why}")
            return None
        if slot.active_pid is not None:
            raise SlotHeld(self._whose(cursor, slot.active_pid), slot.active_pid)
        if self._unpublished and slot.plugin == pgoutput.NAME:
            self._assemble(cursor, slot.plugin)  # which fails for as long as the publication is not there
            self._drop_lost(cursor, "holds changes that are older than the publication")
            return None
        if self._stuck:
            self._drop_lost(
                cursor, f"holds a change that the server cannot send (SQLSTATE {self._ends[0][1]})"
            )
            return None
        if self._failover and not slot.failover:
            cursor.execute(f"ALTER_REPLICATION_SLOT {quote_ident(self._name, cursor)} (FAILOVER true)")
        return slot

    def _refuse_others(self, slot: SlotState, database: str) -> None:
        if slot.kind != "logical" or slot.plugin not in self._plugins:
            what = f"for the plugin {slot.plugin}" if slot.plugin else slot.kind
            remedy = "choose another SLOT_NAME"
            if slot.plugin in PLUGINS:
                remedy += f", or PLUGIN={slot.plugin} (docs/operate.md: from one plugin to the other)"
            raise Refusal(f"the slot {self._name} is {what}, not ours: {remedy}")
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

    def _whose(self, cursor: ReplicationCursor, pid: int) -> str:
        cursor.execute(self._queries["Holder"], {"pid": pid})
        [holder] = cursor.fetchone() or ("",)
        shown = f" ({holder})" if holder else ""
        return (
            f"the slot {self._name} is active for PID {pid}{shown}; stop that process, or give this server a"
            " SLOT_NAME of its own; until then the mapping is polled"
        )

    def _drop_lost(self, cursor: ReplicationCursor, what: str) -> None:
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
        self._unpublished, self._ends = False, []
        self._observer.reconnecting("slot_lost", f"the slot {self._name} {what}; making a new one")

    def _make(
        self, connection: LogicalReplicationConnection, cursor: ReplicationCursor
    ) -> tuple[Snapshot | None, str | None]:
        """Make the slot, for the first plugin that the server loads. Waits for all transactions.

        Returns the snapshot that the stream starts from, on a primary, and the publication as it was before.
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
            cursor.execute(f"CREATE_REPLICATION_SLOT {name} LOGICAL {plugin} (SNAPSHOT '{mode}'{failover})")
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
