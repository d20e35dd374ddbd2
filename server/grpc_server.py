"""The gRPC server: its services, its port, and how it keeps connections alive."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # the package's asyncio servicer has no public name
from grpc_reflection.v1alpha import reflection
from pads_cdc_client.pb import gateway_endpoint_pb2
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2

from server.addresses import address, refusal
from server.rpc import endpoint_feed, unknown_methods
from server.rpc.calls import wait
from server.rpc.gateway_endpoints import SERVICE, GatewayEndpoints
from server.rpc.unknown_methods import register

if TYPE_CHECKING:
    import grpc

    from cdc.store.store import Store
    from server.config.settings import Serving
    from server.observe.health import Health
    from server.observe.metrics import Metrics
    from server.rpc.endpoint_feed import FeedService
    from server.rpc.hub import Hub
    from server.security.security import Security
    from server.subscribers import Subscribers

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a load balancer
    ("grpc.max_send_message_length", -1),  # the answer to a fetch has no limit
    ("grpc.max_receive_message_length", 64 * 1024),  # requests are small
    # The number of streams of one connection, which a proxy may use for many gateways. Further streams wait
    # in the client.
    ("grpc.max_concurrent_streams", 1_000),
    # Limits on the number of calls that wait for the event loop, since after a restart all gateways connect
    # at once. Above the first limit gRPC refuses some calls, and above the second one all calls. The defaults
    # are 1,000 and 3,000.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # By default gRPC ends a call with CANCELLED once it has waited for 30 s. The loop accepts one call after
    # each round of writes to all streams, so thousands of clients wait for longer.
    ("grpc.server_max_unrequested_time_in_server", 3_600),
    ("grpc.server_handshake_timeout_ms", 10_000),  # closes a connection that sends nothing
    ("grpc.max_connection_idle_ms", 600_000),  # closes a connection without streams
    # A connection that has died silently is closed within 40 s. A client may ping every 10 s. The third ping
    # that arrives sooner ends the connection with too_many_pings.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # otherwise a minute, in spite of the line above
    ("grpc.keepalive_permit_without_calls", 1),
    # Despite its name, this is the interval between pings that we receive. It is a second shorter than
    # promised, because the network may deliver two pings closer to each other than they were sent.
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_GRACE_SECONDS = 1.0
"""Seconds that streams have to end with UNAVAILABLE."""
_HEALTH_SECONDS = 0.5
"""Interval at which readiness is checked, in seconds."""


class GrpcServer:
    """A started server. ``port`` is the real port, even if port 0 was requested."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        background: tuple[asyncio.Task[None], ...],
        health: HealthServicer,
    ) -> None:
        self._server = server
        self.port = port
        self._background = background
        self._health = health

    async def ended(self) -> None:
        """Wait until the server has ended. It never ends by itself, unless it fails."""
        await self._server.wait_for_termination()

    async def stop(self) -> None:
        """Refuse new calls and end the open ones. The hub has already asked their handlers to end."""
        for task in self._background:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_GRACE_SECONDS)


async def start(
    settings: Serving,
    store: Store,
    hub: Hub,
    subscribers: Subscribers,
    metrics: Metrics,
    health: Health,
    feed: FeedService,
    security: Security,
    most: int,
) -> GrpcServer:
    """Listen, and serve up to ``most`` connections from the running event loop.

    Raises:
        ListenError: the port is in use, or this machine does not have the address.

    """
    options = (*_OPTIONS, (unknown_methods.MOST_CONNECTIONS, most))
    server = unknown_methods.server(options, security.interceptors)
    old = GatewayEndpoints(store, hub, subscribers, metrics)
    register(server, old.handler(), gateway_endpoint_pb2.DESCRIPTOR.services_by_name["GatewayEndpoints"])
    register(server, feed.handler(), endpoint_feed_pb2.DESCRIPTOR.services_by_name["EndpointFeedService"])
    serving = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    names = (
        SERVICE,
        endpoint_feed.SERVICE,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:  # gRPC would not report the reason of a failure, and would write its own line outside of our logs
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as cause:
        raise refusal("gRPC", settings.host, settings.port, cause) from cause
    port = security.listen(server, address(settings.host, settings.port))
    await server.start()
    background = (
        asyncio.create_task(_report_health(serving, hub, health)),
        asyncio.create_task(security.watch()),
    )
    return GrpcServer(server, port, background, serving)


async def _report_health(serving: HealthServicer, hub: Hub, health: Health) -> None:
    """Set the state of ``/readyz`` in ``grpc.health.v1``, for the whole server and for each service."""
    told = None
    while True:
        changed = hub.changed
        unready = health.unready()
        status = (
            health_pb2.HealthCheckResponse.NOT_SERVING if unready else health_pb2.HealthCheckResponse.SERVING
        )
        if status != told:
            for name in ("", SERVICE, endpoint_feed.SERVICE):
                await serving.set(name, status)
            told = status
        if unready:
            await wait(changed, _HEALTH_SECONDS)  # so that the first map is reported at once
        else:
            await asyncio.sleep(_HEALTH_SECONDS)  # staleness grows without any event
