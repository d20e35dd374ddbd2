"""The pair: two servers with one slot. The leader reads the slot; the standby server copies the leader's map.

After a takeover the slot must deliver again all transactions that the standby server lacks. So the leader
confirms the slot only up to the position that the standby server has reached. If the standby server falls
behind by more than a second, the leader stops waiting for it. The standby server then has a gap, which it
detects when it takes over.
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
"""Seconds that the leader waits for a standby server to catch up, even after the connection to it was lost.
"""

_SILENCE = 3.0
"""Seconds without an answer from the database after which a leader may have lost the slot. The leader queries
the database each second.
"""


class PairRole(Enum):
    """The role of a server in its pair. A server without a peer is ALONE or LEADING.

    `Pair.lead` changes any role to LEADING. The other transitions::

        LEADING    lose      ALONE       the slot is lost, or the process has just started
        ALONE      stand_by  WAITING     the peer has the slot
        ALONE      mirror    MIRRORING   the peer's stream begins
        WAITING    mirror    MIRRORING
        MIRRORING  peer_lost WAITING     the peer's stream has ended
        WAITING    go_alone  ALONE       the peer has not answered for too long
        MIRRORING  go_alone  ALONE
    """

    ALONE = auto()
    """This server does not read the slot, and serves the map that it has."""
    LEADING = auto()
    """This server reads the slot."""
    WAITING = auto()
    """The peer leads, and its map is not copied here. This server serves no clients."""
    MIRRORING = auto()
    """The peer leads, and its map is copied here. This server serves no clients."""


@dataclass(frozen=True, slots=True)
class Done:
    """The leader's progress, as it reports it to standby servers."""

    followed: Lsn = Lsn(0)
    """The leader's map and state file include every transaction up to this position; 0 while the leader owes
    a reconcile.
    """
    owed: str = ""
    """The gate of the owed reconcile, as written by `cdc.postgres.gate.Gate.note`; empty if none is owed."""


class StandbyServer:
    """A server that copies our map: its position, and whether the slot's confirmation waits for it."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.gone = False
        """Whether its stream has ended."""
        self.followed: Lsn = Lsn(0)
        """The newest position that the standby server has acknowledged. Its copy has everything up to it."""
        self.in_step = False
        """Whether it has caught up once, and has been at most `PATIENCE` seconds behind since then."""
        self._target: Lsn = Lsn(0)
        """The leader's position that it has to reach next."""
        self._since = 0.0
        """Monotonic time at which the wait for `_target` began."""

    def acknowledge(self, followed: Lsn) -> None:
        """Record that its copy includes everything up to ``followed``, which is 0 while unknown."""
        self.followed = followed

    def bound(self, followed: Lsn, now: float) -> Lsn:
        """Return the position up to which the slot may be confirmed. ``followed`` is the leader's own
        position.
        """
        if self.followed >= self._target:
            self._target, self._since, self.in_step = followed, now, self.followed > 0
        elif now - self._since > PATIENCE:
            self.in_step = False
        return min(followed, self.followed) if self.in_step else followed


class Pair:
    """The role of this server, and its standby servers. The applier, the mirror's thread and the event loop
    share it. Only `wait_lost` blocks.
    """

    def __init__(self, *, peered: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """``peered`` says whether there is a peer (PEER_ADDRESS)."""
        self.peered = peered
        self._clock = clock
        self._lock = threading.Lock()
        self._standbys: set[StandbyServer] = set()
        self._lost = threading.Event()
        self._lost.set()
        self._role = PairRole.ALONE
        self.done = Done()
        self.asked = False
        """Whether the peer has answered, or has proved unreachable, since this server last lost the slot."""
        self.led = 0
        """How many times this server has begun to lead."""

    # --- who leads

    @property
    def leading(self) -> bool:
        """Whether this server reads the slot."""
        return self._role is PairRole.LEADING

    @property
    def standing_by(self) -> bool:
        """Whether the peer leads, so that this server must not serve clients."""
        return self._role in (PairRole.WAITING, PairRole.MIRRORING)

    @property
    def mirroring(self) -> bool:
        """Whether the peer's stream is open."""
        return self._role is PairRole.MIRRORING

    def wait_lost(self, timeout: float) -> bool:
        """Wait until this server does not lead; return False if it still does after ``timeout`` seconds."""
        return self._lost.wait(timeout)

    def sure(self, silence: float) -> bool:
        """Return whether this server may accept new clients after its database has not answered for
        ``silence`` seconds.

        A process that was frozen may have lost the slot to its peer. It detects this only some time after it
        wakes up, and must not accept clients before.
        """
        if not self.peered:
            return True
        return silence < _SILENCE if self.leading else self.asked

    def lead(self) -> None:
        """Record that this server reads the slot now."""
        self._role = PairRole.LEADING
        self.led += 1
        self._lost.clear()

    def lose(self) -> None:
        """Record that this server does not read the slot."""
        if self.leading:
            self.asked = False
            self._role = PairRole.ALONE
        self._lost.set()
        self._wake()

    def stand_by(self) -> None:
        """Record that the peer has the slot. Does nothing unless this server is ALONE."""
        if self._role is PairRole.ALONE:
            self._role = PairRole.WAITING

    def mirror(self) -> None:
        """Record that the peer's stream begins, and that the peer's map replaces ours. A leader stays a
        leader.
        """
        if not self.leading:
            self._role = PairRole.MIRRORING
        self.asked = True

    def peer_lost(self) -> None:
        """Record that the peer's stream has ended or could not be opened."""
        if self._role is PairRole.MIRRORING:
            self._role = PairRole.WAITING
        self.asked = True

    def go_alone(self) -> None:
        """Record that the peer has not come back in time, so this server serves its own map."""
        if self.standing_by:
            self._role = PairRole.ALONE

    # --- leading: the standby servers and their progress

    def join(self, wake: Callable[[], object]) -> StandbyServer:
        """Add a standby server. When `done` has changed, ``wake`` is called, perhaps from another thread."""
        standby = StandbyServer(wake)
        with self._lock:
            self._standbys.add(standby)
        return standby

    def leave(self, standby: StandbyServer) -> None:
        """Record that a standby server's stream has ended. The server may reconnect soon, or take over."""
        standby.gone = True

    def confirmable(self, position: Lsn, *, exact: bool, owed: str = "") -> Lsn:
        """Return the position up to which the slot may be confirmed, at most ``position``.

        ``position`` is the leader's own limit. ``exact`` says whether the map includes everything up to
        there. If it does not, no standby server's map can, and there is nothing to wait for.
        """
        done, now = Done(position if exact else Lsn(0), owed), self._clock()
        with self._lock:
            news, self.done = done != self.done, done
            bounds = [standby.bound(position, now) for standby in self._standbys]
            self._standbys = {one for one in self._standbys if one.in_step or not one.gone}
        if news:
            self._wake()
        return min(bounds, default=position) if exact else position

    def standbys(self) -> list[StandbyServer]:
        """Return the standby servers whose streams are open."""
        with self._lock:
            return [standby for standby in self._standbys if not standby.gone]

    # --- for metrics and the status page

    @property
    def in_step(self) -> bool:
        """Whether one of the two servers mirrors the other, so that both hold the same map."""
        return self.mirroring if self.standing_by else any(one.in_step for one in self.standbys())

    @property
    def behind(self) -> int | None:
        """Bytes of WAL by which the standby server's map is behind the leader's; None without a standby
        server.
        """
        followed = [one.followed for one in self.standbys() if one.followed]
        return max(0, self.done.followed - max(followed)) if followed else None

    def _wake(self) -> None:
        for standby in self.standbys():
            standby.wake()
