"""The pair: two servers of one slot. The leader reads the slot, the other stands by with a copy of its map.

After a takeover the slot must redeliver what the standby lacks, so the leader confirms the slot only up to
where the standby has everything. It waits for the standby for a second at most. Then it goes on alone, and
the standby has a gap, which it notices when it takes over.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable


PATIENCE = 1.0
"""Seconds for which the leader waits for a standby to catch up, also after its connection was lost."""

_SILENCE = 3.0
"""Seconds; the database is asked each second how far its WAL goes."""


class PairRole(Enum):
    """What a server is in its pair; one without a peer is only ever ALONE or LEADING.

    ``lead`` leads to LEADING from anywhere. The other transitions::

        LEADING    lose      ALONE       the slot is lost, or the process has just started
        ALONE      stand_by  WAITING     the peer has the slot
        ALONE      mirror    MIRRORING   the peer's stream begins
        WAITING    mirror    MIRRORING
        MIRRORING  peer_lost WAITING     the peer's stream has ended
        WAITING    go_alone  ALONE       nothing was heard of the peer for too long
        MIRRORING  go_alone  ALONE
    """

    ALONE = auto()
    """It does not read the slot, and serves what it holds."""
    LEADING = auto()
    """It reads the slot."""
    WAITING = auto()
    """The peer leads, and its map is not mirrored here: nobody is served here."""
    MIRRORING = auto()
    """The peer leads, and its stream is open: nobody is served here."""


@dataclass(frozen=True, slots=True)
class Done:
    """How far the leader is."""

    followed: Lsn = Lsn(0)
    """Every transaction up to here is in its map and in its state file; 0 while it owes a whole reading."""
    owed: str = ""
    """What that whole reading has to see, as written by `cdc.postgres.gate.Gate.note`."""


class Standby:
    """A server that mirrors us, in the eyes of `Pair`."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.gone = False
        """Its stream has ended."""
        self.followed: Lsn = Lsn(0)
        """It has acknowledged that it has everything up to here."""
        self.in_step = False
        """It has once had everything, and since then been a second behind at most."""
        self._target: Lsn = Lsn(0)
        self._since = 0.0

    def acknowledge(self, followed: Lsn) -> None:
        """Note that it has everything up to ``followed``; 0 while it does not say."""
        self.followed = followed

    def bound(self, followed: Lsn, now: float) -> Lsn:
        """Return the position up to which the slot may be confirmed; ``followed`` is the leader's own."""
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
        self._role = PairRole.ALONE
        self.done = Done()
        self.asked = False
        """Whether the peer has answered, or could not be reached, since we last lost the slot."""
        self.led = 0
        """How often the slot has become ours."""

    # --- who leads

    @property
    def leading(self) -> bool:
        """Whether we read the slot."""
        return self._role is PairRole.LEADING

    @property
    def standing_by(self) -> bool:
        """Whether the peer leads, so that nobody is to be served here."""
        return self._role in (PairRole.WAITING, PairRole.MIRRORING)

    @property
    def mirroring(self) -> bool:
        """Whether the peer's stream is open."""
        return self._role is PairRole.MIRRORING

    def wait_lost(self, timeout: float) -> bool:
        """Wait until we do not lead; False if not within so many seconds."""
        return self._lost.wait(timeout)

    def sure(self, silence: float) -> bool:
        """Tell whether we may serve new clients, given for how many seconds our database has been silent.

        A process that was frozen finds the slot lost only after it wakes up. Before that its peer may have
        taken over, so it must not serve anybody new.
        """
        if not self.peered:
            return True
        return silence < _SILENCE if self.leading else self.asked

    def lead(self) -> None:
        """Note that the slot is ours."""
        self._role = PairRole.LEADING
        self.led += 1
        self._lost.clear()

    def lose(self) -> None:
        """Note that the slot is not ours, or not any more."""
        if self.leading:
            self.asked = False
            self._role = PairRole.ALONE
        self._lost.set()
        self._wake()

    def stand_by(self) -> None:
        """Note that the peer has the slot; not while we lead."""
        if self._role is PairRole.ALONE:
            self._role = PairRole.WAITING

    def mirror(self) -> None:
        """Note that the peer's stream begins, and that its map takes the place of ours; not while we lead."""
        if not self.leading:
            self._role = PairRole.MIRRORING
        self.asked = True

    def peer_lost(self) -> None:
        """Note that the peer's stream has ended, or could not be had."""
        if self._role is PairRole.MIRRORING:
            self._role = PairRole.WAITING
        self.asked = True

    def go_alone(self) -> None:
        """Note that the peer did not come back in time: this server may serve its own map."""
        if self.standing_by:
            self._role = PairRole.ALONE

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
        """Return the position up to which the slot may be confirmed; we are done up to ``position``.

        ``exact`` says that the map holds everything up to there. If it does not, no standby can be exact
        either, and there is nothing to wait for.
        """
        done, now = Done(position if exact else Lsn(0), owed), self._clock()
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
