"""A client of the legacy contract, which fetches and streams the map, keeps every endpoint, and reconnects.

It behaves like the newest deployed clients, which fetch the map again before every stream. The stream then
repeats the map; `EndpointUpdate.changed` distinguishes these repetitions from changes.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
import grpc.experimental
from pads_cdc_client.pb.gateway_endpoint_pb2 import (
    DESCRIPTOR,
    AuthDataRequest,
    AuthDataResponse,
    AuthDataUpdate,
    AuthDataUpdatesRequest,
    GatewayEndpoint,
)

from cdc.errors import PadsCdcError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVICE: Final = DESCRIPTOR.services_by_name["GatewayEndpoints"].full_name

_CONNECT_MS: Final = 5_000
OPTIONS: Final = (
    # Messages are read in the thread that iterates over the stream, without a second thread.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    # There is no limit, since this client must show the whole map. Deployed clients fail on a fetch above 4
    # MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A connection that has died silently is detected within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this, the timeout would be a minute in spite of the line above.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # We choose the time between attempts ourselves; this minimum is also the time limit for connecting.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
    ("grpc.dns_min_time_between_resolutions_ms", 500),
)
_FETCH_SECONDS: Final = 40.0
"""Maximum wait for a fetch, in seconds. A server without a complete map answers UNAVAILABLE after 30 s."""
_NOTHING_ANSWERS: Final = ("failed to connect", "errors resolving", "DNS resolution failed")
"""Texts at the beginning of gRPC's details that a chain of causes follows. Only the last cause is useful."""
_NOT_GRPC: Final = "http1.x server"
"""Part of gRPC's details if the server speaks HTTP/1."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
"""Seconds between attempts, at first and at most."""


class NotGrpcError(PadsCdcError):
    """The server speaks HTTP/1, and has never spoken gRPC."""


@dataclass(frozen=True)
class MapFetched:
    """A fetch has replaced the map."""

    count: int


@dataclass(frozen=True)
class EndpointUpdate:
    """The stream has sent an upsert or a delete, which the map now includes."""

    endpoint_id: str
    # Not in the repr, because they contain API keys.
    before: GatewayEndpoint | None = field(repr=False)
    after: GatewayEndpoint | None = field(repr=False)
    """The endpoint after the change; None for a delete."""
    at: float
    """The time at which the map was changed, by ``time.monotonic``."""

    @property
    def changed(self) -> bool:
        """Whether the update changed the map. Every stream begins by repeating the whole map."""
        return self.before != self.after


@dataclass(frozen=True)
class Disconnected:
    """The stream has ended. The next attempt follows after ``retry_seconds``."""

    reason: str
    """Why it ended, in one line."""
    retry_seconds: float


Event = MapFetched | EndpointUpdate | Disconnected


class LegacySubscriber:
    """A client of ``target`` (host:port). One thread iterates over `events`; another may call `close`."""

    def __init__(self, target: str) -> None:
        self.endpoints: dict[str, GatewayEndpoint] = {}
        """The map, which is changed in place or replaced. Any thread can make a consistent copy with
        ``dict()``.
        """
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(target, options=OPTIONS)
        self._fetch = self._channel.unary_unary(
            f"/{_SERVICE}/FetchAuthDataSync",
            request_serializer=AuthDataRequest.SerializeToString,
            response_deserializer=AuthDataResponse.FromString,
        )
        self._stream = self._channel.unary_stream(
            f"/{_SERVICE}/StreamAuthDataUpdates",
            request_serializer=AuthDataUpdatesRequest.SerializeToString,
            response_deserializer=AuthDataUpdate.FromString,
        )

    def events(self) -> Iterator[Event]:
        """Yield each event after the map has been changed. Blocks until the next event, and ends after
        `close`.

        Raises:
            NotGrpcError: the server speaks HTTP/1, and has never spoken gRPC.

        """
        retry, heard = _RETRY_FIRST, False
        while not self._closed.is_set():
            reason = "the server ended the stream, as it does when it shuts down"
            try:
                for event in self._connected():
                    retry, heard = _RETRY_FIRST, True
                    yield event
            except grpc.RpcError as error:
                reason = reason_of(error)
                refuse_http(error, heard=heard)
            except ValueError:  # gRPC raises it if the channel was closed just before the call
                if not self._closed.is_set():
                    raise
            if not self._closed.is_set():
                yield Disconnected(reason, retry)
                self._closed.wait(retry)
                retry = min(2 * retry, _RETRY_MOST)

    def close(self) -> None:
        """End the connection and `events`. Returns at once."""
        self._closed.set()
        self._channel.close()

    def _connected(self) -> Iterator[MapFetched | EndpointUpdate]:
        response = self._fetch(AuthDataRequest(), timeout=_FETCH_SECONDS)
        self.endpoints = dict(response.endpoints)
        yield MapFetched(len(self.endpoints))
        for update in self._stream(AuthDataUpdatesRequest()):
            yield self._apply(update)

    def _apply(self, update: AuthDataUpdate) -> EndpointUpdate:
        endpoint_id = update.endpoint_id
        before = self.endpoints.get(endpoint_id)
        after = None if update.delete else update.gateway_endpoint
        if after is None:
            self.endpoints.pop(endpoint_id, None)
        else:
            self.endpoints[endpoint_id] = after
        return EndpointUpdate(endpoint_id, before, after, time.monotonic())


def refuse_http(error: grpc.RpcError, *, heard: bool) -> None:
    """Raise NotGrpcError if the server speaks HTTP/1, unless it has spoken gRPC before (``heard``), as behind
    a proxy.
    """
    if not heard and isinstance(error, grpc.Call) and _NOT_GRPC in (error.details() or ""):
        raise NotGrpcError("that is not gRPC: is it the metrics port? gRPC is on PORT, by default 10002")


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason why a call failed, as one line. Every error of a call is also a `grpc.Call`."""
    if not isinstance(error, grpc.Call):
        return "the call failed"
    code, details = error.code(), " ".join((error.details() or "").split())
    if _NOT_GRPC in details:
        return "the server does not speak gRPC"
    if any(sign in details for sign in _NOTHING_ANSWERS):
        return f"nothing answers: {details.rpartition(':')[2].strip(' ]')}"
    return f"{code.name}: {details}" if details else code.name
