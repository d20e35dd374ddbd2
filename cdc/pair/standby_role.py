"""The standby server's part of the applier: copies the peer's map while the peer leads, and takes over.

While the peer leads, this server serves no clients. After it has got the slot, it serves its copy as soon as
it has followed the slot up to the end of WAL at the takeover, because clients of the peer may have seen
states up to this position. If the slot was confirmed beyond the copy (because the peer stopped waiting for
this server), a reconcile has to close the gap.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cdc.errors import SlotHeld, SourceError
from cdc.pair.mirrored import MirrorLost, MirrorOpened, MirrorPart
from cdc.postgres.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cdc.freshness import Freshness
    from cdc.lsn import Lsn
    from cdc.mapping.affects_file import Rule
    from cdc.observer import Observer
    from cdc.pair.mirrored import Mirrored
    from cdc.pair.mirrored_parents import Memory
    from cdc.pair.pair import Pair
    from cdc.replication.backlog import PeerNews, Started, StreamEnded
    from cdc.requery.requery import Requery
    from cdc.store.store import Store

_UNHEARD = 90.0
"""Seconds without an answer from the peer after which this server serves its own map. This is longer than the
database takes to end the connection of a frozen leader (wal_sender_timeout, 5 s).
"""
_LEADERLESS = 10.0
"""Seconds after which this server serves its own map if the peer answers that it does not read the slot
either.
"""
TROUBLE = "peer"
_OTHER = (
    "the peer's MAPPING, DB_SCHEMA or version differs from ours: after a takeover everything is read again"
    " before clients are served; start both servers with the same ones"
)


class StandbyRole:
    """Decides when this server copies, takes over and serves. Owned by the applier's thread."""

    def __init__(
        self,
        pair: Pair,
        mirrored: Mirrored,
        requery: Requery,
        store: Store,
        freshness: Freshness,
        observer: Observer,
    ) -> None:
        self._pair = pair
        self._mirrored = mirrored
        self._requery = requery
        self._store = store
        self._freshness = freshness
        self._observer = observer
        self._alone_at = time.monotonic() + _UNHEARD
        self._ready_at: int | None = None
        """The position that the map must reach before it may be served; None if no takeover is in progress.
        """
        self._reported_other = False
        """Whether a difference of the peer's mapping or encoding has been reported."""
        self.owed: Gate | None = None
        """The gate of a reconcile that the peer owes. After a takeover this server owes it."""

    @property
    def waiting(self) -> bool:
        """Whether the peer does all the work, so that the mapping is not even polled here."""
        if not self._pair.peered or self._store.ready:
            return False
        return self._pair.mirroring or time.monotonic() < self._alone_at

    def hear(self, news: PeerNews) -> bool:
        """Handle an event from the peer's stream. Return whether the peer leads."""
        pair = self._pair
        match news:
            case MirrorLost():
                if pair.mirroring or not pair.asked:
                    patience = _LEADERLESS if news.leaderless else _UNHEARD
                    self._alone_at = time.monotonic() + patience
                elif news.leaderless:
                    self._alone_at = min(self._alone_at, time.monotonic() + _LEADERLESS)
                pair.peer_lost()
            case MirrorOpened():
                news.reply.set_result(not pair.leading and self._begin(news))
            case MirrorPart():
                going = pair.mirroring and not pair.leading
                try:
                    if going:
                        self._take(news)
                except SourceError as error:
                    self._observer.trouble(TROUBLE, str(error))
                    going = False
                news.reply.set_result(going)
        return pair.standing_by

    def inherit(self, owed: Gate | None) -> Gate | None:
        """Return the reconcile that is owed after a takeover. It is the peer's if this server has the peer's
        map, otherwise ``owed``.
        """
        return owed if self._mirrored.point is None else self.owed

    def confirmable(self, position: Lsn, *, exact: bool, owed: Gate | None) -> Lsn:
        """Return the position up to which the slot may be confirmed; see `Pair.confirmable`."""
        return self._pair.confirmable(position, exact=exact, owed="" if owed is None else owed.note())

    def part_ways(self) -> None:
        """Record that this server now reads the mapping itself, so that its map is no longer the peer's."""
        self._mirrored.part_ways()

    def _begin(self, opened: MirrorOpened) -> bool:
        pair = self._pair
        if not self._mirrored.begin(reset=opened.reset):
            return False
        pair.mirror()
        self._store.withhold()
        self._requery.abandon()
        self._requery.follow(None)
        if opened.reset:
            self._freshness.rewound()
        self._observer.trouble(TROUBLE, None)
        self._reported_other = False
        return True

    def _take(self, part: MirrorPart) -> None:
        self._mirrored.take(part)
        if part.state is not None:
            self._report_other()
            self._requery.restart_at(part.state.followed)
            self.owed = Gate.parse(part.state.owed)
            self._freshness.applied(part.state.followed)

    def _report_other(self) -> None:
        if self._reported_other is self._mirrored.ours:
            self._reported_other = not self._mirrored.ours
            self._observer.trouble(TROUBLE, _OTHER if self._reported_other else None)

    def lost(self, lost: StreamEnded) -> bool:
        """Record that this server does not have the slot. Return whether the peer has it, so that nothing
        needs to be reported.
        """
        pair = self._pair
        if pair.leading:
            self._alone_at = time.monotonic() + _UNHEARD
        pair.lose()
        self._ready_at = None
        held = pair.peered and isinstance(lost.error, SlotHeld)
        if held and not self._store.ready and not pair.standing_by:
            pair.stand_by()
            self._store.withhold()
        return held

    def look(self) -> None:
        """Begin to serve the copy if it has caught up after a takeover, or if the peer has been away for too
        long.
        """
        if self._ready_at is not None:
            if self._requery.reached >= self._ready_at and self._requery.blind:
                self._ready_at = None
                self._store.loaded()
        elif self._pair.standing_by and not self.waiting:
            self._pair.go_alone()
            if self._mirrored.point is not None and self._mirrored.ours:
                self._store.loaded()  # this is the newest map there is; `staleness` says how old it is

    def take_over(self, started: Started, rules: Iterable[Rule]) -> Memory | None:
        """Begin to lead.

        Returns the memory of parents if the store includes everything up to `Requery.reached` and the slot
        begins at that position or before it. Returns None if a reconcile is needed, because of a gap or for
        another reason.
        """
        self._pair.lead()
        point, self._ready_at = self._mirrored.point, None
        self._mirrored.part_ways()
        if self._reported_other:
            self._reported_other = False
            self._observer.trouble(TROUBLE, None)
        if point is None:
            return None
        self._requery.rewind(self._store.seen)
        if not self._mirrored.ours:
            return None
        if self._requery.reached != point.followed or self.owed is not None:
            return None  # the slot has another history, which may have left the peer's too early
        if not (started.found and 0 < started.confirmed <= point.followed):
            return None
        memory = self._mirrored.parents.memory(rules, point.followed)
        if memory is not None:
            self._ready_at = started.history.end
        return memory
