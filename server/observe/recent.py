"""Recent events for the status page: the newest transactions, the last comparison, the slot's state.

Their number is limited, and they contain no data: only transaction ids, names of tables, counts and times.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from server.observe.fanout import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.observer import BatchSeen, Mode, ReconcileSeen, SlotSeen, TransactionSeen

_KEPT: Final = 20
"""Number of transactions that are kept."""


@dataclass(frozen=True)
class Reconciled:
    """A comparison of the whole mapping, and the time at which it ended."""

    at: float
    """Unix seconds by our clock."""
    seen: ReconcileSeen


@dataclass(frozen=True)
class Lately:
    """The recent events at one moment."""

    mode: Mode
    connected: bool
    slot: SlotSeen | None
    """The state of the slot; None until its server has been asked for the first time."""
    transactions: tuple[TransactionSeen, ...]
    """Transactions that changed rows of the mapping's tables, the newest first."""
    last_reconcile: Reconciled | None
    last_audit: Reconciled | None


class Recent(Listener):
    """Remembers recent events. The applier's threads report them, and the event loop reads them."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._mode: Mode = "waiting"
        self._connected = False
        self._slot: SlotSeen | None = None
        self._transactions: deque[TransactionSeen] = deque(maxlen=_KEPT)
        self._last_reconcile: Reconciled | None = None
        self._last_audit: Reconciled | None = None

    def lately(self) -> Lately:
        """Return the recent events."""
        with self._lock:
            return Lately(
                mode=self._mode,
                connected=self._connected,
                slot=self._slot,
                transactions=tuple(reversed(self._transactions)),
                last_reconcile=self._last_reconcile,
                last_audit=self._last_audit,
            )

    def mode(self, mode: Mode) -> None:
        """Remember the mode in which the source is read."""
        with self._lock:
            self._mode = mode

    def connected(self, connected: bool) -> None:
        """Remember whether the replication connection is up."""
        with self._lock:
            self._connected = connected

    def batch(self, batch: BatchSeen) -> None:
        """Remember a batch's transactions, without those that changed no row of the mapping's tables."""
        with self._lock:
            self._transactions.extend(one for one in batch.transactions if one.rows)

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Remember the time at which the whole mapping was last compared."""
        done = Reconciled(self._wall(), reconcile)
        with self._lock:
            self._last_reconcile = done
            if reconcile.reason == "audit":
                self._last_audit = done

    def slot(self, slot: SlotSeen) -> None:
        """Remember the slot's state."""
        with self._lock:
            self._slot = slot
