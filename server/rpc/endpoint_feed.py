"""``pads.cdc.v1.EndpointFeedService``: gRPC around `server.rpc.feed`.

A stream waits in only two places. One is the wait until the client takes a message. During it, nothing is
read from the store, so a slow client costs only one message of memory. The other is the wait for news, for
its permit, or for the clock. During it, there is nothing to send.
"""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING, Final

import grpc
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.state.token import Behind, Reset, judge
from cdc.store.log import OutlivedError
from server.rpc.calls import (
    NOT_READY,
    OTHER_MAP,
    READY_SECONDS,
    abort,
    counted,
    first_message,
    unavailable,
    wait,
)
from server.rpc.feed import FeedStream, duration, here
from server.rpc.feed_requests import NO_OPEN, MisuseError, acknowledgement, opening
from server.rpc.snapshot_permits import SnapshotPermit, SnapshotPermits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cdc.freshness import Freshness
    from cdc.state.origin import Origin
    from cdc.store.store import Store
    from server.config.settings import Serving
    from server.observe.metrics import Metrics
    from server.rpc.calls import Context
    from server.rpc.hub import Hub
    from server.subscribers import Subscriber, Subscribers

SERVICE: Final = pb.DESCRIPTOR.services_by_name["EndpointFeedService"].full_name

_BEHIND_SECONDS: Final = 5.0
"""Maximum wait until this server has reached the state that a client of another server has seen, in seconds.
"""
_LOOK_SECONDS: Final = 0.05
"""Interval, in seconds, at which the server checks whether it has caught up with what a client has seen
elsewhere. It cannot wait for a publication, since positions can change without one.
"""
_STALL_SECONDS: Final = 5.0
"""If a client takes no message for this number of seconds, its snapshot permit is given to the next client.
"""


class FeedService:
    """The servicer of the endpoint feed."""

    def __init__(
        self,
        settings: Serving,
        store: Store,
        origin: Callable[[], Origin],
        freshness: Freshness,
        hub: Hub,
        subscribers: Subscribers,
        metrics: Metrics,
        mirror: Callable[[object, Context], Awaitable[None]],
        reached_at: Callable[[], float] = lambda: inf,
    ) -> None:
        """``mirror`` answers the method Mirror. ``reached_at`` returns the current `Here.reached_at`."""
        self._reached_at = reached_at
        self._store = store
        self._origin = origin
        self._freshness = freshness
        self._hub = hub
        self._subscribers = subscribers
        self._metrics = metrics
        self._retention = settings.tombstone_retention
        self._interval = settings.progress_interval
        self._permits = SnapshotPermits(settings.max_concurrent_snapshots)
        self._mirror = mirror

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler for `grpc.aio.Server.add_generic_rpc_handlers`.

        Requests arrive as bytes, so that a request that cannot be parsed is answered with INVALID_ARGUMENT.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Watch": grpc.stream_stream_rpc_method_handler(
                    self.watch, response_serializer=pb.WatchResponse.SerializeToString
                ),
                "Status": grpc.unary_unary_rpc_method_handler(
                    self.status, response_serializer=pb.StatusResponse.SerializeToString
                ),
                "Mirror": grpc.stream_stream_rpc_method_handler(
                    self._mirror, response_serializer=pb.MirrorResponse.SerializeToString
                ),
            },
        )

    async def status(self, _: bytes, context: Context) -> pb.StatusResponse:
        """Return the current state of the map."""
        with counted(self._metrics, "Status", context):
            positions = self._freshness.positions()
            with self._store.lock:
                response = pb.StatusResponse(
                    revision=self._store.head,
                    count=len(self._store),
                    digest=self._store.digest,
                    ready=self._store.ready,
                )
            response.epoch = self._origin().epoch
            response.staleness.CopyFrom(duration(self._freshness.staleness()))
            if positions.server_end and positions.applied:  # 0 means "not known yet"
                response.lag_bytes = max(0, positions.server_end - positions.applied)
            response.subscribers = len(self._subscribers)
            return response

    async def watch(self, _: object, context: Context) -> None:
        """Serve one client until it disconnects, or the server shuts down."""
        with counted(self._metrics, "Watch", context):
            await context.send_initial_metadata(())  # shows the client at once that the stream is open
            opened = await first_message(context, opening, NO_OPEN)
            if not await self._hub.ready(READY_SECONDS):
                await unavailable(context, self._hub.ending or NOT_READY)
            feed = FeedStream(self._store, self._origin, self._freshness.staleness, self._interval)
            subscriber = self._subscribers.add(context.peer(), "endpoint_feed", opened.client_id)
            wake = self._hub.attach()
            stream = _Stream(context, feed, subscriber, wake)
            try:
                await stream.send(await self._open(feed, opened.resume_token, context, wake))
                stream.listen()
                await self._serve(stream)
            except OutlivedError:
                await unavailable(context, self._hub.ending or OTHER_MAP)
            finally:
                stream.end()
                self._hub.detach(wake)
                self._subscribers.remove(subscriber)

    async def _open(
        self, feed: FeedStream, token: bytes, context: Context, wake: asyncio.Event
    ) -> pb.WatchResponse:
        opened = time.monotonic()
        while True:
            wake.clear()
            around = here(self._store, self._origin, self._retention, self._reached_at())
            verdict = judge(token, around, opened=opened)
            if not isinstance(verdict, Behind):
                message = feed.open(verdict, token)
                forgotten = self._origin().forgotten
                if self._store.history is not around.history or forgotten != around.origin.forgotten:
                    continue  # the state by which the token was judged changed before the walk began
                if isinstance(verdict, Reset):
                    self._metrics.feed_reset(verdict.reason)
                return message
            if self._hub.ending is not None:
                await unavailable(context, self._hub.ending)
            if time.monotonic() - opened > _BEHIND_SECONDS:
                await unavailable(
                    context,
                    "this server is behind the server that made the token; keep token and map,"
                    " and try again here or there",
                )
            await wait(wake, _LOOK_SECONDS)

    async def _serve(self, stream: _Stream) -> None:
        feed, wake = stream.feed, stream.wake
        stream.expect_progress(self._interval)
        while True:
            wake.clear()
            if self._hub.ending is not None:
                await unavailable(stream.context, self._hub.ending)
            if stream.misuse is not None:
                await abort(stream.context, grpc.StatusCode.INVALID_ARGUMENT, stream.misuse)
            if feed.mismatched:
                self._metrics.feed_reset("digest_mismatch")
                await stream.send(feed.open(Reset("digest_mismatch")))
            may_read = stream.may_read(self._permits)
            sent = may_read and await stream.send_news()
            if stream.progress_due:
                await stream.send(feed.progress(queued=not may_read))
                stream.expect_progress(self._interval)
            elif not may_read or not feed.more:
                await wake.wait()
            elif not sent:
                await asyncio.sleep(0)  # nothing can be sent to this client, so let other tasks run


