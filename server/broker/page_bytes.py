"""Pages and heads as protobuf messages (``pads.cdc.v1``), and back.

A page that is larger than a message is sent in pieces. They are joined here, so a page arrives as a whole or
not at all. If a piece is missing, the page is lost, and the next page's number shows the gap.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.lsn import Lsn
from cdc.relay.pages import Head, Page
from cdc.units import Revision
from server.rpc.map_messages import checkpoint_of, entries_of, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 256
"""Maximum size of a piece without its part of the page, in bytes."""
_DIGEST_BYTES: Final = 16


def pieces(page: Page, most: int) -> Iterator[bytes]:
    """Serialize a page into messages of at most ``most`` bytes each. A page that fits becomes one message.

    ``most`` must be more than `PIECE_BYTES`.
    """
    whole = encode(page)
    if len(whole) <= most:
        yield whole
        return
    step, digest = most - PIECE_BYTES, _digest(whole)
    for start in range(0, len(whole), step):
        last = start + step >= len(whole)
        yield pb.Page(
            line=page.line,
            number=page.number if last else page.number - 1,
            start=page.start,
            epoch=page.epoch,
            timeline=page.timeline,
            position=page.position,
            generation=0 if page.complete else page.generation,
            part=whole[start : start + step],
            part_start=start,
            part_total=len(whole),
            part_digest=digest,
        ).SerializeToString()


class PageAssembly:
    """Joins the pieces of a stream's pages. Holds at most one page."""

    def __init__(self) -> None:
        self._of = b""
        """The digest of the incomplete page."""
        self._parts = bytearray()

    def take(self, raw: bytes) -> Page | None:
        """Read a message. Return the page if the message is a page or the last piece of one; otherwise None.

        Raises:
            DecodeError: the bytes are neither a page nor a piece of one.

        """
        message = pb.Page.FromString(raw)
        if not message.part_total:
            return _page(message)
        if message.part_start == 0:
            self._of, self._parts = message.part_digest, bytearray()
        if message.part_digest != self._of or message.part_start != len(self._parts):
            return None  # a piece is missing
        self._parts += message.part
        if len(self._parts) < message.part_total:
            return None
        whole, self._parts = bytes(self._parts), bytearray()
        if _digest(whole) != self._of:
            raise DecodeError("the pieces make another page")
        return decode(whole)


def encode(page: Page) -> bytes:
    """Serialize a page."""
    message = pb.Page(
        line=page.line,
        number=page.number,
        start=page.start,
        first=page.first,
        opening=page.opening,
        total=page.total,
        older=page.older,
        complete=page.complete,
        epoch=page.epoch,
        timeline=page.timeline,
        position=page.position,
        generation=page.generation,
        generating=page.generating,
    )
    for entry in page.entries:
        if entry.payload is None:
            message.entries.add(
                endpoint_id=entry.id, revision=entry.revision, position=entry.position, deleted=True
            )
        else:
            message.entries.add(
                endpoint_id=entry.id,
                revision=entry.revision,
                position=entry.position,
                endpoint=entry.payload,
            )
    for endpoint_id, revision, position in page.moved:
        message.entries.add(endpoint_id=endpoint_id, revision=revision, position=position, moved=True)
    if page.checkpoint is not None:
        message.checkpoint.CopyFrom(state_of(page.checkpoint))
        message.seen = page.checkpoint.seen
    return message.SerializeToString()


def decode(raw: bytes) -> Page:
    """Parse a page. Of a piece of a page, parse only the fields that a leader needs to continue after it.

    Raises:
        DecodeError: the bytes are not a page.

    """
    return _page(pb.Page.FromString(raw))


def _digest(whole: bytes) -> bytes:
    return hashlib.sha256(whole).digest()[:_DIGEST_BYTES]


def _page(message: pb.Page) -> Page:
    if not message.line or not (message.number or message.part_total):
        raise DecodeError("not a page: it has no line and no number")
    entries, moved = entries_of(message.entries)
    return Page(
        line=message.line,
        number=message.number,
        start=Revision(message.start),
        epoch=message.epoch,
        timeline=message.timeline,
        position=Lsn(message.position),
        first=message.first,
        opening=message.opening,
        total=message.total,
        generation=message.generation,
        generating=message.generating,
        older=message.older,
        entries=entries,
        moved=moved,
        checkpoint=checkpoint_of(message.checkpoint, message.seen)
        if message.HasField("checkpoint")
        else None,
        complete=message.complete,
    )


def encode_head(head: Head) -> bytes:
    """Serialize a head."""
    return pb.Head(
        line=head.line,
        revision=head.revision,
        staleness=head.staleness,
        at=head.at,
        server_end=head.server_end,
        position=head.position,
        seen=head.seen,
        consistent=head.consistent,
        number=head.number,
    ).SerializeToString()


def decode_head(raw: bytes) -> Head:
    """Parse a head.

    Raises:
        DecodeError: the bytes are not a head.

    """
    message = pb.Head.FromString(raw)
    return Head(
        line=message.line,
        revision=Revision(message.revision),
        staleness=message.staleness,
        at=message.at,
        server_end=Lsn(message.server_end),
        position=Lsn(message.position),
        seen=Lsn(message.seen),
        consistent=message.consistent,
        number=message.number,
    )
