"""The bounded queue between the slot's reader and the applier.

If the applier is behind or has no room for more, the queue fills up and the reader stops reading. Further
transactions then wait in the server's WAL.
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
    """A stream has begun. Every transaction after ``confirmed`` will be delivered."""

    session: int
    """The number of the connection. A confirmation contains it, so that it is never sent on the next
    connection.
    """
    history: Timeline
    confirmed: Lsn
    created: Snapshot | None = None
    """The snapshot that the stream starts from if the slot has just been created on a primary; otherwise
    None.
    """
    found: bool = True
    """Whether the slot existed before, so that it has been read already, perhaps by an earlier process of
    ours.
    """
    suspects: Xid8 = Xid8(0)
    """Transactions below this id may have changed rows that the stream leaves out; 0 for none."""


@dataclass(frozen=True)
class Idle:
    """Every transaction up to ``lsn`` is in the backlog, and no transaction is partly read."""

    lsn: Lsn


@dataclass(frozen=True)
class StreamEnded:
    """The stream has ended or could not be opened."""

    error: PadsCdcError
    history: Timeline | None = None
    """The timeline of the server that the stream came from; None if it is unknown."""


class PeerNews:
    """An event from the stream of the pair's other server; see `cdc.pair.mirrored`."""

    __slots__ = ()


Event = Transaction | Started | Idle | StreamEnded | PeerNews


class Backlog:
    """A queue into which one thread puts events, and from which another thread takes them."""

    def __init__(self, limit: int = 32 * 2**20, batch: int = 20_000) -> None:
        """``limit`` is in bytes; the last transaction may exceed it. ``batch`` is the maximum number of keys
        in the result of one `take`. Each transaction counts as a key as well, and the last one may exceed the
        maximum.
        """
        self._limit = limit
        self._batch = batch
        self._events: deque[Event] = deque()
        self._size = 0
        """Bytes of the transactions in `_events`."""
        self._losses = 0
        """Number of `StreamEnded` events in `_events`."""
        self._woken = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._events)

    def offer(self, transaction: Transaction, timeout: float) -> bool:
        """Put a transaction. Return False if there was no room within ``timeout`` seconds."""
        with self._changed:
            if self._size >= self._limit and not self._changed.wait_for(
                lambda: self._size < self._limit, timeout
            ):
                return False
            self._size += transaction.size
            if self._events and isinstance(self._events[-1], Idle):
                # The transaction implies the `Idle` event. If the event stayed in the queue, it would split a
                # run of transactions, which would then be taken one by one however far behind the applier is.
                self._events.pop()
            self._put(transaction)
        return True

    def tell(self, event: Started | Idle | StreamEnded | PeerNews) -> None:
        """Put another event, which needs no room. An `Idle` replaces an `Idle` directly before it."""
        with self._changed:
            if isinstance(event, Idle) and self._events and isinstance(self._events[-1], Idle):
                self._events[-1] = event
                return
            self._losses += isinstance(event, StreamEnded)
            self._put(event)

    def take(self, timeout: float, *, full: bool = False) -> list[Event]:
        """Take a run of transactions, or one other event. Returns an empty list after ``timeout`` seconds.

        With ``full``, no transaction is returned. If a `StreamEnded` is waiting, the transactions before it
        are dropped so that it can be returned. They are not confirmed, so the next stream delivers them
        again.
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
        """Make `take` return early."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()


def _keys(event: Event) -> int:
    return 1 + len(event.affected) if isinstance(event, Transaction) else 0
