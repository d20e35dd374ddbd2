"""The mirror: a thread that passes the peer's map to the applier while the peer reads the slot.

Whenever this server does not read the slot, the thread asks the peer for its map. It does so even just after
this server has lost the slot, since the peer may have got it. When the applier has put a part of the map into
the store and the state file, the thread acknowledges the part.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import structlog
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.retry import Backoff, Remedy

from cdc.lsn import Lsn
from cdc.pair.mirrored import MirrorLost, MirrorOpened, MirrorPart, PeerState, Point
from cdc.pair.mirrored_parents import ParentsPart
from server.pair.peer import MirrorStream
from server.rpc.map_messages import checkpoint_of, entries_of

if TYPE_CHECKING:
    from pads_cdc_client.outbox import Outbox

    from cdc.observer import Observer
    from cdc.pair.mirrored import Mirrored
    from cdc.pair.pair import Pair
    from cdc.replication.backlog import Backlog
    from server.pair.peer import Peer

_log = structlog.get_logger("pads_cdc")

_TROUBLE: Final = "peer"
_UNUSABLE: Final = "the map must be copied again, or this server has got the slot"
_NAME_BYTES: Final = 128
_RETRY_FIRST, _RETRY_MOST, _RETRY_LATE = 0.2, 1.0, 5.0
"""Seconds between attempts to read the peer's map: at first, at most, and if a person has to act."""
_LOOK_SECONDS: Final = 1.0
"""Time between looks whether the thread has to end, while this server leads."""
_REPLY_SECONDS: Final = 0.5
"""The same, while the applier has not taken a part of the map."""


class Mirror(threading.Thread):
    """The mirror's thread. It runs until `stop`."""

    def __init__(
        self, peer: Peer, system: str, pair: Pair, mirrored: Mirrored, backlog: Backlog, observer: Observer
    ) -> None:
        """``system`` is the identifier of the followed cluster. Maps of other clusters are refused."""
        super().__init__(name="mirror", daemon=True)
        self._stream = MirrorStream(peer, lambda: pair.leading)
        self._system = system
        self._pair = pair
        self._mirrored = mirrored
        self._backlog = backlog
        self._observer = observer
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread and its stream."""
        self._stopping.set()
        self._stream.cancel()

    def run(self) -> None:
        """Mirror the peer whenever this server does not lead."""
        backoff = Backoff(first=_RETRY_FIRST, most=_RETRY_MOST, late=_RETRY_LATE)
        said = ""
        while not self._stopping.is_set():
            if not self._pair.wait_lost(_LOOK_SECONDS):
                continue
            try:
                found, why = self._stream.read(opening_at(self._mirrored.point), self._take, backoff)
            except (OSError, ValueError) as error:
                said_of_it = (
                    f"{error.filename}: {error.strerror}"
                    if isinstance(error, OSError)
                    else "not what is expected there"
                )
                found, why = Remedy.BACK_OFF, f"the files of PEER_ settings cannot be used: {said_of_it}"
            self._backlog.tell(MirrorLost(leaderless=found is Remedy.RETRY and "does not read" in why))
            if self._stopping.is_set() or self._pair.leading:
                continue
            if found is Remedy.RETRY:
                if why != said:
                    _log.info("the peer is not mirrored", why=why)
            else:
                self._observer.trouble(_TROUBLE, f"the peer cannot be mirrored: {why}")
            said = why
            self._stopping.wait(backoff.wait(found))

    def _take(self, message: pb.MirrorResponse, outbox: Outbox[pb.MirrorRequest]) -> str | None:
        """Pass a message to the applier. Return the reason if the stream can no longer be used, otherwise
        None.
        """
        if message.HasField("opened"):
            opened = MirrorOpened(message.opened.reset, Future())
            self._backlog.tell(opened)
            return None if self._answer(opened.reply) else _UNUSABLE
        if not message.HasField("batch"):
            return None
        part = part_of(message.batch)
        if part.state is not None and part.state.map.history.system != self._system:
            self._observer.trouble(_TROUBLE, "PEER_ADDRESS leads to a server of another database")
            return _UNUSABLE
        self._backlog.tell(part)
        if not self._answer(part.reply):
            return _UNUSABLE
        if part.state is not None:
            acknowledge = pb.MirrorAcknowledge(followed=part.state.followed)
            outbox.put(pb.MirrorRequest(acknowledge=acknowledge))
        return None

    def _answer(self, reply: Future[bool]) -> bool:
        while not self._stopping.is_set():
            try:
                return reply.result(_REPLY_SECONDS)
            except TimeoutError:
                continue
        return False


def opening_at(point: Point | None) -> pb.MirrorRequest:
    """Make the first message of a mirror. It has the peer's map at ``point``, or no map if that is None."""
    opening = pb.MirrorOpen(client_id=f"mirror {socket.gethostname()}"[:_NAME_BYTES])
    if point is not None:
        opening.epoch, opening.timeline = point.epoch, point.timeline
        opening.revision, opening.followed = point.revision, point.followed
    return pb.MirrorRequest(open=opening)


def part_of(batch: pb.MirrorBatch) -> MirrorPart:
    """Convert a batch of the peer's map."""
    entries, moved = entries_of(batch.entries)
    state = None
    if batch.HasField("state"):
        told = batch.state
        state = PeerState(checkpoint_of(told, batch.seen), Lsn(told.followed), told.owed)
    return MirrorPart(
        entries=entries,
        moved=[(endpoint_id, position) for endpoint_id, _, position in moved],
        seen=Lsn(batch.seen),
        state=state,
        parents=[_parents(one) for one in batch.parents],
        reply=Future(),
    )


def _parents(parents: pb.MirrorParents) -> ParentsPart:
    rows: list[tuple[str, str | None]] = list(zip(parents.rows, parents.parents, strict=True))
    rows += [(row, None) for row in parents.gone]
    return ParentsPart(parents.anew, (parents.table, parents.column), Lsn(parents.at), rows)
