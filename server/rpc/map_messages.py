"""Converts between a map's parts and the messages that carry them between servers (``pads.cdc.v1``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.lsn import Lsn
from cdc.postgres.timeline import Timeline
from cdc.state.origin import Checkpoint, Origin
from cdc.store.log import Entry
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Iterable


def entries_of(messages: Iterable[pb.MirrorEntry]) -> tuple[list[Entry], list[tuple[str, Revision, Lsn]]]:
    """Return the entries, and a triple (id, revision, position) for each entry of which only the position is
    new.
    """
    entries: list[Entry] = []
    moved: list[tuple[str, Revision, Lsn]] = []
    for one in messages:
        match one.WhichOneof("outcome"):
            case "moved":
                moved.append((one.endpoint_id, Revision(one.revision), Lsn(one.position)))
            case "endpoint":
                entries.append(
                    Entry(one.endpoint_id, Revision(one.revision), Lsn(one.position), one.endpoint)
                )
            case _:
                entries.append(Entry(one.endpoint_id, Revision(one.revision), Lsn(one.position), None))
    return entries, moved


def checkpoint_of(state: pb.MirrorState, seen: int) -> Checkpoint:
    """Convert a leader's state."""
    return Checkpoint(
        revision=Revision(state.revision),
        origin=Origin(
            state.epoch,
            Lsn(state.followed_since) if state.followed_since else None,
            left=frozenset(state.left),
            encoding=state.encoding or 1,
            mapping=state.mapping,
            forgotten=Revision(state.forgotten),
        ),
        history=Timeline(
            state.system,
            state.timeline,
            Lsn(state.position),
            tuple((switch.timeline, Lsn(switch.position)) for switch in state.switches),
        ),
        position=Lsn(state.position),
        seen=Lsn(seen),
        consistent=state.whole,
        count=state.count,
        digest=state.digest,
    )


def state_of(checkpoint: Checkpoint) -> pb.MirrorState:
    """Convert a leader's state to its message."""
    origin = checkpoint.origin
    state = pb.MirrorState(
        epoch=origin.epoch,
        revision=checkpoint.revision,
        system=checkpoint.history.system,
        timeline=checkpoint.history.timeline,
        position=checkpoint.position,
        followed_since=origin.followed_since or 0,
        whole=checkpoint.consistent,
        count=checkpoint.count,
        digest=checkpoint.digest,
        left=sorted(origin.left),
        encoding=origin.encoding,
        mapping=origin.mapping,
        forgotten=origin.forgotten,
    )
    for timeline, position in checkpoint.history.switches:
        state.switches.add(timeline=timeline, position=position)
    return state
