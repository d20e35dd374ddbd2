"""``proto.GatewayEndpoints``: the legacy contract, which deployed clients use.

These clients cannot report the map that they have, the oldest of them never fetch twice, and an empty map
makes them crash. So a stream begins with everything that a client may lack, and calls wait for the first
complete map.

A stream ends with OK only when the server shuts down. The oldest clients reopen a stream that ended with OK
at once. They would do so in a loop, but a server that is shutting down answers with an error, and after an
error they wait 2 s. The newest clients need the OK, because nothing else resets their reconnection delay,
which grows to 30 s.

Messages are concatenated from bytes: an endpoint's payload is serialized once, in the store, and a protobuf
message is the concatenation of its fields.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from cdc.store.log import OutlivedError
from cdc.store.replay import Replay
from server.rpc.calls import NOT_READY, OTHER_MAP, READY_SECONDS, counted, unavailable
from server.rpc.fetches import Fetches
from server.wire import field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cdc.store.log import Entry
    from cdc.store.store import Store
    from server.observe.metrics import Metrics
    from server.rpc.hub import Hub
    from server.subscribers import Subscribers

    _Context = grpc.aio.ServicerContext[Any, bytes]

_log = structlog.get_logger(__name__)

SERVICE = "proto.GatewayEndpoints"
DEFAULT_CLIENT_BYTES = 4 * 1024 * 1024
"""The size of the largest message that a gRPC client accepts by default, in bytes."""
_CHUNK = 16
"""Maximum number of entries that a stream takes from the store at a time. While all streams are busy, a
revocation waits for this number of entries of each stream.
"""
_SLICE = 5_000
"""Number of entries of a fetch that are encoded before the event loop serves other tasks."""

_DELETE = b"\x18\x01"
"""``AuthDataUpdate.delete = true``."""


class GatewayEndpoints:
    """The servicer of the legacy contract. Every stream is a replay of the map, followed by the changes."""

    def __init__(self, store: Store, hub: Hub, subscribers: Subscribers, metrics: Metrics) -> None:
        self._store = store
        self._hub = hub
        self._subscribers = subscribers
        self._metrics = metrics
        self._fetches = Fetches()
        self._warned = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler for `grpc.aio.Server.add_generic_rpc_handlers`.

        Requests have no fields, so their bytes are not decoded. Responses are already bytes.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchAuthDataSync": grpc.unary_unary_rpc_method_handler(self.fetch),
                "StreamAuthDataUpdates": grpc.unary_stream_rpc_method_handler(self.stream),
            },
        )

    async def fetch(self, _: bytes, context: _Context) -> bytes:
        """Return the whole map as an ``AuthDataResponse``."""
        with counted(self._metrics, "FetchAuthDataSync", context):
            await self._ready(context)
            await self._fetches.admit(context)
            await self._ready(context)  # again, because admission may have taken long
            response = await self._everything()
            self._fetches.answered(len(response))
            if len(response) > DEFAULT_CLIENT_BYTES and not self._warned:
                self._warned = True
                _log.warning(
                    "fetch is larger than default clients accept",
                    bytes=len(response),
                    endpoints=len(self._store),
                )
            return response

    async def _everything(self) -> bytes:
        slices: list[bytes] = []
        live = self._store.live()
        for start in range(0, len(live), _SLICE):
            slices.append(
                b"".join(
                    _map_entry(entry.id, entry.payload)
                    for entry in live[start : start + _SLICE]
                    if entry.payload is not None
                )
            )
            await asyncio.sleep(0)  # let other tasks run
        return b"".join(slices)

    async def stream(self, _: bytes, context: _Context) -> AsyncIterator[bytes]:
        """Yield ``AuthDataUpdate``s without end: the whole map, and then the changes. New changes are sent
        before the rest of the map.
        """
        with counted(self._metrics, "StreamAuthDataUpdates", context):
            await self._ready(context)
            await context.send_initial_metadata(())  # shows the client at once that the stream is open
            subscriber = self._subscribers.add(context.peer(), "gateway_endpoints")
            replay = Replay(self._store)
            try:
                while True:
                    changed = self._hub.changed
                    if self._hub.stopping:  # a reopened stream would be refused
                        return
                    if self._hub.ending is not None:
                        await unavailable(context, self._hub.ending)
                    entries = replay.read(_CHUNK)
                    for entry in entries:
                        # Skip entries that changed while this stream waited: their new state comes later. A
                        # tombstone that was forgotten while it waited has no newer state.
                        newest = self._store.entries.get(entry.id)
                        if newest is entry or (newest is None and entry.payload is None):
                            yield _update(entry)
                            subscriber.count()
                    if not entries and replay.more:
                        await asyncio.sleep(0)  # let other tasks run
                    elif not entries:
                        subscriber.reached(replay.revision)
                        await changed.wait()
            except OutlivedError:
                await unavailable(context, self._hub.ending or OTHER_MAP)
            finally:
                replay.close()
                self._subscribers.remove(subscriber)

    async def _ready(self, context: _Context) -> None:
        if not await self._hub.ready(READY_SECONDS):
            await unavailable(context, self._hub.ending or NOT_READY)


def _update(entry: Entry) -> bytes:
    """Serialize an ``AuthDataUpdate``."""
    return field(b"\x0a", entry.id.encode()) + (
        _DELETE if entry.payload is None else field(b"\x12", entry.payload)
    )


def _map_entry(endpoint_id: str, payload: bytes) -> bytes:
    """Serialize one entry of ``AuthDataResponse.endpoints``."""
    return field(b"\x0a", field(b"\x0a", endpoint_id.encode()) + field(b"\x12", payload))
