"""The applier's session: is the stream open, and does the map lack changes that no stream will deliver?

The slot is confirmed, and the map counts as fresh, only while the session is exact. It is not exact

- without a stream;
- after a gap, which means that some transactions were never delivered to this server;
- while a reconcile is owed, because the slot was confirmed beyond changes that had not been read.

One reconcile fills the gap and is also the owed reconcile.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.postgres.gate import Gate


class StreamState(Enum):
    """Whether the slot delivers transactions."""

    WAITING = auto()
    """There has been no stream since the process started."""
    STREAMING = auto()
    """The slot delivers transactions, each at least once, in the order of their commits."""
    LOST = auto()
    """The stream has ended. The next stream repeats every transaction that was not confirmed."""


_LEGAL: Final = frozenset(
    {
        (StreamState.WAITING, StreamState.STREAMING),  # begin: the first stream
        (StreamState.STREAMING, StreamState.LOST),  # end: the connection was lost, or our own code failed
        (StreamState.LOST, StreamState.STREAMING),  # begin: reconnected
    }
)
"""The legal transitions. An open stream cannot begin again, because two streams would deliver in two orders.
"""


class IllegalTransitionError(RuntimeError):
    """A bug: the events of the stream reached the applier in an impossible order."""


class Session:
    """The stream's state, its gap, and the owed reconcile. Only the applier's thread uses it.

    An example: a server starts without a state file, falls behind, and loses its connection::

        call                     state      gap    owed   exact
        Session()                WAITING    yes           no     nothing is known of the map
        begin(1, gap=True)       STREAMING  yes           no     a reconcile is read; nothing is confirmed
        settled()                STREAMING                yes    it is done: the slot follows the map
        owe(gate)                STREAMING         gate   no     the slot was confirmed beyond open tasks
        lose("connection")       LOST              gate   no     no more transactions come
        begin(2, gap=False)      STREAMING         gate   no     a reconcile that passes the gate is read
        settled()                STREAMING                yes    it is done
    """

    def __init__(self) -> None:
        self._state = StreamState.WAITING
        self._gap = True
        self._owed: Gate | None = None
        self.number = 0
        """The stream's number. A confirmation contains it, so that a late one is never sent on the next
        stream.
        """
        self.held: Lsn = Lsn(0)
        """A map that was taken over from the peer includes all transactions up to this position. The slot may
        deliver some of them again.
        """
        self.lost_at = time.monotonic()
        """Monotonic time at which the newest stream ended, or this process started."""
        self.reason = "start"
        """The reason of the next reconcile, as a label for logs and metrics."""

    @property
    def streaming(self) -> bool:
        """Whether the slot delivers transactions."""
        return self._state is StreamState.STREAMING

    @property
    def streamed(self) -> bool:
        """Whether there has been a stream since the process started."""
        return self._state is not StreamState.WAITING

    @property
    def owed(self) -> Gate | None:
        """The gate of the owed reconcile; None if none is owed."""
        return self._owed

    @property
    def exact(self) -> bool:
        """Whether the map is known to include every transaction up to `Requery.done_up_to`."""
        return self.streaming and not self._gap and self._owed is None

    def begin(self, number: int, *, gap: bool, held: Lsn = Lsn(0)) -> None:
        """Record that a stream has begun.

        ``gap`` says whether there may be earlier transactions that were never delivered to this server.
        ``held`` is the position of a map that was taken over from the peer.
        """
        self._enter(StreamState.STREAMING)
        self.number, self._gap, self.held = number, gap, held

    def lose(self, reason: str | None = None) -> None:
        """Record that the stream has ended, and why. If there was no stream, record only the reason."""
        if self.streaming:
            self._enter(StreamState.LOST)
            self.lost_at = time.monotonic()
        self.reason = reason or self.reason

    def miss(self) -> None:
        """Record that there may be transactions that will never be delivered to this server."""
        self._gap = True

    def owe(self, gate: Gate | None) -> None:
        """Record that a reconcile is owed, which must pass this gate. With None, record that no reconcile is
        owed.
        """
        self._owed = gate

    def settled(self) -> None:
        """Record that no task is open: everything that the stream has delivered is in the map."""
        if not self.streaming:
            raise IllegalTransitionError(f"a session that is {self._state.name} cannot be settled")
        self._gap, self._owed = False, None

    def exact_again(self) -> None:
        """Record that the whole mapping has been read. If another reconcile is needed without a new reason,
        its reason is that the stream began again.
        """
        self.reason = "reconnect"

    def _enter(self, state: StreamState) -> None:
        if (self._state, state) not in _LEGAL:
            raise IllegalTransitionError(f"a session that is {self._state.name} cannot become {state.name}")
        self._state = state
