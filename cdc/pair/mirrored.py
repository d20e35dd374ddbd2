"""The standby server's copy of its peer's map: endpoints, tombstones, revisions and positions.

Positions make the copy useful after a takeover. With them, clients can resume here with the peer's tokens, as
at any other server of the database, and this server continues to read the slot from the peer's position.
Revisions continue from the peer's, but in a new epoch: the peer may have issued later revisions that were
never copied.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdc.errors import SourceError
from cdc.pair.mirrored_parents import MirroredParents
from cdc.replication.backlog import PeerNews
from cdc.store.digest import entry_digest
from cdc.store.store import Batch

if TYPE_CHECKING:
    from concurrent.futures import Future

    from cdc.lsn import Lsn
    from cdc.pair.mirrored_parents import ParentsPart
    from cdc.state.ledger import Ledger
    from cdc.state.origin import Checkpoint, CurrentOrigin
    from cdc.store.log import Entry
    from cdc.store.store import Store
    from cdc.units import Revision


@dataclass(frozen=True, slots=True)
class Point:
    """A state of the peer's map that the store contains. The peer's stream can continue from there."""

    epoch: str
    timeline: int
    revision: Revision
    followed: Lsn


@dataclass(frozen=True, slots=True)
class PeerState:
    """The peer's map at one moment, and the peer's position; see ``MirrorState`` in the protocol."""

    map: Checkpoint
    followed: Lsn
    owed: str
    """``followed`` and ``owed`` are as in `cdc.pair.pair.Done`."""

    @property
    def point(self) -> Point:
        """The same state, as a place in the peer's stream."""
        return Point(self.map.origin.epoch, self.map.history.timeline, self.map.revision, self.followed)


@dataclass(slots=True)
class MirrorOpened(PeerNews):
    """The peer leads, and its stream begins.

    The result of `reply` says whether the stream should continue.
    """

    reset: bool
    """Whether the whole map follows."""
    reply: Future[bool] = field(repr=False)


@dataclass(slots=True)
class MirrorPart(PeerNews):
    """Some entries, and perhaps the state that they complete.

    Once the state file contains them, `reply` is set.
    """

    entries: list[Entry]
    moved: list[tuple[str, Lsn]]
    """Ids and new positions of entries that have changed only in their positions."""
    seen: Lsn
    state: PeerState | None
    parents: list[ParentsPart]
    reply: Future[bool] = field(repr=False)


@dataclass(frozen=True, slots=True)
class MirrorLost(PeerNews):
    """The peer's stream has ended or could not be opened."""

    leaderless: bool = False
    """Whether the peer has answered that it does not read the slot."""


class Mirrored:
    """Applies the peer's parts to the store. Owned by the applier's thread; any thread may read `point`."""

    def __init__(self, store: Store, ledger: Ledger, origin: CurrentOrigin) -> None:
        self._store = store
        self._ledger = ledger
        self._origin = origin
        self._coming: dict[str, Entry] | None = None
        """The entries of a whole map that is arriving; None while only changes are copied."""
        self._owed = ""
        self.parents = MirroredParents()
        """The memory of parents as of the position in `point`."""
        self.point: Point | None = None
        """The state of the peer's map that the store contains; None if the store's map is not the peer's."""
        self.ours = False
        """Whether the peer has the same mapping and encoding as this server. If not, the copy's positions and
        tombstones are useful, but a reconcile must read everything before clients are served.
        """

    def begin(self, *, reset: bool) -> bool:
        """Prepare for a stream. Return False if the peer would send only changes although the store does not
        have the peer's map.
        """
        self._coming = {} if reset else None
        self.parents = MirroredParents()
        return reset or self.point is not None

    def take(self, part: MirrorPart) -> None:
        """Apply a part to the store and the state file.

        Raises:
            SourceError: the copy differs from the peer's map, which must be sent again.

        """
        for parents in part.parents:
            self.parents.take(parents)
        if self._coming is not None:
            self._collect(self._coming, part)
            if part.state is None:
                return
            self._adopt(self._coming, part.state, part.seen)
            self._coming = None
        else:
            self._copy(part)
        if part.state is not None:
            self._arrive(part.state)

    def part_ways(self) -> None:
        """Record that the store's map is no longer the peer's."""
        self.point = self._coming = None

    def _collect(self, coming: dict[str, Entry], part: MirrorPart) -> None:
        coming.update((entry.id, entry) for entry in part.entries)  # an entry may come again when it changes
        for endpoint_id, position in part.moved:
            coming[endpoint_id].position = max(coming[endpoint_id].position, position)

    def _adopt(self, coming: dict[str, Entry], state: PeerState, seen: Lsn) -> None:
        self.point = None
        self._store.adopt(
            coming.values(),
            state.map.revision,
            history=state.map.history,
            consistent=state.map.consistent,
            position=state.map.position,
            seen=seen,
        )
        self._ledger.new_epoch(self._store)
        self._ledger.adopted()
        self._ledger.bootstrap(None)  # the peer's map includes what our first load had to see
        self._ledger.note(owed=state.owed)
        self._owed = state.owed

    def _copy(self, part: MirrorPart) -> None:
        store, state = self._store, part.state
        position = store.position if state is None else state.map.position
        batch = store.copied(part.entries, store.head if state is None else state.map.revision)
        self._ledger.append(batch, position=position, seen=part.seen)
        consistent = state is not None and state.map.consistent
        store.publish(batch, consistent=consistent, position=position, seen=part.seen)
        by_position: defaultdict[Lsn, list[tuple[Entry, bytes]]] = defaultdict(list)
        for endpoint_id, at in part.moved:
            entry = store.entries.get(endpoint_id)
            if entry is None:
                continue  # a tombstone that is forgotten here, and that the peer is about to forget
            digest = b"" if entry.payload is None else entry_digest(entry.id, entry.payload)
            by_position[at].append((entry, digest))
        for at, moved in by_position.items():
            batch = Batch(store.head, at, at, moved=moved)
            self._ledger.append(batch, position=position, seen=part.seen)
            store.publish(batch, consistent=store.consistent)

    def _arrive(self, state: PeerState) -> None:
        store = self._store
        if (store.digest, len(store)) != (state.map.digest, state.map.count):
            self.point = None
            raise SourceError("mirror", "our copy of the peer's map is not equal to it, and is fetched again")
        if state.owed != self._owed:
            self._owed = state.owed
            self._ledger.note(owed=state.owed)
        self._ledger.follow(state.map.history)
        self.parents.followed(state.followed)
        theirs, ours = state.map.origin, self._origin.now()
        self._origin.mirrored(theirs)
        if theirs.forgotten > store.forgotten:
            self._ledger.note(forgotten=theirs.forgotten)
            store.forget(theirs.forgotten)
        self.ours = (theirs.encoding, theirs.mapping) == (ours.encoding, ours.mapping)
        self.point = state.point
