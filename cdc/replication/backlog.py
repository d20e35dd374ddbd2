"""What the slot's reader hands to the applier: in order, and bounded.

When the applier is behind, or holds as much as it has room for, the reader stops reading, and the server
keeps the WAL: that is the queue that cannot overflow.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc.replication.assembler import Transaction
from cdc.units import Xid8

if TYPE_CHECKING:
    from cdc.errors import PadsCdcError
    from cdc.lsn import Lsn
    from cdc.postgres.gate import Snapshot
    from cdc.postgres.timeline import Timeline


@dataclass(frozen=True)
class Started:
    """The stream runs: everything after ``confirmed`` will come."""

    session: int
    """Counts the connections: what may be confirmed on one is not for the next."""
    history: Timeline
    confirmed: Lsn
    created: Snapshot | None = None
    """Set when the slot was made just now, on a primary: the snapshot that it starts from."""
    found: bool = True
    """The slot was there before us: somebody has read it, perhaps we."""
    suspects: Xid8 = Xid8(0)
    """Transactions below this id (64 bits) may have changed rows that do not come; 0 for none."""


@dataclass(frozen=True)
class Idle:
    """Everything up to ``lsn`` has been handed over, and no transaction is half read."""

    lsn: Lsn


@dataclass(frozen=True)
class StreamEnded:
    """The stream is gone, or could not be had."""

    error: PadsCdcError
    history: Timeline | None = None
    """Of the server that was asked for it, where that is known."""


class PeerNews:
    """What the stream of the other server of a pair brings: see `cdc.pair.mirrored`."""

    __slots__ = ()


Event = Transaction | Started | Idle | StreamEnded | PeerNews


class Backlog:
    """One thread puts, one takes."""

    def __init__(self, limit: int = 32 * 2**20, batch: int = 20_000) -> None:
        """Hold transactions of up to ``limit`` bytes, and the one that exceeds it; hand over up to ``batch``
        keys at once, where a transaction counts as one more.
        """
        self._limit = limit
        self._batch = batch
        self._events: deque[Event] = deque()
        self._size = 0
        """Bytes of the transactions in `_events`."""
        self._losses = 0
        """`StreamEnded` events in `_events`."""
        self._woken = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._events)

    def offer(self, transaction: Transaction, timeout: float) -> bool:
        """Put a transaction; False when there was no room within ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._size < self._limit, timeout):
                return False
            self._size += transaction.size
            if self._events and isinstance(self._events[-1], Idle):
                # The transaction says as much, and while each one was followed by such a moment, they would
                # be handed over one by one, however far behind the applier is.
                self._events.pop()
            self._put(transaction)
        return True

    def tell(self, event: Started | Idle | StreamEnded | PeerNews) -> None:
        """Put something that takes no room; an `Idle` replaces the one before it."""
        with self._changed:
            if isinstance(event, Idle) and self._events and isinstance(self._events[-1], Idle):
                self._events[-1] = event
                return
            self._losses += isinstance(event, StreamEnded)
            self._put(event)

    def take(self, timeout: float, *, full: bool = False) -> list[Event]:
        """Take what there is: one transaction when quiet, many when behind, [] after ``timeout`` seconds.

        Transactions come in runs; any other event comes alone. With ``full`` no transaction is returned.
        Those before a `StreamEnded` are dropped then, so that it is returned: nobody has confirmed them,
        and the next stream brings them again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._ready(full=full), timeout)
            self._woken = False
            if full:
                self._drop_before_loss()
            if not self._ready(full=full):
                return []
            taken = [self._pop()]
            keys = _keys(taken[0])
            while isinstance(taken[-1], Transaction) and self._events and keys < self._batch:
                if not isinstance(self._events[0], Transaction):
                    break
                taken.append(self._pop())
                keys += _keys(taken[-1])
            self._changed.notify_all()
            return taken

    def _ready(self, *, full: bool) -> bool:
        if not self._events:
            return False
        return not full or self._losses > 0 or not isinstance(self._events[0], Transaction)

    def _drop_before_loss(self) -> None:
        while self._losses and isinstance(self._events[0], Transaction | Idle):
            self._pop()

    def _pop(self) -> Event:
        event = self._events.popleft()
        if isinstance(event, Transaction):
            self._size -= event.size
        self._losses -= isinstance(event, StreamEnded)
        return event

    def wake(self) -> None:
        """Let `take` return early."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()


def _keys(event: Event) -> int:
    return 1 + len(event.affected) if isinstance(event, Transaction) else 0
