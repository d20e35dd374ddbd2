"""The pair: two servers of one slot. One reads it and leads, the other one stands by with a copy of its map.

What the standby lacks must still come to it once it has the slot, so the leader lets the slot go only up to
where the standby has everything. It waits for that a second at most: then it goes on alone, and the standby
has a gap, which it finds by itself when it takes over.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.lsn import Lsn

PATIENCE = 1.0
"""Seconds that a standby gets to take over what the leader has, also after its connection was lost."""

_SILENCE = 3.0
"""Seconds; the database is asked each second how far its WAL goes."""


@dataclass(frozen=True, slots=True)
class Done:
    """What the leader has come to."""

    followed: Lsn = 0
    """Every transaction up to here is in its map and in its state file; 0 while it owes a whole reading."""
    owed: str = ""
    """The note of what that reading has to see (`cdc.postgres.gate.Gate.note`)."""


class Standby:
    """A server that mirrors us, in the eyes of `Pair`."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.gone = False
        self.followed: Lsn = 0
        """Up to here it has said that it has everything."""
        self.in_step = False
        """It has once had everything, and since then been a second behind at most."""
        self._target: Lsn = 0
        self._since = 0.0

    def bound(self, followed: Lsn, now: float) -> Lsn:
        """Return up to where the slot may be let go; ``followed`` is our own position."""
        if self.followed >= self._target:
            self._target, self._since, self.in_step = followed, now, self.followed > 0
        elif now - self._since > PATIENCE:
            self.in_step = False
        return min(followed, self.followed) if self.in_step else followed


class Pair:
    """Shared by the applier, the mirror's thread and the event loop; nothing here waits."""

    def __init__(self, *, peered: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """``peered`` says that there is a peer to be mirrored (PEER_ADDRESS)."""
        self.peered = peered
        self._clock = clock
        self._lock = threading.Lock()
        self._standbys: set[Standby] = set()
        self._lost = threading.Event()
        self._lost.set()
        self.done = Done()
        self.standing_by = False
        """The peer leads, and we mirror it: nobody is to be served here."""
        self.asked = False
        """Whether the peer has answered, or could not be reached, since we last lost the slot."""
        self.mirroring = False
        """The stream from the peer stands."""
        self.led = 0
        """How often the slot has become ours."""

    # --- who leads

    @property
    def leading(self) -> bool:
        """Whether we read the slot."""
        return not self._lost.is_set()

    def wait_lost(self, timeout: float) -> bool:
        """Wait until we do not lead; False if not within so many seconds."""
        return self._lost.wait(timeout)

    def sure(self, silence: float) -> bool:
        """Tell whether the peer cannot have taken over unnoticed, where our database has been silent for so
        many seconds.

        Who was frozen finds the slot lost only after waking up, and must not serve anybody new before that.
        """
        if not self.peered:
            return True
        return silence < _SILENCE if self.leading else self.asked

    def lead(self) -> None:
        """Note that the slot is ours."""
        self.standing_by = False
        self.led += 1
        self._lost.clear()

    def lose(self) -> None:
        """Note that it is not, or not any more."""
        if self.leading:
            self.asked = False
        self._lost.set()
        self._wake()

    # --- leading: what the standbys have

    def join(self, wake: Callable[[], object]) -> Standby:
        """Take in a standby; ``wake`` is called from another thread when there is news for it."""
        standby = Standby(wake)
        with self._lock:
            self._standbys.add(standby)
        return standby

    def leave(self, standby: Standby) -> None:
        """Note that its stream has ended; it may be back in a moment, or about to take over."""
        standby.gone = True

    def confirmable(self, position: Lsn, *, exact: bool, owed: str = "") -> Lsn:
        """Return up to where the slot may be let go, where ``position`` is up to where we are done.

        ``exact`` says that the map does hold everything up to there. If not, no standby can be exact either,
        and there is nothing to wait for.
        """
        done, now = Done(position if exact else 0, owed), self._clock()
        with self._lock:
            news, self.done = done != self.done, done
            bounds = [standby.bound(position, now) for standby in self._standbys]
            self._standbys = {one for one in self._standbys if one.in_step or not one.gone}
        if news:
            self._wake()
        return min(bounds, default=position) if exact else position

    def standbys(self) -> list[Standby]:
        """Return those whose streams stand."""
        with self._lock:
            return [standby for standby in self._standbys if not standby.gone]

    # --- for whoever watches

    @property
    def in_step(self) -> bool:
        """Whether one of the two servers mirrors the other, so that both hold the same map."""
        return self.mirroring if self.standing_by else any(one.in_step for one in self.standbys())

    @property
    def behind(self) -> int | None:
        """Bytes of WAL that are in our map and not in that of the standby; None where there is none."""
        followed = [one.followed for one in self.standbys() if one.followed]
        return max(0, self.done.followed - max(followed)) if followed else None

    def _wake(self) -> None:
        for standby in self.standbys():
            standby.wake()
