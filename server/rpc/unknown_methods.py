"""A `grpc.aio.Server` that survives calls of methods that it does not have.

grpc.aio decodes the path of each call in a single task, which accepts all calls. A path that is not UTF-8
ends this task, and with it the server and every stream (seen with grpcio 1.85.1). Any client that can connect
may send such a path, since no interceptor runs before. Calls of registered methods are accepted separately,
and their paths are not decoded. So all methods are registered here, and every other call is answered as
unknown, without reading its path.

This needs private parts of grpcio, so pyproject.toml pins grpcio to one minor version, and tests in
tests/server/security send such paths.
"""
# ruff: noqa: SLF001 (private parts of grpcio, see above)

from __future__ import annotations

import asyncio
import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc

from server.rpc.undecodable import answered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import ServiceDescriptor

_cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")

MOST_CONNECTIONS = "grpc.max_allowed_incoming_connections"
"""The option for a server's maximum number of connections. Further connections are closed at once."""
_ANY_UNKNOWN = "/"
"""The name that interceptors get instead of the path. No method has this name."""


def server(
    options: Sequence[tuple[str, object]], interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """Return a server for the running event loop. Add its methods with `register` or with generated
    functions.
    """
    made: Any = grpc.aio.server()
    made._server = _Accepting(tuple(options), tuple(interceptors))
    return made  # type: ignore[no-any-return] # an Any, since its parts are private


def register(to: grpc.aio.Server, handler: grpc.GenericRpcHandler, service: ServiceDescriptor) -> None:
    """Register all methods of a service with their generic handler."""
    methods = {}
    for method in service.methods:
        details: Any = SimpleNamespace(method=f"/{service.full_name}/{method.name}", invocation_metadata=())
        methods[method.name] = handler.service(details)
    added: Any = to  # the type stubs lack the method below
    added.add_registered_method_handlers(service.full_name, methods)


class _Accepting(_cygrpc.AioServer):  # type: ignore[misc] # no stubs
    def __init__(
        self, options: tuple[tuple[str, object], ...], interceptors: tuple[grpc.aio.ServerInterceptor, ...]
    ) -> None:
        self._running = asyncio.get_running_loop()
        self._asked = interceptors
        self._answering: set[asyncio.Task[None]] = set()
        super().__init__(self._running, None, (), interceptors, options, None)

    def add_registered_method_handlers(self, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        super().add_registered_method_handlers({name: answered(each) for name, each in handlers.items()})

    async def _request_call(self) -> Any:
        while True:
            call = await super()._request_call()  # of a method that is not registered
            answer = _cygrpc._handle_rpc(
                _ANY_UNKNOWN,
                _cygrpc._MethodResolver([], {}),
                self._asked,
                call,
                self._running,
                False,
            )
            task = self._running.create_task(
                _cygrpc._schedule_rpc_coro(answer, call, self._running, _ANY_UNKNOWN)
            )
            self._answering.add(task)  # the event loop holds tasks only weakly
            task.add_done_callback(self._answering.discard)
