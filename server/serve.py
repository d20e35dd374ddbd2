"""Composition: every part is made here and nowhere else, and handed to those that need it.

The event loop (gRPC, HTTP) has the main thread; the reader of the slot, the applier and the probe have one
each. They share the store, which has a lock, and `Freshness`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from cdc.errors import PadsCdcError
from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.store.store import Store
from server import grpc_server
from server.observe import http, logs
from server.observe.fanout import FanOut
from server.observe.health import Health
from server.observe.log_observer import LogObserver
from server.observe.malloc_trim import MallocTrim
from server.observe.metrics import Metrics
from server.observe.pair_gauges import PairGauges
from server.observe.recent import Recent
from server.observe.status_page import StatusPage
from server.pair.mirror_service import MirrorService
from server.pipeline import Pipeline
from server.rpc.endpoint_feed import EndpointFeed
from server.rpc.hub import Hub
from server.security.security import Security
from server.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.config.settings import Settings

_log = structlog.get_logger("pads_cdc")

_Made = TypeVar("_Made")

_SWITCH_SECONDS: Final = 0.001
"""How long a thread may keep the interpreter: a revocation that comes while a plan ripples waits for that in
three of them. Python's own is 5 ms.
"""


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit code.

    Raises:
        PadsCdcError: it cannot start, or cannot go on.

    """
    logs.configure(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    for line in settings.misspelt():
        _log.warning("environment", message=line)
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    store, freshness, subscribers = Store(), Freshness(), Subscribers()
    metrics = Metrics(
        version=version("pads-cdc"),
        store=store,
        freshness=freshness,
        subscribers=subscribers,
        audit_interval=settings.audit_interval,
    )
    pair = Pair(peered=settings.peer_address is not None)
    if pair.peered:
        metrics.registry.register(PairGauges(pair))
    health = Health(store, freshness, settings.max_staleness, pair)
    recent = Recent()
    page = StatusPage(
        version=version("pads-cdc"),
        slot_name=settings.slot_name,
        store=store,
        freshness=freshness,
        subscribers=subscribers,
        health=health,
        recent=recent,
        pair=pair,
    )
    hub = Hub(store, subscribers, pair, lambda: pair.sure(freshness.silence()))
    observer = FanOut(metrics, health, recent, LogObserver(), MallocTrim())
    security = Security(settings, metrics.registry, observer)
    pipeline = await _unless(
        stop,
        lambda: Pipeline(
            settings, store, freshness, observer, pair, lambda: loop.call_soon_threadsafe(stop.set)
        ),
    )
    if pipeline is None:
        return 0
    async with AsyncExitStack() as running:
        mirrors = MirrorService(settings, store, pipeline.origin, pipeline.parents, pair, hub, metrics)
        feed = EndpointFeed(
            settings, store, pipeline.origin, freshness, hub, subscribers, metrics, mirrors.mirror
        )
        grpc = await grpc_server.start(settings, store, hub, subscribers, metrics, health, feed, security)
        running.push_async_callback(grpc.stop)
        pages = await http.start(
            host=settings.metrics_host,
            port=settings.metrics_port,
            registry=metrics.registry,
            health=health,
            page=page,
        )
        running.push_async_callback(pages.stop)
        pipeline.start()
        _log.info(
            "serving", grpc=grpc.port, http=pages.port, mapping=settings.mapping, slot=settings.slot_name
        )
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(grpc.ended())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        deserted = not stop.is_set()
        _log.info("stopping")
        hub.stop()
        # Side by side: a frozen database must not keep streams from ending, nor a slow client the slot.
        await asyncio.gather(asyncio.to_thread(pipeline.stop), grpc.stop())
        for end in ends:
            end.cancel()
    if pipeline.applier.failure is not None:
        raise pipeline.applier.failure
    if deserted:  # without it the process would look alive and serve nobody
        raise PadsCdcError("the gRPC server ended by itself: this is a bug, please report it with the log")
    return 0


async def _unless(stop: asyncio.Event, make: Callable[[], _Made]) -> _Made | None:
    """Return what ``make`` makes in a thread, or None if ``stop`` is set before; then the thread is left
    behind.
    """
    loop = asyncio.get_running_loop()
    made: asyncio.Future[_Made] = loop.create_future()

    def run() -> None:
        try:
            result = make()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            outcome = partial(made.set_exception, error)
        else:
            outcome = partial(made.set_result, result)
        with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=run, name="preflight", daemon=True).start()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((made, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return await made if made.done() else None
