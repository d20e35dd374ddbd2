"""Clients of the endpoint feed, and a bare stream for what no proper client would do."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import pytest
from pads_cdc_client import EndpointFeed
from pads_cdc_client.digest import Digest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.pb.pads.cdc.v1.endpoint_feed_pb2_grpc import (
    EndpointFeedServiceServicer,
    EndpointFeedServiceStub,
    add_EndpointFeedServiceServicer_to_server,
)

from tests.plugins.server import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.server import Server


class Stream:
    """One Watch, message by message; what is not read is not sent: the window stays as small as it begins."""

    def __init__(self, target: str, *first: pb.WatchRequest | bytes) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
        self.channel = grpc.insecure_channel(target, options=options)
        self._requests: queue.SimpleQueue[pb.WatchRequest | bytes | None] = queue.SimpleQueue()
        for request in first:
            self.send(request)
        watch = self.channel.stream_stream(
            "/pads.cdc.v1.EndpointFeedService/Watch",
            request_serializer=_serialized,
            response_deserializer=pb.WatchResponse.FromString,
        )
        self.call = watch(iter(self._requests.get, None), timeout=4 * DEADLINE)

    def send(self, request: pb.WatchRequest | bytes) -> None:
        """Send a message, or bytes that are none."""
        self._requests.put(request)

    def acknowledge(self, token: bytes, *, mismatch: bool = False) -> None:
        """Acknowledge a token."""
        self.send(pb.WatchRequest(acknowledge=pb.Acknowledge(token=token, digest_mismatch=mismatch)))

    def read(self) -> pb.WatchResponse:
        """Return the next message."""
        message: pb.WatchResponse = next(self.call)
        return message

    def until(self, kind: str) -> pb.WatchResponse:
        """Return the next message of a kind: ``opened``, ``batch``, ``progress``."""
        while not (message := self.read()).HasField(kind):
            pass
        return message

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Read on to the end; returns the status."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        return self.call.code(), self.call.details()

    def close(self) -> None:
        """Cut the connection."""
        self._requests.put(None)
        self.channel.close()


def _serialized(request: pb.WatchRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def opening(token: bytes = b"", client_id: str = "test") -> pb.WatchRequest:
    """Make the first message."""
    return pb.WatchRequest(open=pb.Open(client_id=client_id, resume_token=token))


class StreamFactory(Protocol):
    """Opens a stream; it ends with the test."""

    def __call__(self, server: Server, *first: pb.WatchRequest | bytes) -> Stream: ...


class FeedFactory(Protocol):
    """Connects a client to one server or several; it ends with the test."""

    def __call__(self, *servers: Server | str, **options: Any) -> EndpointFeed: ...


@pytest.fixture
def stream() -> Iterator[StreamFactory]:
    """Bare streams."""
    with ExitStack() as streams:

        def connect(server: Server, *first: pb.WatchRequest | bytes) -> Stream:
            one = Stream(f"127.0.0.1:{server.grpc}", *first)
            streams.callback(one.close)
            return one

        yield connect


@pytest.fixture
def feed() -> Iterator[FeedFactory]:
    """Clients."""
    with ExitStack() as clients:

        def connect(*servers: Server | str, **options: Any) -> EndpointFeed:
            targets = [one if isinstance(one, str) else f"127.0.0.1:{one.grpc}" for one in servers]
            return clients.enter_context(EndpointFeed(*targets, client_id="test", **options))

        yield connect


@pytest.fixture(params=["a thread", "an event loop"])
def either_feed(request: pytest.FixtureRequest, feed: FeedFactory) -> Iterator[FeedFactory]:
    """Clients that follow in a thread of their own, then those that an event loop follows."""
    if request.param == "a thread":
        yield feed
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    clients: list[EndpointFeed] = []

    async def start(targets: list[str], options: dict[str, Any]) -> EndpointFeed:
        clients.append(EndpointFeed(*targets, client_id="test", loop=loop, **options))
        return clients[-1].start()

    def connect(*servers: Server | str, **options: Any) -> EndpointFeed:
        targets = [one if isinstance(one, str) else f"127.0.0.1:{one.grpc}" for one in servers]
        return asyncio.run_coroutine_threadsafe(start(targets, options), loop).result(DEADLINE)

    try:
        yield connect
    finally:
        for client in clients:
            client.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


def status(server: Server) -> pb.StatusResponse:
    """Ask a server what it holds."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        response: pb.StatusResponse = EndpointFeedServiceStub(channel).Status(pb.StatusRequest())
        return response


def wait_exact(client: EndpointFeed, oracle: dict[str, bytes]) -> None:
    """Return when the client holds this map."""
    wait_until(lambda: dict(client.endpoints) == oracle, "the mapping query's result at a client of the feed")


