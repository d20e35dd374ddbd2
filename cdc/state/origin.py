"""The origin of the map: the epoch of its revisions, and the position since which it is followed without a
gap.

Resume tokens are made from it and from the store's positions, and are judged by both. The applier's thread
changes it, and the feed reads it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cdc.lsn import Lsn
from cdc.units import Revision

if TYPE_CHECKING:
    from cdc.postgres.timeline import Timeline
    from cdc.state.ledger import Ledger
    from cdc.store.store import Cut


@dataclass(frozen=True, slots=True)
class Reread:
    """A read of the whole mapping that is in the store."""

    began: float
    """Monotonic time before the read."""
    covers: Lsn
    """The read showed the database as it was at this position, or newer."""
    timeline: int | None = None
    """The timeline of the server that was read; None for a standby, whose timeline is unknown."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The value of a `CurrentOrigin` at one moment."""

    epoch: str
    """Identifies an unbroken line of revisions, 32 hexadecimal digits."""
    followed_since: Lsn | None
    """Every transaction from here on has set the position of the entries that it named; None if no
    transaction has been followed yet.
    """
    reread: Reread | None = None
    """The newest read of the whole mapping that is in the store."""
    left: frozenset[str] = frozenset()
    """Epochs of this process that ended because the database went back."""
    encoding: int = 1
    """The version of the rules that encode payloads (`server.payload.ENCODING`), 1 to 255."""
    mapping: int = 0
    """Identifies the mapping (`cdc.mapping.mapping.Mapping.fingerprint`)."""
    forgotten: Revision = Revision(0)
    """Deletes up to this revision may be forgotten, so that no client may go on from an older one."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The leader's map at one moment."""

    revision: Revision
    origin: Origin
    """The origin by which tokens for this map are made and judged."""
    history: Timeline
    """The history that the positions belong to."""
    position: Lsn
    """Every transaction up to here is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this."""
    consistent: bool
    """Whether the database had this map at some moment."""
    count: int
    digest: bytes

    @classmethod
    def of(cls, cut: Cut, origin: Origin) -> Checkpoint:
        """Return the checkpoint of our own map."""
        return cls(
            cut.revision, origin, cut.history, cut.position, cut.seen, cut.consistent, cut.count, cut.digest
        )


class CurrentOrigin:
    """Holds the present `Origin`; each change replaces it, so that a reading is consistent."""

    def __init__(self, ledger: Ledger, encoding: int = 1, mapping: int = 0) -> None:
        """``encoding`` and ``mapping`` are those of `Origin`."""
        self._ledger = ledger
        self._lock = threading.Lock()
        # It is unknown since when an earlier process had followed without a gap. That process ended at this
        # position.
        self._now = Origin(
            ledger.epoch,
            ledger.kept.position or None,
            encoding=encoding,
            mapping=mapping,
            forgotten=ledger.kept.forgotten,
        )

    def now(self) -> Origin:
        """Return the present value; never waits."""
        # Whenever the state file fails, the ledger silently begins a new epoch.
        return replace(self._now, epoch=self._ledger.epoch)

    def timeline_changed(self) -> None:
        """Note that the database has switched its timeline, so that what was read before may be undone."""
        with self._lock:
            self._now = replace(self._now, reread=None)

    def gap(self, up_to: Lsn) -> None:
        """Note that transactions before ``up_to`` have not set the positions of the entries that they named.

        They were not delivered (a new slot), or they were answered by a reconcile. A reconcile finds the
        endpoints that differ now, but not those that changed and changed back. A client of another server may
        hold the state in between.
        """
        with self._lock:
            self._now = replace(self._now, followed_since=max(self._now.followed_since or Lsn(0), up_to))

    def forgets(self, up_to: Revision, position: Lsn) -> None:
        """Note that deletes up to this revision are forgotten. ``position`` is that of the newest transaction
        that named one of them.
        """
        with self._lock:
            since, forgotten = self._now.followed_since, max(self._now.forgotten, up_to)
            since = None if since is None else max(since, position)
            self._now = replace(self._now, followed_since=since, forgotten=forgotten)

    def mirrored(self, theirs: Origin) -> None:
        """Note that the map is a copy of a peer's."""
        with self._lock:
            self._now = replace(self._now, followed_since=theirs.followed_since, forgotten=theirs.forgotten)

    def reread(self, reread: Reread) -> None:
        """Note that a read of the whole mapping has been applied to the store."""
        with self._lock:
            self._now = replace(self._now, reread=reread)

    def broken(self) -> None:
        """Note that the database has gone back. Call it before the ledger begins a new epoch."""
        with self._lock:
            left = self._now.left | {self._ledger.epoch}
            self._now = replace(self._now, left=left, followed_since=None, reread=None)
