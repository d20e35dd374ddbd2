"""What the applier tells whoever watches: the seam for metrics, logs and the status page.

The domain calls these methods and knows nothing of what they do. They are called from the applier's threads,
must not block, and must not raise. No argument ever holds a key, a payload or a connection string.
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
"""waiting: nothing is read yet; streaming: the slot is followed; polling: no usable slot, the mapping is
re-read.
"""


class TransactionSeen(msgspec.Struct, frozen=True):
    """One committed transaction, after the batch that it was in has been published."""

    xid: Xid
    end: Lsn
    committed_at: float
    """Unix seconds by the database's clock."""
    published_at: float
    """Unix seconds by ours."""
    rows: Mapping[tuple[str, Action], int]
    """(table, action) to number of rows; actions are ``insert``, ``update``, ``delete``, ``truncate``."""
    affected: int
    """Endpoints that the whole batch re-queried (batches of one when quiet)."""


@dataclass(frozen=True)
class BatchSeen:
    """One batch that went from the slot into the store."""

    transactions: tuple[TransactionSeen, ...]
    affected: int
    upserts: int
    deletes: int
    suppressed: int
    """Re-queried endpoints whose bytes did not change, so that nothing was published for them."""
    requery_seconds: float
    visibility_seconds: float
    """How long the gate waited until a snapshot saw every transaction of the batch; 0.0 when it need not
    wait.
    """
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
    """What the slot's server says of our slot, asked about once a second; None where it does not say."""

    retained_bytes: int | None
    safe_wal_bytes: int | None
    wal_status: str | None
    catalog_xmin_age: int | None
    active_pid: int | None


class Observer(Protocol):
    """Everything the applier reports."""

    def mode(self, mode: Mode) -> None:
        """Report that the source is read in another way from now on."""

    def connected(self, connected: bool) -> None:
        """Report that the replication connection came or went."""

    def reconnecting(self, reason: str, message: str) -> None:
        """Report that the source was lost; ``reason`` is a small closed set, ``message`` one line for
        people.
        """

    def batch(self, batch: BatchSeen) -> None:
        """Report a batch that is published."""

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Report a finished reconcile."""

    def decode_error(self, reason: str, message: str) -> None:
        """Report a message that could not be handled and was answered with a reconcile."""

    def state_file_error(self, message: str) -> None:
        """Report that the state file could not be used."""

    def slot(self, slot: SlotSeen) -> None:
        """Report what the server says of the slot."""

    def odd_rows(self, numbers: Mapping[OddReason, int]) -> None:
        """Report how many rows there are that are no endpoints as they stand, by what is odd about them."""

    def trouble(self, key: str, message: str | None) -> None:
        """Set (or with None clear) one lasting condition that people should know of, such as an owed
        reconcile.
        """
