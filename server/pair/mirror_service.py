"""``EndpointFeedService.Mirror``: gRPC around `mirror_feed`, for a pair's second server and for relays."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import grpc

from cdc.pair.pair import StandbyServer
from cdc.relay.leader import HEAD_SECONDS
from cdc.store.log import OutlivedError
from server.pair.mirror_feed import MirrorFeed
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
from server.rpc.feed_requests import NO_OPEN, MisuseError, mirror_acknowledgement, mirror_opening

if TYPE_CHECKING:
    from cdc.freshness import Freshness
    from cdc.mapping.parents import Parents
    from cdc.pair.pair import Pair
    from cdc.state.origin import CurrentOrigin
    from cdc.store.store import Store
    from server.config.settings import Settings
    from server.observe.metrics import Metrics
    from server.rpc.calls import Context
    from server.rpc.hub import Hub

_NOT_LEADING = "this server does not read the slot"


class MirrorService:
    """Serves standby servers and relays. They receive each change as soon as gateways do."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        origin: CurrentOrigin,
        parents: Parents,
        pair: Pair,
        hub: Hub,
        metrics: Metrics,
        freshness: Freshness,
    ) -> None:
        self._freshness = freshness
        self._store = store
        self._origin = origin
        self._parents = parents
        self._pair = pair
        self._hub = hub
        self._metrics = metrics
        self._interval = settings.progress_interval

    async def mirror(self, _: object, context: Context) -> None:
        """Serve one relay or standby server until it disconnects, or until the standby server takes over."""
        with counted(self._metrics, "Mirror", context):
            await context.send_initial_metadata(())
            opening = await first_message(context, mirror_opening, NO_OPEN)
            if not self._pair.leading and not opening.relay:
                await unavailable(context, _NOT_LEADING)
            if not await self._hub.ready(READY_SECONDS):
                await unavailable(context, self._hub.ending or NOT_READY)
            loop, wake = asyncio.get_running_loop(), self._hub.attach()
            # A relay receives the same as a standby server, except parents. Nothing waits for a relay.
            wake_up = partial(loop.call_soon_threadsafe, wake.set)
            standby = StandbyServer(wake_up) if opening.relay else self._pair.join(wake_up)
            feed = MirrorFeed(
                self._store,
                self._origin,
                None if opening.relay else self._parents,
                self._pair,
                standby,
                HEAD_SECONDS if opening.relay else self._interval,
                self._freshness,
            )
            listening = asyncio.create_task(_listen(context, feed, wake))
            try:
                await context.write(feed.open(opening))
                await asyncio.to_thread(feed.look_back)
                while True:
                    wake.clear()
                    if self._hub.ending is not None:
                        await unavailable(context, self._hub.ending)
                    if listening.done() and (misuse := listening.result()) is not None:
                        await abort(context, grpc.StatusCode.INVALID_ARGUMENT, misuse)
                    # Without a snapshot permit: a mirror reads everything once, and it must not wait.
                    idle = True
                    for message in feed.take():
                        await context.write(message)
                        idle = False
                    if idle:
                        await (asyncio.sleep(0) if feed.more else wait(wake, feed.patience))
            except OutlivedError:
                await unavailable(context, self._hub.ending or OTHER_MAP)
            finally:
                listening.cancel()
                feed.close()
                self._pair.leave(standby)
                self._hub.detach(wake)


async def _listen(context: Context, feed: MirrorFeed, wake: asyncio.Event) -> str | None:
    """Read acknowledgements until the stream ends.

    Return an error if the standby server violated the protocol.
    """
    try:
        while (raw := await context.read()) is not grpc.aio.EOF:
            feed.acknowledge(mirror_acknowledgement(raw))
    except MisuseError as error:
        wake.set()
        return str(error)
    return None
