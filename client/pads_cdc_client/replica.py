"""The client's map and the rules of the feed, without any I/O: messages go in, acknowledgements come out.

Whoever writes a client in another language finds everything here that it must do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pads_cdc_client.digest import Digest
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Change:
    """One endpoint became another one, came or went; the map has it already."""

    endpoint_id: str
    # Not in the repr: they hold API keys.
    before: bytes | None = field(repr=False)
    """As it was, a serialized ``proto.GatewayEndpoint``; None if there was none."""
    after: bytes | None = field(repr=False)
    """As it is; None if it is gone."""
    revision: int
    """The server's count; 0 for an endpoint that a snapshot did not bring."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What one message led to."""

    changes: list[Change]
    acknowledge: pb.Acknowledge | None = None
    """To be sent."""
    staleness: float | None = None
    """Set where the map was proved to be one that the database has had: seconds since it was known to be."""


def reset_reason(reset: pb.Reset) -> str:
    """Return the reason in lower case, such as ``gap``; the number of one that is newer than this client."""
    known = pb.ResetReason.DESCRIPTOR.values_by_number.get(reset.reason)
    return known.name.removeprefix("RESET_REASON_").lower() if known is not None else str(reset.reason)


class Replica:
    """Not for two threads at once, except that anyone may read `endpoints` at any time."""

    def __init__(self, endpoints: Mapping[str, bytes] | None = None, token: bytes = b"") -> None:
        """Start with what was kept from before: a map, and the newest token that belongs to it."""
        self.endpoints = dict(endpoints or {})
        """By id, each a serialized ``proto.GatewayEndpoint``; changed in place."""
        self.token = token
        """To be sent when the feed is opened, and to be kept with the map."""
        self.complete = False
        """Whether the map has once been the server's, by its digest; it stays usable from then on."""
        self.mismatches = 0
        """Proofs that failed since one was good, or since the stream was opened."""
        self.reset: pb.Reset | None = None
        """Why everything is being sent anew; None while it is not."""
        self._digest = Digest.of(self.endpoints)
        self._unseen: set[str] = set()
        """Endpoints that the present snapshot has not brought yet."""
        self._reported = False
        """The server was told of a mismatch and has not answered yet."""

    def opening(self, client_id: str) -> pb.WatchRequest:
        """Return the first message to send."""
        self._reported = False
        self.mismatches = 0
        return pb.WatchRequest(open=pb.Open(client_id=client_id, resume_token=self.token))

    def apply(self, message: pb.WatchResponse) -> Applied:
        """Take a message of the server."""
        match message.WhichOneof("response"):
            case "opened":
                return self._open(message.opened)
            case "batch":
                return self._apply_batch(message.batch)
            case "progress":
                self.token = message.progress.token
                if message.progress.HasField("checkpoint"):
                    return self._check([], message.progress.checkpoint)
        return Applied([])  # a kind of message that is newer than this client

    def _open(self, opened: pb.Opened) -> Applied:
        self.token = opened.token
        self._reported = False
        self.reset = opened.reset if opened.HasField("reset") else None
        self._unseen = set(self.endpoints) if self.reset else set()
        return Applied([])

    def _apply_batch(self, batch: pb.Batch) -> Applied:
        changes: list[Change] = []
        for change in batch.changes:
            endpoint = change.endpoint if change.WhichOneof("outcome") == "endpoint" else None
            self._unseen.discard(change.endpoint_id)
            self._put(changes, change.endpoint_id, endpoint, change.revision)
        self.token = batch.token
        if batch.snapshot_end:
            for endpoint_id in self._unseen:
                self._put(changes, endpoint_id, None, 0)
            if self.mismatches:
                self._digest = Digest.of(self.endpoints)  # the mistake may have been in the digest
            self._unseen, self.reset = set(), None
        if batch.HasField("checkpoint"):
            return self._check(changes, batch.checkpoint)
        return Applied(changes)

    def _put(self, changes: list[Change], endpoint_id: str, endpoint: bytes | None, revision: int) -> None:
        before = self.endpoints.get(endpoint_id)
        if endpoint == before:
            return
        if before is not None:
            self._digest.remove(endpoint_id, before)
        if endpoint is None:
            del self.endpoints[endpoint_id]
        else:
            self._digest.add(endpoint_id, endpoint)
            self.endpoints[endpoint_id] = endpoint
        changes.append(Change(endpoint_id, before, endpoint, revision))

    def _check(self, changes: list[Change], checkpoint: pb.Checkpoint) -> Applied:
        """Compare with the server's map; a difference is never lived with."""
        if self._reported:
            return Applied(changes)
        if bytes(self._digest) != checkpoint.digest or len(self.endpoints) != checkpoint.count:
            self._reported = True
            self.mismatches += 1
            return Applied(changes, pb.Acknowledge(token=self.token, digest_mismatch=True))
        self.mismatches = 0
        self.complete = True
        staleness = None if checkpoint.unsettled else checkpoint.staleness.ToNanoseconds() / 1e9
        return Applied(changes, pb.Acknowledge(token=self.token), staleness)