class _Stream:
    """One call of Watch: its messages, and the client's acknowledgements."""

    def __init__(
        self, context: Context, feed: FeedStream, subscriber: Subscriber, wake: asyncio.Event
    ) -> None:
        self.context = context
        self.feed = feed
        self.wake = wake
        self.misuse: str | None = None
        """The error text if the client has violated the protocol, otherwise None."""
        self._subscriber = subscriber
        self._permit: SnapshotPermit | None = None
        self._listening: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.progress_due = False

    def expect_progress(self, seconds: float) -> None:
        """Set `progress_due` and `wake` after ``seconds``.

        There is one timer for each interval, not for each wait.
        """
        self.progress_due = False
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._progress_is_due)

    def _progress_is_due(self) -> None:
        self.progress_due = True
        self.wake.set()

    async def send(self, message: pb.WatchResponse) -> None:
        """Send a message. Returns when the connection has room for the next one."""
        stalled = None
        if self._permit is not None and self._permit.held:
            stalled = asyncio.get_running_loop().call_later(_STALL_SECONDS, self._permit.end)
        try:
            await self.context.write(message)
        finally:
            if stalled is not None:
                stalled.cancel()
        self._subscriber.count()
        self._subscriber.reached(self.feed.acknowledged)

    async def send_news(self) -> bool:
        """Send everything that can be sent now. Return whether there was anything."""
        sent = False
        for message in self.feed.take():
            await self.send(message)
            sent = True
        if not self.feed.catching_up:
            self.give_back()  # this is done at once, because other clients wait for the permit
        return sent

    def may_read(self, permits: SnapshotPermits) -> bool:
        """Return whether the store may be read.

        A snapshot needs a permit; when it is granted, `wake` is set.
        """
        if not self.feed.catching_up:
            return True
        if self._permit is None or self._permit.ended:
            self._permit = permits.ask(self.wake)
        return self._permit.held

    def give_back(self) -> None:
        """Give the permit back, if there is one."""
        if self._permit is not None:
            self._permit.end()
            self._permit = None

    def listen(self) -> None:
        """Begin to read acknowledgements."""
        self._listening = asyncio.create_task(self._listen())

    def end(self) -> None:
        """Stop reading acknowledgements, give the permit back, and close the feed."""
        if self._listening is not None:
            self._listening.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self.give_back()
        self.feed.close()

    async def _listen(self) -> None:
        try:
            while (raw := await self.context.read()) is not grpc.aio.EOF:
                self.feed.acknowledge(acknowledgement(raw))
                self._subscriber.reached(self.feed.acknowledged)
                if self.feed.mismatched:
                    self.wake.set()
        except MisuseError as error:
            self.misuse = str(error)
            self.wake.set()
