"""The endpoint feed as events, for `watch`.

The rules of the protocol are in `pads_cdc_client`. This module adds events for the beginning of each stream
and for each checkpoint, which most clients do not need. It can also begin at a token without having the
token's map.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import grpc
from pads_cdc_client.outbox import Outbox
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.replica import Applied, Change, Replica, reset_reason
from pads_cdc_client.retry import Backoff, Remedy, remedy

from cdc.errors import PadsCdcError
from server.commands.old_client import OPTIONS, reason_of, refuse_http
from server.commands.watch.events import Changed, CheckpointReached, Mismatched, StreamLost, StreamOpened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.commands.watch.events import Event

_WATCH: Final = f"/{pb.DESCRIPTOR.services_by_name['EndpointFeedService'].full_name}/Watch"
_FIRST_WORD_SECONDS: Final = 45.0
"""Maximum wait for the first message, in seconds. A server without a complete map answers UNAVAILABLE after
30 s.
"""
_SILENT_INTERVALS: Final = 3
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
"""Seconds between attempts to connect, at first and at most."""


class FeedRefusedError(PadsCdcError):
    """The server reports that we violate the protocol, so a retry is useless."""


class _DifferentError(Exception):
    pass


class _Tail:
    """Replaces `Replica` if there is a token but no map. It passes on all changes, and proves nothing."""

    complete = True
    mismatches = 0

    def __init__(self, token: bytes) -> None:
        self.token = token

    def opening(self, client_id: str) -> pb.WatchRequest:
        return pb.WatchRequest(open=pb.Open(client_id=client_id, resume_token=self.token))

    def apply(self, message: pb.WatchResponse) -> Applied:
        kind = message.WhichOneof("response")
        if kind is None:
            return Applied([])
        part = getattr(message, kind)
        self.token = part.token
        acknowledge = None
        if kind != "opened" and part.HasField("checkpoint"):
            acknowledge = pb.Acknowledge(token=self.token)
        changes = part.changes if kind == "batch" else ()
        return Applied(
            [
                Change(each.endpoint_id, None, None if each.deleted else each.endpoint, each.revision)
                for each in changes
            ],
            acknowledge,
        )


class FeedSubscriber:
    """A client of ``target`` (host:port). One thread iterates over `events`; another may call `close`."""

    def __init__(
        self,
        target: str,
        token: bytes = b"",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        bearer: Path | None = None,
    ) -> None:
        """Begin at ``token``. ``credentials`` enable TLS; the file ``bearer`` contains the bearer token."""
        self._map: Replica | _Tail = _Tail(token) if token else Replica()
        self._bearer = bearer
        self._client_id = f"pads-cdc watch on {socket.gethostname()}"[:128]
        self._closed = threading.Event()
        self._quiet_until = 0.0
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)
        self._watch = self._channel.stream_stream(
            _WATCH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )

    def events(self) -> Iterator[Event]:
        """Yield each event after the map has been changed. Blocks until the next event, and ends after
        `close`.

        Raises:
            FeedRefusedError: the server reports that we violate the protocol.
            NotGrpcError: the server speaks HTTP/1, and has never spoken gRPC.

        """
        backoff, heard = Backoff(_RETRY_FIRST, _RETRY_MOST, late=_RETRY_MOST), False
        while not self._closed.is_set():
            found, reason = Remedy.RETRY, "the server ended a stream that has no end"
            try:
                for event in self._session():
                    heard = True
                    if event.synced:
                        backoff.succeeded()
                    yield event
            except (grpc.RpcError, OSError, _DifferentError) as error:
                found, reason = _judge(error)
                if isinstance(error, grpc.RpcError):
                    refuse_http(error, heard=heard)
            except ValueError:  # gRPC raises it if the channel was closed just before the call
                if not self._closed.is_set():
                    raise
            if self._closed.is_set():
                return
            if found is Remedy.STOP:
                raise FeedRefusedError(f"the server refuses this client: {reason}")
            wait = backoff.wait(found)
            yield StreamLost(reason, wait)
            self._closed.wait(wait)

    def close(self) -> None:
        """End the connection and `events`. Returns at once."""
        self._closed.set()
        self._channel.close()

    def _session(self) -> Iterator[Event]:
        metadata = None
        if self._bearer is not None:
            metadata = (("authorization", f"Bearer {self._bearer.read_text().strip()}"),)
        patience = _FIRST_WORD_SECONDS
        self._quiet_until = time.monotonic() + patience
        outbox = Outbox(self._map.opening(self._client_id), lambda: self._give_up(call))
        call = self._watch(outbox, metadata=metadata)
        try:
            for message in call:
                if message.HasField("opened"):
                    patience = _SILENT_INTERVALS * message.opened.progress_interval.ToNanoseconds() / 1e9
                self._quiet_until = math.inf  # while the caller handles the event, silence does not count
                yield from self._apply(message, outbox)
                if self._map.mismatches > 1:
                    raise _DifferentError("our map differs from the server's after a whole snapshot")
                self._quiet_until = time.monotonic() + patience
        finally:
            outbox.close()
            call.cancel()

    def _apply(self, message: pb.WatchResponse, outbox: Outbox[pb.WatchRequest]) -> Iterator[Event]:
        if message.HasField("opened"):
            opened = message.opened
            if opened.HasField("reset") and isinstance(self._map, _Tail):
                self._map = Replica()
            resumed = opened.HasField("resumed")
            yield StreamOpened(resumed, "" if resumed else reset_reason(opened.reset), opened.reset.count)
        initial = not self._map.complete
        applied = self._map.apply(message)
        for change in applied.changes:
            yield Changed(change, initial)
        if applied.acknowledge is None:
            return
        outbox.put(pb.WatchRequest(acknowledge=applied.acknowledge))
        if applied.acknowledge.digest_mismatch:
            yield Mismatched()
            return
        at = (message.batch if message.HasField("batch") else message.progress).checkpoint
        yield CheckpointReached(
            at.revision,
            at.count,
            at.digest.hex(),
            isinstance(self._map, Replica),
            at.staleness.ToNanoseconds() / 1e9,
            at.unsettled,
            self._map.token,
        )

    def _give_up(self, call: grpc.Call) -> None:
        """Cancel the call if the server has been silent for too long although the connection is open."""
        if time.monotonic() > self._quiet_until:
            call.cancel()


def _judge(error: Exception) -> tuple[Remedy, str]:
    """Return how to continue after the end of a stream, and the reason of the end as one line."""
    match error:
        case grpc.RpcError() if isinstance(error, grpc.Call):  # every error of a call is one
            return remedy(error.code()), reason_of(error)
        case OSError():
            return Remedy.BACK_OFF, f"the bearer token cannot be read: {error.strerror}"
        case _:
            return Remedy.RETRY, str(error)
