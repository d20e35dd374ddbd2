"""The HTTP server on ``METRICS_PORT``: metrics for Prometheus, health for orchestrators, and a page for
people.

It runs in the event loop of the gRPC server. No page waits for the database.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Protocol

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.aiohttp import make_aiohttp_handler

from server.addresses import refusal
from server.config.redaction import redact
from server.observe.http_listener import HttpListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aiohttp.typedefs import Handler
    from prometheus_client import CollectorRegistry

    from authz.health import Reason
    from server.observe.status_page import StatusPage


class _Health(Protocol):
    """The reasons why a process is not ready, and the reasons why it is not healthy."""

    def unready(self) -> Sequence[Reason]: ...
    def reasons(self) -> Sequence[Reason]: ...


_log = structlog.get_logger(__name__)

_PATHS = {
    "/": "the status page",
    "/metrics": "Prometheus metrics",
    "/livez": "200 while the process runs",
    "/readyz": "200 while it holds a map that gateways may use",
    "/healthz": "200 ok, or 503 with the reasons",
}
_DRAIN_SECONDS = 1.0
"""Seconds that `stop` waits for answers in progress. The whole server has 5 s to stop."""


class HttpServer:
    """A started HTTP server. ``port`` is the real port, even if port 0 was requested."""

    def __init__(self, runner: web.AppRunner, listener: HttpListener, port: int) -> None:
        self._runner = runner
        self._listener = listener
        self.port = port

    async def stop(self) -> None:
        """Close the port and all connections. Waits at most a second for answers in progress."""
        await self._listener.close()
        await self._runner.cleanup()


async def start(
    *,
    host: str,
    port: int,
    most: int,
    registry: CollectorRegistry,
    health: _Health,
    page: StatusPage | None = None,
) -> HttpServer:
    """Listen, and serve up to ``most`` connections from the running event loop.

    Without ``page`` there is no status page.

    Raises:
        ListenError: the port is in use, or this machine does not have the address.

    """
    requests = logging.getLogger(f"{__name__}.requests")
    requests.addFilter(_not_http)

    def protocol() -> asyncio.Protocol:
        assert runner.server is not None  # noqa: S101 (for the type: it is set up before anybody connects)
        return runner.server()

    listener = HttpListener(protocol, most)
    runner = web.AppRunner(
        _application(registry, health, page, listener),
        logger=requests,
        access_log=None,  # nobody acts on a line for each scrape
        handle_signals=False,
        shutdown_timeout=_DRAIN_SECONDS,
    )
    await runner.setup()
    try:
        bound = await listener.listen(host, port)
    except OSError as error:
        await runner.cleanup()
        raise refusal("the metrics page", host, port, error, prefix="METRICS_") from error
    return HttpServer(runner, listener, bound)


def _application(
    registry: CollectorRegistry, health: _Health, page: StatusPage | None, listener: HttpListener
) -> web.Application:
    @web.middleware
    async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is not None:
            listener.requested(request.transport)
        return await handler(request)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready())

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.reasons())

    application = web.Application(middlewares=[noted, _no_surprises])
    if page is not None:
        _add_page(application, page)
    application.router.add_get("/metrics", make_aiohttp_handler(registry))
    application.router.add_get("/livez", livez)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/healthz", healthz)
    return application


def _add_page(application: web.Application, page: StatusPage) -> None:
    async def status(_: web.Request) -> web.Response:
        return web.Response(text=page.render(), content_type="text/html", headers=page.headers)

    async def watched(_: web.Application) -> AsyncIterator[None]:
        watching = asyncio.create_task(page.watch())
        yield
        watching.cancel()
        await asyncio.wait([watching])

    application.cleanup_ctx.append(watched)
    application.router.add_get("/", status)


def _not_http(record: logging.LogRecord) -> bool:
    """Log one line, not aiohttp's traceback, about a request that aiohttp cannot parse."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if not isinstance(error, HttpProcessingError):
        return True
    peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
    _log.warning("not an HTTP/1.1 request; a gRPC client must connect to PORT instead", peer=peer)
    return False


@web.middleware
async def _no_surprises(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a wrong path with the list of valid paths, and forbid caching, since answers change all the
    time.
    """
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        served = {resource.canonical for resource in request.app.router.resources()}
        known = "".join(f"{path}  {what}\n" for path, what in _PATHS.items() if path in served)
        response = web.Response(status=404, text=f"Nothing here. What there is:\n{known}")
    response.headers["Cache-Control"] = "no-store"
    return response


def _answer(reasons: Sequence[Reason]) -> web.Response:
    if not reasons:
        return web.Response(text="ok")
    body = {"reasons": [{"code": reason.code, "message": redact(reason.message)} for reason in reasons]}
    return web.Response(status=503, text=json.dumps(body) + "\n", content_type="application/json")
