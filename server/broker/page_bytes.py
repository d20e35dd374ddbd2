"""Pages and heads as protobuf messages (``pads.cdc.v1``), and back."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.lsn import Lsn
from cdc.relay.pages import Head, Page
from cdc.units import Revision
from server.rpc.map_messages import checkpoint_of, entries_of, state_of


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
    """Read a page.

    Raises:
        DecodeError: the bytes are no page.

    """
    message = pb.Page.FromString(raw)
    if not message.line or not message.number:
        raise DecodeError("no page: it has no line and no number")
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
    ).SerializeToString()


def decode_head(raw: bytes) -> Head:
    """Read a head.

    Raises:
        DecodeError: the bytes are no head.

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
    )
