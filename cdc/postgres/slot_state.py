"""The state of a slot, as its server reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdc import lsn
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg2.extensions import cursor as PlainCursor  # noqa: N812 - it is a class


@dataclass(frozen=True)
class SlotState:
    """A row of ``pg_replication_slots``."""

    plugin: str
    kind: str
    database: str
    active_pid: int | None
    wal_status: str | None
    confirmed: Lsn
    safe_wal_bytes: int | None
    catalog_xmin_age: int | None
    retained_bytes: int | None
    failover: bool
    """Whether standbys may keep a copy of the slot (a failover slot)."""
    synced: bool
    """Whether this is a standby's copy of a failover slot. It cannot be read before the standby is promoted.
    """
    invalidation: str | None
    """The server's reason why the slot is lost; None if the slot is not lost, or if the reason is unknown."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]]) -> SlotState | None:
        """Read the row of the query ``Slot``; return None if there is no slot of that name."""
        if not rows:
            return None
        plugin, kind, database, active_pid, wal_status, confirmed, safe, age, retained, *others = rows[0]
        return cls(
            plugin=plugin,
            kind=kind,
            database=database,
            active_pid=active_pid,
            wal_status=wal_status,
            confirmed=lsn.parse(confirmed) if confirmed else Lsn(0),
            safe_wal_bytes=safe,
            catalog_xmin_age=age,
            retained_bytes=retained,
            failover=others[0],
            synced=others[1],
            invalidation=others[2],
        )


def is_standby(cursor: PlainCursor) -> bool:
    """Return whether a server is in recovery."""
    cursor.execute("SELECT pg_is_in_recovery()")
    [(standby,)] = cursor.fetchall()
    return bool(standby)
