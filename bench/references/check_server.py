"""The limit of answering: a Check server in Python that allows every request without looking at it."""

from __future__ import annotations

import asyncio
import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, OkHttpResponse
from envoy.service.auth.v3.external_auth_pb2_grpc import (
    AuthorizationServicer,
    add_AuthorizationServicer_to_server,
)
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from bench import children

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """Serve from a separate process; yield its port and its pid."""
    pipe, other = children.Pipe()
    process = children.start(_run, other)
    try:
        yield pipe.recv(), process.pid or 0
    finally:
        process.kill()
        process.join()


class _DoesNothing(AuthorizationServicer):  # type: ignore[misc] # no stubs
    async def Check(self, _request: Any, _context: Any) -> CheckResponse:  # noqa: N802 - the proto's name
        return CheckResponse(ok_response=OkHttpResponse())


def _run(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    gc.collect()
    gc.freeze()  # as the authorizer does: a full collection would delay checks by 50 ms
    server = grpc.aio.server()
    add_AuthorizationServicer_to_server(_DoesNothing(), server)
    add_HealthServicer_to_server(HealthServicer(), server)  # Envoy asks for the server's health
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()
