"""Streams of the legacy contract, without a network."""

from __future__ import annotations

import asyncio
from typing import Any

from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdate

from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.store.store import Store
from server.observe.metrics import Metrics
from server.rpc.gateway_endpoints import GatewayEndpoints
from server.rpc.hub import Hub
from server.subscribers import Subscribers


class Call:
    """The server's side of a call."""

    async def send_initial_metadata(self, _: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def test_a_stream_that_stood_still_sends_a_delete_that_was_forgotten_since() -> None:
    """Both were taken from the store at once."""

    async def main() -> None:
        store, subscribers = Store(), Subscribers()
        rows: list[tuple[str, bytes | None]] = [("app_1", b""), ("app_2", b"")]
        store.publish(store.prepare(rows, 10), consistent=True, position=10)
        store.loaded()
        store.publish(store.prepare([(name, None) for name, _ in rows], 20), consistent=True, position=20)
        hub = Hub(store, subscribers, Pair(), sure=lambda: True)
        metrics = Metrics(
            version="1", store=store, freshness=Freshness(), subscribers=subscribers, audit_interval=None
        )
        call: Any = Call()
        stream = GatewayEndpoints(store, hub, subscribers, metrics).stream(call, call)
        first = await anext(stream)
        store.forget(store.head)
        second = await anext(stream)
        deleted = [AuthDataUpdate.FromString(message) for message in (first, second)]
        assert {update.endpoint_id for update in deleted if update.delete} == {"app_1", "app_2"}
        hub.stop()

    asyncio.run(main())
