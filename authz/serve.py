"""Runs one process, in which the feed, the checks and the HTTP pages share one event loop.

The command line passes a gRPC server with its TLS (`Transport`) and a function that shows health and metrics
(`Expose`).
"""

from __future__ import annotations

import asyncio
import gc
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # the package's asyncio servicer has no public name
from grpc_reflection.v1alpha import reflection

from authz import service
from authz.health import AuthorizerHealth
from authz.held import Held
from authz.metrics import CheckMetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import grpc
    from google.protobuf.descriptor import ServiceDescriptor
    from pads_cdc_client import Change, EndpointFeed
    from prometheus_client import CollectorRegistry

    from authz.config import Config

    _Request = health_pb2.HealthCheckRequest
    _Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
    Feed = Callable[[Callable[[Change], object]], EndpointFeed]
    """Makes the feed's client. Its argument is the callback for changes."""
    Expose = Callable[
        [CollectorRegistry, AuthorizerHealth], AbstractAsyncContextManager[Callable[[int], None]]
    ]
    """Makes a context that shows metrics and health while it lasts. The context's value is a function. Call
    it with gRPC's port once that port is served.
    """

_log = structlog.get_logger("pads_cdc")

_HEALTH_SECONDS: Final = 0.2
"""Interval, in seconds, at which readiness is checked for clients that watch `grpc.health.v1`."""
_GRACE_SECONDS: Final = 1.0
"""Seconds that checks in progress have when the server ends. They take microseconds."""
OPTIONS: Final = (
    # Envoy keeps one connection for each worker thread. Further requests wait in Envoy.
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients are asked to reconnect after this time, so that workers that started later get connections too.
    ("grpc.max_connection_age_ms", 600_000),
)


class Transport(Protocol):
    """A gRPC server and its addresses."""

    def server(self, options: Sequence[tuple[str, object]]) -> grpc.aio.Server:
        """Make a server for the running event loop."""

    def register(
        self, server: grpc.aio.Server, handler: grpc.GenericRpcHandler, descriptor: ServiceDescriptor
    ) -> None:
        """Register a service."""

    def listen(self, server: grpc.aio.Server, host: str, port: int, *, shared: bool) -> int:
        """Listen on an address, with TLS if it is configured. Returns the port."""

    def listen_unix(self, server: grpc.aio.Server, path: Path) -> None:
        """Listen on a Unix socket."""

    async def watch(self) -> None:
        """Reload renewed certificates, until the task is cancelled."""


class DesertedError(Exception):
    """The gRPC server has ended by itself."""


async def serve(
    config: Config,
    *,
    version: str,
    feed: Feed,
    transport: Callable[[CollectorRegistry, AuthorizerHealth], Transport],
    expose: Expose,
    until: Awaitable[object] | None = None,
    late: bool = False,
) -> None:
    """Answer checks until SIGTERM or SIGINT, or until ``until`` is done.

    With ``late``, listen only after the map is complete, because other workers already serve the port.

    Raises:
        DesertedError: the gRPC server failed. Otherwise the process would look alive and serve no client.

    """
    stop = _Stop(until)
    held = Held(feed, config.max_staleness)
    metrics, health = CheckMetrics(version, held), AuthorizerHealth(held)
    lent = transport(metrics.registry, health)
    authorization = service.Authorization(config, held, metrics)
    # Objects that the imports have made stay for ever. Without this, each full collection scans them for 50
    # ms.
    gc.collect()
    gc.freeze()
    async with AsyncExitStack() as running:
        await running.enter_async_context(held.feed)
        serving = await running.enter_async_context(expose(metrics.registry, health))
        if late and not await _ready(held, stop):
            return
        server = lent.server((*OPTIONS, ("grpc.so_reuseport", int(config.share_port))))
        lent.register(server, authorization.handler(), service.DESCRIPTOR)
        statuses = _Statuses(health)
        health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
        names = (service.SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        port = lent.listen(server, config.host, config.port, shared=config.share_port)
        if config.unix_socket is not None:
            lent.listen_unix(server, config.unix_socket)
        await server.start()
        background = [
            asyncio.create_task(statuses.keep_telling()),
            asyncio.create_task(lent.watch()),
        ]
        serving(port)
        ended = asyncio.create_task(server.wait_for_termination())
        asked = asyncio.create_task(stop.asked.wait())
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        _log.info("stopping")
        health.stop()
        if not ended.done():
            # Envoy's health checks make Envoy use other authorizers. Until it does, its checks are answered.
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.hurried.wait(), config.drain_seconds)
        deserted = ended.done()
        await server.stop(_GRACE_SECONDS)
        for task in (*background, ended, asked):
            task.cancel()
        await asyncio.gather(*background, ended, asked, return_exceptions=True)
    if deserted:
        raise DesertedError("the gRPC server ended by itself")


class _Stop:
    """Says whether to stop, and whether to stop at once (after Ctrl-C, or after a second signal)."""

    def __init__(self, until: Awaitable[object] | None) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ask)
        loop.add_signal_handler(signal.SIGINT, self._hurry)
        self._until = None if until is None else asyncio.ensure_future(until)
        if self._until is not None:
            self._until.add_done_callback(lambda _: self._hurry())

    def _ask(self) -> None:
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()

    def _hurry(self) -> None:
        self.asked.set()
        self.hurried.set()


async def _ready(held: Held, stop: _Stop) -> bool:
    """Wait for the first complete map. Return False if the process must stop before it is complete."""
    ready = asyncio.create_task(held.feed.until_ready())
    asked = asyncio.create_task(stop.asked.wait())
    await asyncio.wait((ready, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    ready.cancel()
    return held.ready


class _Statuses(HealthServicer):
    """``grpc.health.v1`` with the current state of ``/readyz``, for the server and its service.

    Each call computes the state. A cached state could be out of date, and Envoy asks only once a second.
    """

    def __init__(self, health: AuthorizerHealth) -> None:
        super().__init__()
        self._health = health
        self._told: int | None = None

    async def Check(  # noqa: N802 (the name of the call)
        self, request: _Request, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        await self._tell()
        return await super().Check(request, context)

    async def keep_telling(self) -> None:
        """Keep the status up to date for clients that watch it. Never returns."""
        while True:
            await self._tell()
            await asyncio.sleep(_HEALTH_SECONDS)

    async def _tell(self) -> None:
        status = (
            health_pb2.HealthCheckResponse.NOT_SERVING
            if self._health.unready()
            else health_pb2.HealthCheckResponse.SERVING
        )
        if status != self._told:
            self._told = status
            for name in ("", service.SERVICE):
                await self.set(name, status)
