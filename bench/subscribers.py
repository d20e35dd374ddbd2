"""Subscribers of our server, for `bench.following`.

They are bare streams that only read and note arrivals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
import grpc.experimental
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdate
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from bench.following import now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.following import Notebook

STREAM: Final = "/proto.GatewayEndpoints/StreamAuthDataUpdates"
WATCH: Final = "/pads.cdc.v1.EndpointFeedService/Watch"
OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # Messages are read in the thread that iterates over the stream, without a second thread.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
)


def feed(notebook: Notebook, target: str) -> None:
    """Follow the feed. Arrivals before the end of the snapshot are not noted."""
    opening = pb.WatchRequest(open=pb.Open(client_id="bench"))
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        watch = channel.stream_stream(WATCH, pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString)
        complete = False
        for message in watch(iter([opening])):
            at = now()
            if complete:
                notebook.arrived([change.endpoint_id for change in message.batch.changes], at)
            elif message.batch.snapshot_end:
                complete = True
                notebook.following()


def old(notebook: Notebook, target: str) -> None:
    """Follow the legacy contract's stream, which begins with the whole map, and note all arrivals."""
    for update in _updates(notebook, target):
        notebook.arrived((update.endpoint_id,), now())


def old_keys(notebook: Notebook, target: str) -> None:
    """Follow the legacy contract's stream, and note each update's API key, which identifies a rotation."""
    for update in _updates(notebook, target):
        notebook.arrived((update.gateway_endpoint.auth.static_api_key.api_key,), now())


def _updates(notebook: Notebook, target: str) -> Iterator[AuthDataUpdate]:
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        stream: grpc.UnaryStreamMultiCallable[bytes, AuthDataUpdate] = channel.unary_stream(
            STREAM, response_deserializer=AuthDataUpdate.FromString
        )
        updates = stream(b"")
        updates.initial_metadata()
        notebook.following()
        yield from updates
