"""One standby server's stream, without the I/O: turns walks over the store into ``MirrorResponse`` messages.

It does for a standby server what `server.rpc.feed` does for a gateway. In addition it sends tombstones,
positions (even if an endpoint's position changes and its bytes do not), and the position up to which the slot
has been followed. After each batch with a state, the standby server's map is equal to this server's map.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.lsn import Lsn
from cdc.mapping.parents import Followed, Untold
from cdc.state.origin import Checkpoint
from cdc.store.catchup import Catchup
from cdc.store.cursor import Cursor
from cdc.units import Revision
from server.rpc.feed import ENTRIES, MESSAGE_BYTES, duration
from server.rpc.feed_requests import MisuseError
from server.rpc.map_messages import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc.freshness import Freshness
    from cdc.mapping.parents import Loaded, Parents
    from cdc.pair.pair import Done, Pair, StandbyServer
    from cdc.state.origin import CurrentOrigin
    from cdc.store.cursor import Part
    from cdc.store.log import Entry
    from cdc.store.store import Cut, Store

_PACE: Final = 0.02
"""Minimum number of seconds between two states if only positions have changed."""
_ROWS: Final = 5_000
"""Maximum number of rows in one message about parents."""
_PARENTS: Final = 500
"""Maximum number of messages about parents in one batch."""
_ENTRY_BYTES: Final = 64
"""Maximum size of an entry without its id and payload, in bytes."""


class MirrorFeed:
    """The state of one standby server's stream."""

    def __init__(
        self,
        store: Store,
        origin: CurrentOrigin,
        parents: Parents | None,
        pair: Pair,
        standby: StandbyServer,
        interval: float,
        freshness: Freshness,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A state is sent at least every ``interval`` seconds.

        If ``parents`` are given, they are sent as well.
        """
        self._freshness = freshness
        self._store = store
        self._origin = origin
        self._parents = parents
        self._untold = Untold(standby.wake)
        self._pair = pair
        self._standby = standby
        self._interval = interval
        self._clock = clock
        self._walk: Cursor | Catchup | None = None
        self._line = "", 0
        """The epoch and the timeline of the newest state that was sent."""
        self._told: tuple[int, Done] | None = None
        self._told_at = 0.0
        self._told_most = 0
        self.more = True
        """Whether `take` may have more messages at once."""
        self._moved: dict[str, Entry] = {}
        """Entries whose positions have changed since they were sent."""
        self._unlooked: pb.MirrorOpen | None = None
        """The opening message of a standby server that resumes; None once `look_back` has been called."""

    def open(self, opening: pb.MirrorOpen | None = None) -> pb.MirrorResponse:
        """Begin with the changes since the standby's map, or with everything if it has no map of ours."""
        self.close()
        store = self._store
        self._line, self._told = self._present(), None
        resumed = opening is not None and (opening.epoch, opening.timeline) == self._line
        resumed = resumed and opening is not None and store.forgotten <= opening.revision <= store.head
        self._moved, self._unlooked = {}, None
        with store.lock:
            store.movements.append(self._moved)
        if opening is not None and resumed:
            self._unlooked = opening
            self._walk = Cursor(store, Revision(opening.revision))
        else:
            self._walk = Catchup(store, Lsn(-1))  # below every position, so tombstones are sent too
        self._standby.acknowledge(Lsn(0))
        if self._parents is not None:
            self._untold = self._parents.mirror(self._standby.wake)
        return pb.MirrorResponse(
            opened=pb.MirrorOpened(reset=not resumed, progress_interval=duration(self._interval))
        )

    def look_back(self) -> None:
        """Search all entries for positions that have changed since the standby server was last connected.

        Call this in another thread, so that no stream waits. If it was not called, `take` does the same.
        """
        opening, self._unlooked = self._unlooked, None
        if opening is not None:
            self._store.moved_before(self._moved, Lsn(opening.followed), Revision(opening.revision))

    def take(self) -> Iterator[pb.MirrorResponse]:
        """Yield the next messages. There are none if there is nothing to send (see `more` and `patience`)."""
        walk = self._walk
        if walk is None:
            raise RuntimeError("not opened")
        self.look_back()
        if self._present() != self._line:  # the epoch or the timeline has changed
            yield self.open()
            return
        done = self._pair.done  # read before the walk, so that the walk finds everything up to it
        part = walk.read(ENTRIES)
        cut = part.arrival
        if cut is not None and isinstance(walk, Catchup):
            self._walk = walk.finish()
        news = cut is not None and (self._told is None or bool(part.entries) or not self.patience)
        self.more = part.more
        yield from self._messages(part, cut if news else None, done)

    def _present(self) -> tuple[str, int]:
        return self._origin.now().epoch, self._store.history.timeline

    @property
    def patience(self) -> float:
        """Seconds until the next message is due, if nothing is published sooner."""
        done = self._parents is not None and self._told is not None and self._told[1] != self._pair.done
        outdated = self._told is None or done or self._moved or self._untold.items
        return max(0.0, self._told_at + (_PACE if outdated else self._interval) - self._clock())

    def acknowledge(self, acknowledge: pb.MirrorAcknowledge) -> None:
        """Record the position up to which the standby server has everything.

        Raises:
            MisuseError: the position was not sent on this stream.

        """
        if acknowledge.followed > self._told_most:
            raise MisuseError("acknowledged a position that was not sent on this stream")
        self._standby.acknowledge(Lsn(acknowledge.followed))

    def close(self) -> None:
        """Remove the walk from the store, and the mirror from the memory of parents."""
        if self._parents is not None:
            self._parents.unmirror(self._untold)
        if self._walk is not None:
            self._walk.close()
            self._walk = None
            with self._store.lock:
                self._store.movements[:] = [one for one in self._store.movements if one is not self._moved]

    def _messages(self, part: Part, cut: Cut | None, done: Done) -> Iterator[pb.MirrorResponse]:
        entries = [_entry(entry) for entry in part.entries]
        if cut is not None:
            entries += self._movements(cut.revision)
        batch, room = pb.MirrorBatch(seen=self._store.seen), MESSAGE_BYTES
        for entry in entries:
            size = _ENTRY_BYTES + len(entry.endpoint_id.encode()) + len(entry.endpoint)
            if size > room and batch.entries:
                yield pb.MirrorResponse(batch=batch)
                batch, room = pb.MirrorBatch(seen=batch.seen), MESSAGE_BYTES
            room -= size
            batch.entries.append(entry)
        if cut is not None:
            news = [] if self._parents is None else self._parents.news(self._untold)
            for parents in told_of(news):
                if len(batch.parents) >= _PARENTS or batch.ByteSize() > MESSAGE_BYTES // 2:
                    yield pb.MirrorResponse(batch=batch)
                    batch = pb.MirrorBatch(seen=batch.seen)
                batch.parents.append(parents)
            batch.seen = max(batch.seen, cut.seen)
            batch.state.CopyFrom(self._state(cut, done))
            self._told, self._told_at = (cut.revision, done), self._clock()
            self._told_most = max(self._told_most, done.followed)
        if batch.entries or cut is not None:
            yield pb.MirrorResponse(batch=batch)

    def _movements(self, arrived: int) -> list[pb.MirrorEntry]:
        """Return the entries whose positions have changed. Entries that the walk has not reached are left
        out, because they will be sent anyway.
        """
        store = self._store
        with store.lock:
            current = [entry for entry in self._moved.values() if store.entries.get(entry.id) is entry]
            moved = [entry for entry in current if entry.revision <= arrived]
            self._moved.clear()
            self._moved.update((entry.id, entry) for entry in current if entry.revision > arrived)
            return [
                pb.MirrorEntry(
                    endpoint_id=entry.id, revision=entry.revision, position=entry.position, moved=True
                )
                for entry in moved
            ]

    def _state(self, cut: Cut, done: Done) -> pb.MirrorState:
        origin, positions = self._origin.now(), self._freshness.positions()
        state = pb.MirrorState(
            followed=done.followed,
            owed=done.owed,
            staleness=self._freshness.staleness(),
            server_end=positions.server_end,
        )
        state.MergeFrom(state_of(Checkpoint.of(cut, origin)))
        state.epoch, state.timeline = self._line  # even if they changed just now; then `take` starts over
        return state


def told_of(news: list[Loaded | Followed]) -> Iterator[pb.MirrorParents]:
    """Convert changes of the memory of parents to messages."""
    for item in news:
        if isinstance(item, Followed):
            rule = item.rule
            message = pb.MirrorParents(table=rule.table, column=rule.column, at=item.at)
            if item.parent is None:
                message.gone.append(item.row)
            else:
                message.rows.append(item.row)
                message.parents.append(item.parent)
            yield message
            continue
        yield pb.MirrorParents(anew=True, at=item.at)
        for rule, memory in item.memory.items():
            rows = list(memory)
            for start in range(0, len(rows) or 1, _ROWS):
                some = rows[start : start + _ROWS]
                yield pb.MirrorParents(
                    table=rule.table,
                    column=rule.column,
                    at=item.at,
                    rows=some,
                    parents=[memory[row] for row in some],
                )


def _entry(entry: Entry) -> pb.MirrorEntry:
    made = pb.MirrorEntry(endpoint_id=entry.id, revision=entry.revision, position=entry.position)
    if entry.payload is None:
        made.deleted = True
    else:
        made.endpoint = entry.payload
    return made
