"""Composes the outward part of a server or a relay: gRPC, HTTP, metrics and health."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import structlog

from cdc.errors import PadsCdcError
from cdc.store.store import Store
from server import grpc_server
from server.descriptors import shares
from server.observe import http, logs
from server.observe.fanout import FanOut
from server.observe.health import Health
from server.observe.log_counters import LogCounters
from server.observe.log_observer import LogObserver
from server.observe.malloc_trim import MallocTrim
from server.observe.metrics import Metrics
from server.observe.recent import Recent
from server.observe.status_page import StatusPage
from server.rpc.hub import Hub
from server.security.security import Security
from server.signals import pass_by, stop_waking
from server.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.freshness import Freshness
    from cdc.pair.pair import Pair
    from server.config.settings import Serving
    from server.observe.log_writer import LogWriter
    from server.rpc.endpoint_feed import FeedService

_log = structlog.get_logger("pads_cdc")

_SWITCH_SECONDS: Final = 0.001
"""Seconds for which a thread may keep the interpreter; Python's default is 5 ms. A revocation that arrives
during a plan's ripple waits for this time in each of three threads.
"""


def prepare(settings: Serving) -> LogWriter:
    """Configure logging, and warn about mistyped names in the environment. Return the log's writer."""
    writer = logs.configure(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    for line in settings.misspelt():
        _log.warning("environment", message=line)
    return writer


class Front:
    """The common parts of a server and a relay. Create it in the event loop in which it will run."""

    def __init__(
        self,
        settings: Serving,
        writer: LogWriter,
        freshness: Freshness,
        pair: Pair,
        *,
        source: str,
        audit_interval: float | None,
    ) -> None:
        """``source`` describes the map's source on the status page. ``audit_interval`` is in seconds; None
        for a relay, which makes no audits.
        """
        self.settings = settings
        self._shares = shares()
        self.freshness = freshness
        self.pair = pair
        self.store, self.subscribers = Store(), Subscribers()
        self.metrics = Metrics(
            version=version("pads-cdc"),
            store=self.store,
            freshness=freshness,
            subscribers=self.subscribers,
            audit_interval=audit_interval,
        )
        self.metrics.registry.register(LogCounters(lambda: writer.dropped))
        self.health = Health(self.store, freshness, settings.max_staleness, pair)
        recent = Recent()
        self.page = StatusPage(
            version=version("pads-cdc"),
            slot_name=source,
            store=self.store,
            freshness=freshness,
            subscribers=self.subscribers,
            health=self.health,
            recent=recent,
            pair=pair,
        )
        self.hub = Hub(self.store, self.subscribers, pair, lambda: pair.sure(freshness.silence()))
        self.observer = FanOut(self.metrics, self.health, recent, LogObserver(), MallocTrim())
        self.security = Security(settings, self.metrics.registry, self.observer)
        self.stop = asyncio.Event()
        """Set when the process must end."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop.set)
        pass_by(signal.SIGHUP, then=lambda: self._loop.call_soon_threadsafe(_say_reload))

    def stop_soon(self) -> None:
        """Make the process end. Any thread may call this."""
        self._loop.call_soon_threadsafe(self.stop.set)

    async def serve(
        self, feed: FeedService, start: Callable[[], object], end: Callable[[], object], **said: object
    ) -> None:
        """Serve until `stop` is set.

        ``start`` begins to follow the source; ``end`` stops following it, and may block. ``said`` is added to
        the first line of the log.

        Raises:
            PadsCdcError: the gRPC server has ended although it should not have.

        """
        async with AsyncExitStack() as running:
            running.callback(stop_waking)
            grpc = await grpc_server.start(
                self.settings,
                self.store,
                self.hub,
                self.subscribers,
                self.metrics,
                self.health,
                feed,
                self.security,
                self._shares.grpc,
            )
            running.push_async_callback(grpc.stop)
            pages = await http.start(
                host=self.settings.metrics_host,
                port=self.settings.metrics_port,
                most=self._shares.http,
                registry=self.metrics.registry,
                health=self.health,
                page=self.page,
            )
            running.push_async_callback(pages.stop)
            start()
            _log.info("serving", grpc=grpc.port, http=pages.port, **said)
            ends = [asyncio.create_task(self.stop.wait()), asyncio.create_task(grpc.ended())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            deserted = not self.stop.is_set()
            _log.info("stopping")
            self.hub.stop()
            # End both at the same time, so that neither a frozen source nor a slow client delays the other's
            # end.
            await asyncio.gather(asyncio.to_thread(end), grpc.stop())
            for task in ends:
                task.cancel()
        if deserted:  # without this error the process would look alive but serve no client
            raise PadsCdcError(
                "the gRPC server ended by itself: this is a bug, please report it with the log"
            )


def _say_reload() -> None:
    _log.info(
        "hangup",
        message="nothing to reload: new certificates, tokens and connection strings are noticed anyway",
    )
