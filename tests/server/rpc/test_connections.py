"""Connections: that a stream stands is known at once, that a client is gone without a word is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdatesRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from tests.plugins.feed import Stream, opening
from tests.plugins.server import DEADLINE, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.plugins.feed import StreamFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

FOUND_SECONDS = 60.0
"""The server pings after 30 s and waits for 10."""


def test_headers_come_before_there_is_anything_to_say(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    """No endpoint, so that the old stream stays silent, and no Open, so that the feed does."""
    server = serve(database)
    assert stream(server).call.initial_metadata() is not None
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        call = GatewayEndpointsStub(channel).StreamAuthDataUpdates(AuthDataUpdatesRequest(), timeout=DEADLINE)
        assert call.initial_metadata() is not None
        assert call.is_active(), "headers that come with the end are none"


@pytest.mark.soak
def test_a_client_that_is_gone_without_a_word_is_found_out(database: Database, serve: ServerFactory) -> None:
    server = serve(database)
    with Proxy(server.grpc) as proxy, grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        old = GatewayEndpointsStub(channel).StreamAuthDataUpdates(AuthDataUpdatesRequest())
        feed = Stream(f"127.0.0.1:{proxy.port}", opening())
        feed.until("batch")
        wait_until(lambda: server.metric("pads_cdc_subscribers") == 2, "both are subscribed")
        proxy.stalled = True
        wait_until(lambda: server.metric("pads_cdc_subscribers") == 0, "neither is any more", FOUND_SECONDS)
        assert old.is_active(), "it has not said a word"
        feed.close()
