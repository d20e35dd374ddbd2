"""The observer: the interface through which metrics, logs and the status page are notified of events.

The packages of `cdc` call its methods and do not know what the methods do. The methods are called from
several threads, must not block, and must not raise. No argument contains a key, a payload or a connection
string.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cdc.changes import Action
    from cdc.lsn import Lsn
    from cdc.mapping.row_rule import OddReason
    from cdc.units import Revision, Xid

Mode = Literal["waiting", "streaming", "polling"]
"""waiting: nothing is read yet; streaming: the slot is read; polling: the mapping is read again and again."""


class TransactionSeen(msgspec.Struct, frozen=True):
    """One committed transaction whose batch has been published."""

    xid: Xid
    end: Lsn
    committed_at: float
    """Unix seconds by the database's clock."""
    published_at: float
    """Unix seconds by our clock."""
    rows: Mapping[tuple[str, Action], int]
    """The number of rows by (table, action). Actions are ``insert``, ``update``, ``delete`` and ``truncate``.
    """
    affected: int
    """Number of endpoints that were read for the transaction's whole batch."""


@dataclass(frozen=True)
class BatchSeen:
    """A batch of transactions that has been published."""

    transactions: tuple[TransactionSeen, ...]
    affected: int
    upserts: int
    deletes: int
    suppressed: int
    """Number of endpoints that were read and had not changed, so that nothing was published for them."""
    requery_seconds: float
    visibility_seconds: float
    """Seconds until a snapshot saw every transaction of the batch; 0.0 if the first one did."""
    revision: Revision


@dataclass(frozen=True)
class ReconcileSeen:
    """One comparison of the whole mapping with the store."""

    reason: str
    endpoints: int
    upserts: int
    deletes: int
    seconds: float


@dataclass(frozen=True)
class SlotSeen:
    """The state of our slot, as its server reports it about once a second; None for unknown values."""

    retained_bytes: int | None
    safe_wal_bytes: int | None
    wal_status: str | None
    catalog_xmin_age: int | None
    active_pid: int | None


class Observer(Protocol):
    """Receives all reports."""

    def mode(self, mode: Mode) -> None:
        """Report a change of mode."""

    def connected(self, connected: bool) -> None:
        """Report that the replication connection has been opened or closed."""

    def reconnecting(self, reason: str, message: str) -> None:
        """Report that the stream has ended. ``reason`` is from a small closed set, ``message`` one line for
        people.
        """

    def batch(self, batch: BatchSeen) -> None:
        """Report a batch that was just published."""

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Report a finished reconcile."""

    def decode_error(self, reason: str, message: str) -> None:
        """Report a message that could not be decoded and therefore caused a reconcile."""

    def state_file_error(self, message: str) -> None:
        """Report that the state file could not be used."""

    def slot(self, slot: SlotSeen) -> None:
        """Report the state of the slot."""

    def odd_rows(self, numbers: Mapping[OddReason, int]) -> None:
        """Report the number of odd rows for each reason."""

    def trouble(self, key: str, message: str | None) -> None:
        """Report a lasting condition, such as an owed reconcile. A ``message`` of None reports the end of the
        condition with this ``key``.
        """
