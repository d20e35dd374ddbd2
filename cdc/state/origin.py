"""Where the map comes from: by what revisions it is counted, which history of which database it follows, and
since where without a gap.

That is what resume tokens are made of and judged by. The follower's thread tells, the feed asks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cdc.postgres.timeline import Timeline

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.state.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Reread:
    """A complete reading of the mapping."""

    began: float
    """Monotonic time before it."""
    covers: Lsn
    """It showed the database as it was at this position, or newer."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One reading of a `CurrentOrigin`."""

    epoch: str
    """Names the unbroken line of revisions, 32 hexadecimal digits."""
    history: Timeline
    followed_since: Lsn
    """Each transaction from here on has marked the entries that it names with its position."""
    reread: Reread | None = None
    """The newest that is in the store."""
    left: frozenset[str] = frozenset()
    """Epochs of this process whose history the database has gone back on."""
    encoding: int = 1
    """The rules by which the map's payloads are made (`server.payload.ENCODING`), 1 to 255."""


class CurrentOrigin:
    """Holds the present `Origin`; each change replaces it, so that a reading is consistent."""

    def __init__(self, ledger: Ledger, encoding: int = 1) -> None:
        """``encoding`` is what `Origin.encoding` says."""
        self._ledger = ledger
        self._lock = threading.Lock()
        # What an earlier process followed without a gap is not known; that it ended here is.
        self._now = Origin(ledger.epoch, Timeline(), ledger.kept.position, encoding=encoding)

    def now(self) -> Origin:
        """Read it; waits for nobody."""
        # The ledger has a new epoch whenever the state file fails, and tells nobody.
        return replace(self._now, epoch=self._ledger.epoch)

    def following(self, history: Timeline) -> None:
        """Note whose slot is read from now on."""
        with self._lock:
            self._now = replace(self._now, history=history)

    def gap(self, up_to: Lsn) -> None:
        """Note that what transactions before ``up_to`` named is not known one by one.

        They never came (a new slot), or were answered by comparing everything, which finds what is different
        now but not what had changed and changed back: another server's client may hold the state in between.
        """
        with self._lock:
            self._now = replace(self._now, followed_since=max(self._now.followed_since, up_to))

    def mirrored(self, followed_since: Lsn) -> None:
        """Note that the map is a peer's, with the positions that transactions from there on have marked."""
        with self._lock:
            self._now = replace(self._now, followed_since=followed_since)

    def reread(self, began: float, covers: Lsn, system: str) -> None:
        """Note that the whole mapping was read, on a server of ``system``, and is in the store."""
        with self._lock:
            history = self._now.history if self._now.history.system else Timeline(system)
            self._now = replace(self._now, history=history, reread=Reread(began, covers))

    def broken(self) -> None:
        """Note that the database has gone back; to be called before the ledger begins another epoch."""
        with self._lock:
            self._now = replace(self._now, left=self._now.left | {self._ledger.epoch}, followed_since=0)
