"""One client's feed, without the I/O: turns walks over the store into messages of ``pads.cdc.v1``.

This module neither blocks nor uses gRPC, so a test can stall, cut and resume a client at each single step.
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.lsn import Lsn
from cdc.state.token import Here, Rejoin, Reset, Resume, Token
from cdc.store.catchup import Catchup
from cdc.store.cursor import Cursor
from cdc.units import Revision
from server.rpc.feed_requests import MisuseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc.state.origin import Origin
    from cdc.store.log import Entry
    from cdc.store.store import Cut, Store

MESSAGE_BYTES: Final = 1 << 18
"""Maximum size of a message in bytes, unless a single endpoint is larger. The protocol allows 1 MiB. But
while a client takes nothing, three copies of its message are in memory: an object, its bytes, and gRPC's own
copy.
"""
_RESERVE: Final = 1024
"""Bytes of a message that are reserved for a batch's other fields."""
_CHANGE_BYTES: Final = 32
"""Maximum size of a change without id and payload: three tags and lengths, the revision, the frame."""
ENTRIES: Final = 500
"""Maximum number of entries that are taken from the store at a time. More entries would hardly be faster, and
would hold the store's lock for longer.
"""


class FeedStream:
    """The state of one client's stream."""

    def __init__(
        self,
        store: Store,
        origin: Callable[[], Origin],
        staleness: Callable[[], float],
        progress_interval: float,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        entries: int = ENTRIES,
    ) -> None:
        """``staleness`` and ``progress_interval`` are in seconds, ``wall`` is Unix time."""
        self._store = store
        self._origin = origin
        self._as_of = origin()
        self._staleness = staleness
        self._progress_interval = progress_interval
        self._wall = wall
        self._clock = clock
        self._checked_at = 0.0
        """The time at which the newest checkpoint was sent, or the stream was opened."""
        self._entries = entries
        self._walk: Cursor | Catchup | None = None
        self._resetting = False
        self._token: Token | None = None
        """The token of the client's last consistent map. Its `seen` says how new the client's endpoints may
        be. None during a snapshot.
        """
        self._epoch = ""
        """Our epoch at the time of the newest message."""
        self._told = -1
        """The revision of the newest token since `open`."""
        self._told_most = -1
        """The revision of the newest token since the stream began."""
        self.acknowledged = Revision(0)
        """The revision of the map that the client has acknowledged; 0 if it has acknowledged none."""
        self.mismatched = False
        """Whether the client reported a different digest, so that `open` must be called again with a reset.
        """
        self.more = True
        """Whether `take` may have more messages at once."""

    def open(self, verdict: Resume | Rejoin | Reset, token: bytes = b"") -> pb.WatchResponse:
        """Return the first message for the client that sent ``token``. Call this again to start the client
        over.
        """
        self.close()
        self._as_of = self._origin()
        opened = pb.Opened(progress_interval=duration(self._progress_interval))
        self._resetting = isinstance(verdict, Reset)
        self._token = None if self._resetting else Token.parse(token)
        self.mismatched = False
        self._told, self.more, self._checked_at = -1, True, self._clock()
        match verdict:
            case Resume(after):
                self._walk = Cursor(self._store, after, express=True)
                self.acknowledged = after
                opened.resumed.SetInParent()
            case Rejoin(beyond):
                self._walk = Catchup(self._store, beyond)
                self._token = self._token and self._token.mixed()
                opened.resumed.SetInParent()
            case Reset(reason):
                self._walk = Catchup(self._store)
                self.acknowledged = Revision(0)
                name = f"RESET_REASON_{reason.upper()}"
                opened.reset.CopyFrom(pb.Reset(reason=name, count=len(self._store)))
        opened.token = self._present()
        return pb.WatchResponse(opened=opened)

    @property
    def catching_up(self) -> bool:
        """Whether a snapshot is being sent."""
        return isinstance(self._walk, Catchup)

    def take(self) -> Iterator[pb.WatchResponse]:
        """Yield the next few messages. There are none if there is nothing to send (see `more`)."""
        walk = self._walk
        if walk is None:
            raise RuntimeError("not opened")
        self._as_of = self._origin()  # this comes before the read, so that no entry is newer than this origin
        part = walk.read(self._entries)
        self.more = part.more
        arrival = part.arrival
        news = bool(part.entries) or (arrival is not None and arrival.revision != self._told)
        batch, room = pb.Batch(), MESSAGE_BYTES - _RESERVE
        for entry in part.entries:
            size = _CHANGE_BYTES + len(entry.id.encode()) + len(entry.payload or b"")
            if size > room and batch.changes:
                batch.token = self._present()
                yield pb.WatchResponse(batch=batch)
                batch, room = pb.Batch(), MESSAGE_BYTES - _RESERVE
            room -= size
            _add(batch, entry)
        checkpoint = arrival if news and arrival is not None and self._proves(arrival) else None
        if checkpoint is not None:
            if room < 0:  # a large endpoint gets a message of its own
                batch.token = self._present()
                yield pb.WatchResponse(batch=batch)
                batch = pb.Batch()
            batch.token = self._hold(checkpoint)
            batch.checkpoint.CopyFrom(self._checkpoint(checkpoint))
            batch.snapshot_end = self._resetting
            self._resetting = False
            if isinstance(walk, Catchup):
                self._walk = walk.finish()
        elif arrival is not None and isinstance(walk, Cursor):
            self._hold(arrival)
        if checkpoint is not None or batch.changes:
            batch.token = batch.token or self._present()
            yield pb.WatchResponse(batch=batch)

    def progress(self, *, queued: bool = False) -> pb.WatchResponse:
        """Return a Progress message, with a checkpoint if the client has received all changes before it."""
        progress = pb.Progress(queued=queued)
        self._as_of = self._origin()
        if isinstance(self._walk, Cursor):
            arrival = self._walk.read(0).arrival
            if arrival is not None and self._proves(arrival):
                progress.token = self._hold(arrival)
                progress.checkpoint.CopyFrom(self._checkpoint(arrival))
        progress.token = progress.token or self._present()
        return pb.WatchResponse(progress=progress)

    def acknowledge(self, acknowledge: pb.Acknowledge) -> None:
        """Record the client's acknowledgement.

        Raises:
            MisuseError: the token was not sent on this stream, or is older than an acknowledged one.

        """
        token = Token.parse(acknowledge.token)
        if token is None or token.revision > self._told_most:
            raise MisuseError("acknowledged a token that was not sent on this stream")
        if acknowledge.digest_mismatch:
            self.mismatched = True
        elif token.revision < self.acknowledged:
            raise MisuseError("acknowledged an older token than before")
        elif not self.mismatched:
            self.acknowledged = token.revision

    def close(self) -> None:
        """Remove the walk from the store."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None

    def _present(self) -> bytes:
        """Return the token for everything that was sent so far. It says where to resume, and how new the
        newest change is.
        """
        with self._store.lock:
            now = self._store.cut()
        origin = self._origin()
        if self._epoch in origin.left:  # the client may have changes that the database has lost
            self._token = None
        self._epoch = origin.epoch
        if self._token is not None:
            self._token = self._token.on(now.history)
        if self._token is not None:
            self._token = replace(self._token, seen=max(self._token.seen, now.seen))
            return self._token.encode()
        return self._made(replace(now, revision=Revision(0), position=Lsn(0))).incomplete().encode()

    def _hold(self, cut: Cut) -> bytes:
        """Record that the client will have this map after the next message, and return the map's token."""
        self._token, self._epoch = self._made(cut), self._as_of.epoch
        return self._token.encode()

    def _made(self, cut: Cut) -> Token:
        return Token(
            epoch=self._as_of.epoch,
            system=cut.history.system,
            timeline=cut.history.timeline,
            revision=cut.revision,
            position=cut.position,
            seen=cut.seen,
            mapping=self._as_of.mapping,
            issued=int(self._wall()),
            encoding=self._as_of.encoding,
        )

    def _proves(self, arrival: Cut) -> bool:
        """Return whether to send a checkpoint.

        Between parts that belong together no checkpoint is sent, unless the last checkpoint is older than a
        progress interval. Otherwise a client might never be notified that its snapshot is complete.
        """
        return arrival.consistent or self._clock() - self._checked_at >= self._progress_interval

    def _checkpoint(self, cut: Cut) -> pb.Checkpoint:
        self._told, self._checked_at = cut.revision, self._clock()
        self._told_most = max(self._told_most, cut.revision)
        return pb.Checkpoint(
            revision=cut.revision,
            count=cut.count,
            digest=cut.digest,
            staleness=duration(self._staleness()),
            unsettled=not cut.consistent,
        )


def here(
    store: Store,
    origin: Callable[[], Origin],
    retention: float,
    reached_at: float = inf,
    wall: Callable[[], float] = time.time,
) -> Here:
    """Describe this server for `cdc.state.token.judge`. ``retention`` is TOMBSTONE_RETENTION in seconds."""
    with store.lock:
        now = store.cut()
        return Here(
            origin(), now.history, now.revision, now.position, wall(), retention, now.seen, reached_at
        )


def _add(batch: pb.Batch, entry: Entry) -> None:
    if entry.payload is None:
        batch.changes.add(revision=entry.revision, endpoint_id=entry.id, deleted=True)
    else:
        batch.changes.add(revision=entry.revision, endpoint_id=entry.id, endpoint=entry.payload)


def duration(seconds: float) -> Duration:
    """Convert seconds to a message."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
