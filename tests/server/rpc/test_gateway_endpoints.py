"""Streams of the legacy contract, without a network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdate

from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.store.store import Store
from server.observe.metrics import Metrics
from server.rpc.gateway_endpoints import GatewayEndpoints
from server.rpc.hub import Hub
from server.subscribers import Subscribers


class AbortedError(Exception):
    """The call was ended."""


class Call:
    """The server's side of a call."""

    async def send_initial_metadata(self, _: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, *_: object) -> None:
        raise AbortedError


def test_a_stream_that_stood_still_sends_nothing_that_is_gone_since() -> None:
    """All were taken from the store at once: two deletes, and endpoints whose deletes are forgotten, too."""

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
        store.publish(store.prepare([("app_3", b""), ("app_4", b"")], 30), consistent=True, position=30)
        await anext(stream)
        store.publish(store.prepare([("app_3", None), ("app_4", None)], 40), consistent=True, position=40)
        store.forget(store.head)
        with pytest.raises(AbortedError):
            await anext(stream)
        hub.stop()

    asyncio.run(main())
