"""``pads-cdc serve``: composes a server that follows a database.

The event loop (gRPC, HTTP) runs in the main thread. The reader of the slot, the applier, each probe and the
publisher have their own threads. All threads share the store, which has a lock, and `Freshness`.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from server.broker.connection import Broker
from server.broker.gauges import PublishedGauges
from server.broker.publishing import Publishing
from server.broker.seal import Seal
from server.front import Front, prepare
from server.observe.metrics import PairGauges
from server.pair.mirror_service import MirrorService
from server.pipeline import Pipeline
from server.rpc.endpoint_feed import FeedService

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.config.settings import Settings
    from server.observe.log_writer import LogWriter

_Made = TypeVar("_Made")


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM or SIGINT, and return the exit code.

    Raises:
        PadsCdcError: the server cannot start, or cannot continue.

    """
    writer = prepare(settings)
    return asyncio.run(_serve(settings, writer))


async def _serve(settings: Settings, writer: LogWriter) -> int:
    pair, freshness = Pair(peered=settings.peer_address is not None), Freshness()
    front = Front(
        settings, writer, freshness, pair, source=settings.slot_name, audit_interval=settings.audit_interval
    )
    if pair.peered:
        front.metrics.registry.register(PairGauges(pair))
    pipeline = await _unless(
        front.stop,
        lambda: Pipeline(settings, front.store, freshness, front.observer, pair, front.stop_soon),
    )
    if pipeline is None:
        return 0
    publishing = _publishing(settings, front, pipeline)
    mirrors = MirrorService(
        settings, front.store, pipeline.origin, pipeline.parents, pair, front.hub, front.metrics, freshness
    )
    feed = FeedService(
        settings,
        front.store,
        pipeline.origin.now,
        freshness,
        front.hub,
        front.subscribers,
        front.metrics,
        mirrors.mirror,
    )

    def start() -> None:
        pipeline.start()
        if publishing is not None:
            publishing.start()

    def end() -> None:
        pipeline.stop()
        if publishing is not None:
            publishing.stop()

    await front.serve(feed, start, end, mapping=settings.mapping, slot=settings.slot_name)
    if pipeline.applier.failure is not None:
        raise pipeline.applier.failure
    return 0


def _publishing(settings: Settings, front: Front, pipeline: Pipeline) -> Publishing | None:
    """Make the thread that publishes to relays, if there is a broker.

    Raises:
        ConfigurationError: a file of the BROKER settings cannot be read.

    """
    if settings.broker_url is None:
        return None
    broker, seal = Broker(settings, "pads-cdc"), Seal(settings.broker_seal_file)
    broker.verify()
    publishing = Publishing(
        broker,
        seal,
        settings.broker_stream,
        settings.broker_replicas,
        front.store,
        pipeline.origin.now,
        front.freshness,
        front.pair,
        front.observer,
    )
    front.metrics.registry.register(PublishedGauges(publishing.published, front.store))
    return publishing


async def _unless(stop: asyncio.Event, make: Callable[[], _Made]) -> _Made | None:
    """Run ``make`` in a thread and return its result.

    If ``stop`` is set first, returns None, and the thread is left running.
    """
    loop = asyncio.get_running_loop()
    made: asyncio.Future[_Made] = loop.create_future()

    def run() -> None:
        try:
            result = make()
        except BaseException as error:  # noqa: BLE001 - the waiting task raises it
            outcome = partial(made.set_exception, error)
        else:
            outcome = partial(made.set_result, result)
        with suppress(RuntimeError):  # the loop is closed, so no task waits any more
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=run, name="preflight", daemon=True).start()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((made, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return await made if made.done() else None
