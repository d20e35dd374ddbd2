"""The origin of the map: the epoch of its revisions, and the position since which the slot has been followed
without a gap.

Resume tokens are made from the origin and from the store's positions, and are judged by both. The applier's
thread changes the origin, and the feed reads it.
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
    """A position. The read showed the database as it was at this position or later."""
    timeline: int | None = None
    """The timeline of the server that was read; None for a standby, whose timeline is unknown."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The value of a `CurrentOrigin` at one moment."""

    epoch: str
    """Identifies an unbroken line of revisions, 32 hexadecimal digits."""
    followed_since: Lsn | None
    """A position. Every transaction after it has set the positions of the entries that it named. None if no
    transaction has been followed yet.
    """
    reread: Reread | None = None
    """The newest read of the whole mapping that is in the store."""
    left: frozenset[str] = frozenset()
    """Epochs of this process that ended because the database lost transactions (a restore or a failover)."""
    encoding: int = 1
    """The version of the rules that encode payloads (`server.payload.ENCODING`), 1 to 255."""
    mapping: int = 0
    """Identifies the mapping (`cdc.mapping.mapping.Mapping.fingerprint`)."""
    forgotten: Revision = Revision(0)
    """Deletes up to this revision may be forgotten, so that no client may resume from an older revision."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The leader's map at one moment."""

    revision: Revision
    origin: Origin
    """The origin with which tokens for this map are made and judged."""
    history: Timeline
    """The history that the positions belong to."""
    position: Lsn
    """Every transaction up to this position is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this position."""
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
    """Holds the current `Origin`.

    Each change replaces the whole value, so that readers see a consistent one.
    """

    def __init__(self, ledger: Ledger, encoding: int = 1, mapping: int = 0) -> None:
        """``encoding`` and ``mapping`` are as in `Origin`."""
        self._ledger = ledger
        self._lock = threading.Lock()
        # It is unknown from which position on an earlier process had followed the slot without a gap. So the
        # position at which that process ended is used.
        self._now = Origin(
            ledger.epoch,
            ledger.kept.position or None,
            encoding=encoding,
            mapping=mapping,
            forgotten=ledger.kept.forgotten,
        )

    def now(self) -> Origin:
        """Return the current value. Never waits."""
        # When the state file fails, the ledger begins a new epoch without a call of this object.
        return replace(self._now, epoch=self._ledger.epoch)

    def timeline_changed(self) -> None:
        """Record that the database has changed to another timeline, which may lack transactions that were
        read before.
        """
        with self._lock:
            self._now = replace(self._now, reread=None)

    def gap(self, up_to: Lsn) -> None:
        """Record that transactions before ``up_to`` have not set the positions of the entries that they
        named.

        They were not delivered (with a new slot), or a reconcile took their place. A reconcile finds the
        endpoints that now differ, but not those that changed and changed back. A client of another server may
        have received the state in between.
        """
        with self._lock:
            self._now = replace(self._now, followed_since=max(self._now.followed_since or Lsn(0), up_to))

    def forgets(self, up_to: Revision, position: Lsn) -> None:
        """Record that deletes up to this revision are forgotten. ``position`` is the position of the newest
        transaction that named one of the deleted endpoints.
        """
        with self._lock:
            since, forgotten = self._now.followed_since, max(self._now.forgotten, up_to)
            since = None if since is None else max(since, position)
            self._now = replace(self._now, followed_since=since, forgotten=forgotten)

    def mirrored(self, theirs: Origin) -> None:
        """Record that the map is a copy of a peer's."""
        with self._lock:
            self._now = replace(self._now, followed_since=theirs.followed_since, forgotten=theirs.forgotten)

    def reread(self, reread: Reread) -> None:
        """Record that a read of the whole mapping has been applied to the store."""
        with self._lock:
            self._now = replace(self._now, reread=reread)

    def broken(self) -> None:
        """Record that the database has lost transactions (a restore or a failover). Call this before the
        ledger begins a new epoch.
        """
        with self._lock:
            left = self._now.left | {self._ledger.epoch}
            self._now = replace(self._now, left=left, followed_since=None, reread=None)
