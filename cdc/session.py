"""The applier's session: is the stream open, and what does the map lack that the stream will not deliver?

The slot is confirmed, and freshness is claimed, only while the session is exact. Three things are in the way:
there is no stream; a gap, since transactions have passed that were never delivered here; or a debt, since the
slot was allowed to let go of WAL whose changes had not been read. One reconcile fills a gap and pays a debt.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.postgres.gate import Gate


class StreamState(Enum):
    """Whether transactions come."""

    WAITING = auto()
    """There has been no stream since the process started."""
    STREAMING = auto()
    """Transactions come, each at least once, in the order of their commits."""
    LOST = auto()
    """The stream has ended. The next one delivers again whatever was not confirmed."""


_LEGAL: Final = frozenset(
    {
        (StreamState.WAITING, StreamState.STREAMING),  # begin: the first stream
        (StreamState.STREAMING, StreamState.LOST),  # end: the connection, or a fault of ours
        (StreamState.LOST, StreamState.STREAMING),  # begin: reconnected
    }
)
"""The transitions. A stream that is open cannot begin: two would deliver in two orders."""


class IllegalTransitionError(RuntimeError):
    """A fault of ours: the applier heard of its stream in an order that cannot be."""


class Session:
    """The state of the stream, and what only a reconcile can make good. Used by the applier's thread alone.

    An example: a server starts without a state file, falls behind, and loses its connection::

        call                     state      gap    owed   exact
        Session()                WAITING    yes           no     nothing is known of the map
        begin(1, gap=True)       STREAMING  yes           no     a reconcile is read; nothing is confirmed
        settled()                STREAMING                yes    it is done: the slot follows the map
        owe(gate)                STREAMING         gate   no     WAL of open tasks was let go
        lose("connection")       LOST              gate   no     no more transactions come
        begin(2, gap=False)      STREAMING         gate   no     a reconcile that passes the gate is read
        settled()                STREAMING                yes    it is done
    """

    def __init__(self) -> None:
        self._state = StreamState.WAITING
        self._gap = True
        self._owed: Gate | None = None
        self.number = 0
        """The stream's number: a confirmation names it, so that none reaches the stream after it."""
        self.held: Lsn = Lsn(0)
        """Transactions up to here may be delivered once more, and are in the map that was taken over."""
        self.lost_at = time.monotonic()
        """Since when there has been no stream, as monotonic time."""
        self.reason = "start"
        """Why the next reconcile is needed: a label in logs and metrics."""

    @property
    def streaming(self) -> bool:
        """Whether transactions come."""
        return self._state is StreamState.STREAMING

    @property
    def streamed(self) -> bool:
        """Whether there has been a stream since the process started."""
        return self._state is not StreamState.WAITING

    @property
    def owed(self) -> Gate | None:
        """What the reconcile must see in whose place WAL was let go; None where nothing is owed."""
        return self._owed

    @property
    def exact(self) -> bool:
        """Whether the map holds everything up to `Requery.done_up_to`, so that this may be claimed."""
        return self.streaming and not self._gap and self._owed is None

    def begin(self, number: int, *, gap: bool, held: Lsn = Lsn(0)) -> None:
        """Note that a stream has begun.

        ``gap`` says that transactions may have passed before it that were never delivered here. ``held`` is
        the position of a map that was taken over from the peer.
        """
        self._enter(StreamState.STREAMING)
        self.number, self._gap, self.held = number, gap, held

    def lose(self, reason: str | None = None) -> None:
        """Note that there is no stream; does nothing but note the reason where there was none."""
        if self.streaming:
            self._enter(StreamState.LOST)
            self.lost_at = time.monotonic()
        self.reason = reason or self.reason

    def miss(self) -> None:
        """Note that transactions may have passed that will not be delivered here."""
        self._gap = True

    def owe(self, gate: Gate | None) -> None:
        """Note what a durable note promises: a reconcile that passes this gate, or nothing."""
        self._owed = gate

    def settled(self) -> None:
        """Note that everything which was open when the stream began, or came since, has been read."""
        if not self.streaming:
            raise IllegalTransitionError(f"a session that is {self._state.name} cannot be settled")
        self._gap, self._owed = False, None

    def exact_again(self) -> None:
        """Note that everything was read: if it has to be read once more, that is for a reconnect."""
        self.reason = "reconnect"

    def _enter(self, state: StreamState) -> None:
        if (self._state, state) not in _LEGAL:
            raise IllegalTransitionError(f"a session that is {self._state.name} cannot become {state.name}")
        self._state = state
