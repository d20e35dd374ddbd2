"""Where the map comes from: by what revisions it is counted, and since where it is followed without a gap.

With the store's positions that is what resume tokens are made of and judged by. The applier's thread tells,
the feed asks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.state.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Reread:
    """A complete reading of the mapping."""

    began: float
    """Monotonic time before it."""
    covers: Lsn
    """It showed the database as it was at this position, or newer."""
    timeline: int | None = None
    """The timeline that the server wrote which was read; None where that was a standby, which does not say.
    """


@dataclass(frozen=True, slots=True)
class Origin:
    """One reading of a `CurrentOrigin`."""

    epoch: str
    """Names the unbroken line of revisions, 32 hexadecimal digits."""
    followed_since: Lsn | None
    """Each transaction from here on has marked the entries that it names with its position; None where
    nothing has been followed yet.
    """
    reread: Reread | None = None
    """The newest that is in the store."""
    left: frozenset[str] = frozenset()
    """Epochs of this process whose history the database has gone back on."""
    encoding: int = 1
    """The rules by which the map's payloads are made (`server.payload.ENCODING`), 1 to 255."""
    mapping: int = 0
    """By which mapping of what they are made (`cdc.mapping.mapping.Mapping.fingerprint`)."""


class CurrentOrigin:
    """Holds the present `Origin`; each change replaces it, so that a reading is consistent."""

    def __init__(self, ledger: Ledger, encoding: int = 1, mapping: int = 0) -> None:
        """``encoding`` and ``mapping`` are what `Origin` says of them."""
        self._ledger = ledger
        self._lock = threading.Lock()
        # What an earlier process followed without a gap is not known; that it ended here is.
        self._now = Origin(ledger.epoch, ledger.kept.position or None, encoding=encoding, mapping=mapping)

    def now(self) -> Origin:
        """Read it; waits for nobody."""
        # The ledger has a new epoch whenever the state file fails, and tells nobody.
        return replace(self._now, epoch=self._ledger.epoch)

    def timeline_changed(self) -> None:
        """Note that the database goes on on another timeline: what was read on the last one may be undone."""
        with self._lock:
            self._now = replace(self._now, reread=None)

    def gap(self, up_to: Lsn) -> None:
        """Note that what transactions before ``up_to`` named is not known one by one.

        They never came (a new slot), or were answered by comparing everything, which finds what is different
        now but not what had changed and changed back: another server's client may hold the state in between.
        """
        with self._lock:
            self._now = replace(self._now, followed_since=max(self._now.followed_since or Lsn(0), up_to))

    def mirrored(self, followed_since: Lsn) -> None:
        """Note that the map is a peer's, with the positions that transactions from there on have marked."""
        with self._lock:
            self._now = replace(self._now, followed_since=followed_since or None)

    def reread(self, reread: Reread) -> None:
        """Note that the whole mapping was read, and is in the store."""
        with self._lock:
            self._now = replace(self._now, reread=reread)

    def broken(self) -> None:
        """Note that the database has gone back; to be called before the ledger begins another epoch."""
        with self._lock:
            left = self._now.left | {self._ledger.epoch}
            self._now = replace(self._now, left=left, followed_since=None, reread=None)
