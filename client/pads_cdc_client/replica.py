"""The client's map and the rules of the feed, without any I/O: messages go in, acknowledgements come out.

A client in another language has to do what this module does, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pads_cdc_client.digest import Digest
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.steps import at_once, portions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pads_cdc_client.steps import Steps


class Change(NamedTuple):
    """An endpoint was added, changed or removed. The map already includes the change."""

    endpoint_id: str
    before: bytes | None
    """The endpoint before the change, a serialized ``proto.GatewayEndpoint``; None if it was added."""
    after: bytes | None
    """The endpoint after the change; None if it was removed."""
    revision: int
    """The server's revision of the change; 0 for an endpoint that was removed because a snapshot did not
    contain it.
    """

    def __repr__(self) -> str:
        """Leave the endpoints out, because they contain API keys."""
        return f"Change(endpoint_id={self.endpoint_id!r}, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of one message."""

    changes: list[Change]
    acknowledge: pb.Acknowledge | None = None
    """The acknowledgement to send, if any."""
    staleness: float | None = None
    """The map's staleness in seconds; None unless the digest proved that the database had this map."""


def reset_reason(reset: pb.Reset) -> str:
    """Return the reason in lower case, such as ``gap``, or its number if this client does not know it."""
    known = pb.ResetReason.DESCRIPTOR.values_by_number.get(reset.reason)
    return known.name.removeprefix("RESET_REASON_").lower() if known is not None else str(reset.reason)


class Replica:
    """A copy of the server's map. Not thread-safe, except that any thread may read `endpoints`."""

    def __init__(self, endpoints: Mapping[str, bytes] | None = None, token: bytes = b"") -> None:
        """Start with the map of an earlier process and its token, or with an empty map."""
        self.endpoints = dict(endpoints or {})
        """Serialized ``proto.GatewayEndpoint`` by id. The dict is changed in place."""
        self.token = token
        """The token to send when the stream is opened, and to store with the map."""
        self.complete = False
        """Whether the map has ever been equal to the server's map, by its digest. From then on it is usable.
        """
        self.mismatches = 0
        """Number of consecutive digests that did not match, counted since the stream was opened."""
        self.reset: pb.Reset | None = None
        """The reset message while the server sends a snapshot; otherwise None."""
        self._digest = Digest.of(self.endpoints)
        self._unseen: set[str] = set()
        """Endpoints that the current snapshot has not contained so far."""
        self._reported = False
        """Whether a mismatch was reported to the server and the server has not answered yet."""

    def opening(self, client_id: str) -> pb.WatchRequest:
        """Return the first message to send."""
        self._reported = False
        self.mismatches = 0
        return pb.WatchRequest(open=pb.Open(client_id=client_id, resume_token=self.token))

    def apply(self, message: pb.WatchResponse) -> Applied:
        """Apply a message of the server."""
        return at_once(self.steps(message))

    def steps(self, message: pb.WatchResponse) -> Steps[Applied]:
        """Apply a message of the server in steps.

        After each step, `endpoints` includes the changes so far.
        """
        match message.WhichOneof("response"):
            case "opened":
                yield from self._open(message.opened)
            case "batch":
                return (yield from self._apply_batch(message.batch))
            case "progress":
                self.token = message.progress.token
                if message.progress.HasField("checkpoint"):
                    return self._check([], message.progress.checkpoint)
        return Applied([])  # also for kinds of messages that are newer than this client

    def _open(self, opened: pb.Opened) -> Steps[None]:
        self.token = opened.token
        self._reported = False
        self.reset = opened.reset if opened.HasField("reset") else None
        self._unseen = set()
        if self.reset:
            for some in portions(self.endpoints):
                self._unseen.update(some)
                yield

    def _apply_batch(self, batch: pb.Batch) -> Steps[Applied]:
        changes: list[Change] = []
        for some in portions(batch.changes):
            for change in some:
                endpoint_id = change.endpoint_id  # protobuf makes a new object at each look
                endpoint = change.endpoint if change.HasField("endpoint") else None
                if self._unseen:
                    self._unseen.discard(endpoint_id)
                self._put(changes, endpoint_id, endpoint, change.revision)
            yield
        self.token = batch.token
        if batch.snapshot_end:
            yield from self._end_snapshot(changes)
        if batch.HasField("checkpoint"):
            return self._check(changes, batch.checkpoint)
        return Applied(changes)

    def _end_snapshot(self, changes: list[Change]) -> Steps[None]:
        for gone in portions(self._unseen):
            for endpoint_id in gone:
                self._put(changes, endpoint_id, None, 0)
            yield
        self._unseen, self.reset = set(), None
        if self.mismatches:  # the difference may have been in the digest and not in the map
            self._digest = Digest()
            for held in portions(self.endpoints.items()):
                for endpoint_id, endpoint in held:
                    self._digest.change(endpoint_id, None, endpoint)
                yield

    def _put(self, changes: list[Change], endpoint_id: str, endpoint: bytes | None, revision: int) -> None:
        before = self.endpoints.get(endpoint_id)
        if endpoint == before:
            return
        if endpoint is None:
            del self.endpoints[endpoint_id]
        else:
            self.endpoints[endpoint_id] = endpoint
        self._digest.change(endpoint_id, before, endpoint)
        changes.append(Change(endpoint_id, before, endpoint, revision))

    def _check(self, changes: list[Change], checkpoint: pb.Checkpoint) -> Applied:
        """Compare the map with the server's.

        Return an acknowledgement, which reports a difference at once.
        """
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
