"""A relay's thread that follows a leader directly, over the stream that the two servers of a pair use."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.retry import Backoff, Remedy

from cdc.lsn import Lsn
from cdc.relay.pages import Head, Page
from cdc.units import Revision
from server.pair.peer import MirrorStream
from server.rpc.map_messages import checkpoint_of, entries_of

if TYPE_CHECKING:
    from cdc.relay.intake import Intake
    from cdc.relay.page_reader import PageReader
    from server.pair.peer import Peer

REASON: Final = "leader"
_STOP_SECONDS: Final = 1.0
_RETRY_FIRST, _RETRY_MOST, _RETRY_LATE = 0.2, 2.0, 5.0
"""Seconds between attempts to read the leader's map: at first, at most, and if a person has to act."""


class Following(threading.Thread):
    """The thread that follows the leader. It runs until `stop`."""

    def __init__(self, leader: Peer, reader: PageReader, intake: Intake) -> None:
        super().__init__(name="leader-reader", daemon=True)
        self._stream = MirrorStream(leader)
        self._reader = reader
        self._intake = intake
        self._stopping = threading.Event()
        self._line = ""
        self._number = 0
        self._resetting = False
        """Whether the leader is sending its whole map."""
        self._begun = True
        """Whether the next batch begins a run."""

    def stop(self) -> None:
        """End the thread and its stream. Blocks for at most a second."""
        self._stopping.set()
        self._stream.cancel()
        self.join(_STOP_SECONDS)

    def run(self) -> None:
        """Follow the leader until `stop`."""
        backoff = Backoff(first=_RETRY_FIRST, most=_RETRY_MOST, late=_RETRY_LATE)
        while not self._stopping.is_set():
            try:
                found, why = self._stream.read(self._opening(), self._take, backoff)
            except Exception as error:  # noqa: BLE001 (the thread's boundary: it must not end silently)
                found, why = Remedy.BACK_OFF, f"{type(error).__name__} while its stream was read"
                if isinstance(error, OSError):
                    why = f"{error.filename}: {error.strerror}"
            if not self._stopping.is_set():
                self._intake.lost(REASON, f"the leader is not followed: {why}")
                self._stopping.wait(backoff.wait(found))

    def _opening(self) -> pb.MirrorRequest:
        opening = pb.MirrorOpen(client_id=f"relay {socket.gethostname()}"[:128], relay=True)
        reader = self._reader
        if self._line and reader.line == self._line and not reader.wanting:
            opening.epoch, opening.timeline = reader.origin().epoch, reader.timeline
            opening.revision, opening.followed = reader.exact, reader.position
        return pb.MirrorRequest(open=opening)

    def _take(self, message: pb.MirrorResponse, _: object) -> str | None:
        if message.HasField("batch"):
            return self._batch(message.batch)
        if not message.HasField("opened"):
            return None
        self._begun, self._resetting = True, message.opened.reset
        self._intake.connected()
        if message.opened.reset:
            self._line, self._number = uuid.uuid4().hex, 0
            self._intake.page(self._page(opening=True))
        return None

    def _batch(self, batch: pb.MirrorBatch) -> str | None:
        page = self._page(first=self._begun)
        self._begun = False
        page.entries, page.moved = entries_of(batch.entries)
        if batch.HasField("state"):
            page.checkpoint = checkpoint_of(batch.state, batch.seen)
            page.complete, self._resetting, self._begun = self._resetting, False, True
        self._intake.count(batch.ByteSize(), whole=True)
        self._intake.page(page)
        if batch.HasField("state"):
            self._intake.head(_head(self._line, batch), live=True)
            self._intake.look()
            if self._reader.wanting:
                self._line = ""
                return "our map differs from the leader's, and all of it is fetched again"
        return None

    def _page(self, *, opening: bool = False, first: bool = False) -> Page:
        self._number += 1
        return Page(
            line=self._line,
            number=self._number,
            start=self._reader.exact,
            epoch="",
            timeline=0,
            position=Lsn(0),
            first=first,
            opening=opening,
            generating=self._resetting,
        )


def _head(line: str, batch: pb.MirrorBatch) -> Head:
    state = batch.state
    return Head(
        line=line,
        revision=Revision(state.revision),
        staleness=state.staleness,
        at=time.time(),
        server_end=Lsn(state.server_end),
        position=Lsn(state.position),
        seen=Lsn(batch.seen),
        consistent=state.whole,
    )