UNSETTLED = GatewayEndpoint(endpoint_id="one").SerializeToString()


def _checkpoint(*, unsettled: bool) -> pb.Checkpoint:
    found = pb.Checkpoint(
        revision=1, count=1, digest=bytes(Digest.of({"one": UNSETTLED})), unsettled=unsettled
    )
    found.staleness.FromSeconds(0)
    return found


class Unsettled(EndpointFeedServiceServicer):
    """Sends a snapshot and one unsettled checkpoint after the other; a settled one once `rest` is set.

    A script, since a real server says so only when changes have let it come to no rest for an interval.
    """

    def __init__(self) -> None:
        self.acknowledged: list[bytes] = []
        self.rest = threading.Event()
        self.port = 0

    def Watch(self, request_iterator: Any, context: Any) -> Iterator[pb.WatchResponse]:  # noqa: N802 - the proto's
        next(request_iterator)
        threading.Thread(target=self._hear, args=(request_iterator,), daemon=True).start()
        opened = pb.Opened(token=b"open", reset=pb.Reset(reason=pb.RESET_REASON_NO_TOKEN, count=1))
        opened.progress_interval.FromSeconds(60)
        yield pb.WatchResponse(opened=opened)
        change = pb.Change(revision=1, endpoint_id="one", endpoint=UNSETTLED)
        end = pb.Batch(changes=[change], checkpoint=_checkpoint(unsettled=True), snapshot_end=True)
        yield pb.WatchResponse(batch=end)
        number = 0
        while context.is_active():
            number += 1
            unsettled = not self.rest.wait(0.02)
            yield pb.WatchResponse(
                progress=pb.Progress(token=b"%d" % number, checkpoint=_checkpoint(unsettled=unsettled))
            )
            if not unsettled:
                return

    def _hear(self, requests: Any) -> None:
        try:
            for request in requests:
                assert not request.acknowledge.digest_mismatch
                self.acknowledged.append(request.acknowledge.token)
        except grpc.RpcError:
            pass  # the client is gone


@pytest.fixture
def unsettled() -> Iterator[Unsettled]:
    """A server of one endpoint, `UNSETTLED`, that comes to no rest."""
    with ThreadPoolExecutor(4) as threads:
        server, script = grpc.server(threads), Unsettled()
        add_EndpointFeedServiceServicer_to_server(script, server)
        script.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield script
        script.rest.set()
        server.stop(0).wait()


class Scripted(EndpointFeedServiceServicer):
    """A server of the feed that sends what a test says: what a real one is for no time, or never."""

    def __init__(self) -> None:
        self.acknowledged: queue.SimpleQueue[pb.Acknowledge] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[pb.WatchResponse] = queue.SimpleQueue()
        self._held: dict[str, bytes] = {}
        self.port = 0

    def opened(self, seconds: float = 60.0) -> None:
        """Begin, with everything to come."""
        opened = pb.Opened(token=b"0", reset=pb.Reset(reason=pb.RESET_REASON_NO_TOKEN))
        opened.progress_interval.FromNanoseconds(int(seconds * 1e9))
        self._held = {}
        self._messages.put(pb.WatchResponse(opened=opened))

    def send(
        self, *endpoints: GatewayEndpoint, end: bool = False, proof: bool = True, wrong: bool = False
    ) -> None:
        """Send endpoints, as a snapshot's last part with ``end``, with a proof that is ``wrong`` or right."""
        batch = pb.Batch(token=b"1", snapshot_end=end)
        for endpoint in endpoints:
            serialized = endpoint.SerializeToString()
            batch.changes.add(revision=1, endpoint_id=endpoint.endpoint_id, endpoint=serialized)
            self._held[endpoint.endpoint_id] = serialized
        if proof:
            batch.checkpoint.digest = bytes(Digest.of({} if wrong else self._held))
            batch.checkpoint.count = len(self._held)
            batch.checkpoint.staleness.FromSeconds(0)
        self._messages.put(pb.WatchResponse(batch=batch))

    def Watch(self, request_iterator: Any, context: Any) -> Iterator[pb.WatchResponse]:  # noqa: N802 - the proto's
        next(request_iterator)
        threading.Thread(target=self._hear, args=(request_iterator,), daemon=True).start()
        while context.is_active():
            with suppress(queue.Empty):
                yield self._messages.get(timeout=0.05)

    def _hear(self, requests: Any) -> None:
        with suppress(grpc.RpcError):  # the client is gone
            for request in requests:
                self.acknowledged.put(request.acknowledge)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server of the feed that a test speaks for."""
    with ThreadPoolExecutor(4) as threads:
        server, script = grpc.server(threads), Scripted()
        add_EndpointFeedServiceServicer_to_server(script, server)
        script.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield script
        server.stop(0).wait()
