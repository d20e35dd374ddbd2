"""An interceptor that requires a valid token for every method, known or unknown.

The only exception is the overall health, for probes. Every other call without a valid token gets the same
UNAUTHENTICATED before any of its messages is read. It does not depend on whether the method exists, or on the
fault of the token.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

import grpc
import structlog
from grpc_health.v1 import health_pb2

from server.rpc.calls import abort, admitted
from server.security.auth_tokens import AcceptedToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from server.rpc.calls import Context
    from server.security.auth_tokens import Tokens

    _Handler = grpc.RpcMethodHandler[Any, Any]

_log = structlog.get_logger(__name__)

Failure = Literal["missing", "malformed", "unknown", "revoked"]
"""missing: there is no token; malformed: there is not exactly one ``Bearer`` token; unknown: the token is not
one of the valid tokens; revoked: the token was withdrawn while its call was open.
"""
FAILURES: Final[tuple[Failure, ...]] = get_args(Failure)

REFUSED: Final = "a valid token is needed: authorization: Bearer TOKEN"
"""The only error text for a caller without a valid token."""
_HEALTH: Final = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"


_MAKERS: Final[dict[tuple[bool, bool], Callable[..., _Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""For each pair (requests are a stream, responses are a stream), the function that makes a handler."""


@dataclass(eq=False)
class _Call:
    token: AcceptedToken
    task: asyncio.Task[Any]
    revoked: bool = False


class Authentication(grpc.aio.ServerInterceptor):
    """Admits calls by their tokens, and ends calls whose token is withdrawn. Belongs to one event loop."""

    def __init__(self, tokens: Callable[[], Tokens], failed: Callable[[Failure], None]) -> None:
        """``tokens`` returns the valid tokens. ``failed`` is called for each failure, to count it."""
        self._tokens = tokens
        self._failed = failed
        self._calls: set[_Call] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the method's handler, guarded so that it ends if the token is withdrawn, or a handler that
        refuses the call.
        """
        method = handler_call_details.method
        token = self._authenticate(handler_call_details.invocation_metadata)
        if isinstance(token, AcceptedToken):
            handler = await continuation(handler_call_details)
            return handler if handler is None else self._guarded(handler, token, method)
        if method == f"{_HEALTH}Check":
            handler = await continuation(handler_call_details)
            return self._refusing(token) if handler is None else self._overall_health_only(handler, token)
        return self._refusing(token)

    def revoke(self) -> None:
        """End every open call whose token is no longer valid. Call this when the tokens change."""
        for call in self._calls:
            if call.token not in self._tokens() and not call.revoked:
                call.revoked = True
                call.task.cancel()

    def _authenticate(self, metadata: tuple[tuple[str, str | bytes], ...] | None) -> AcceptedToken | Failure:
        given = [value for key, value in metadata or () if key == "authorization"]
        if not given:
            return "missing"
        scheme, _, presented = given[0].partition(" ") if isinstance(given[0], str) else ("", "", "")
        if len(given) > 1 or scheme.lower() != "bearer" or not presented.strip():
            return "malformed"
        return self._tokens().find(presented.strip()) or "unknown"

    def _refusing(self, failure: Failure) -> _Handler:
        async def refuse(_: object, context: Context) -> None:
            await self._refuse(context, failure)

        # A handler for streams in both directions can refuse a call of any kind at once. All other handlers
        # wait for a request first.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _overall_health_only(self, handler: _Handler, failure: Failure) -> _Handler:
        probe: Any = handler.unary_unary

        async def check(request: bytes, context: Context) -> Any:
            if request:  # it names a service, so it is not a probe of the overall health
                await self._refuse(context, failure)
            return await probe(health_pb2.HealthCheckRequest(), context)

        # The request is not parsed, since parsing a message of an unknown caller takes time and can fail.
        return grpc.unary_unary_rpc_method_handler(check, response_serializer=handler.response_serializer)

    def _guarded(self, handler: _Handler, token: AcceptedToken, method: str) -> _Handler:
        serve: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )

        async def unary(request: object, context: Context) -> Any:
            async with self._admitted(token, method, context):
                return await serve(request, context)

        async def stream(request: object, context: Context) -> None:
            # This is a coroutine that writes, even around a generator. If it were a generator, the
            # cancellation of a call that waits for its client would be raised in gRPC and not here.
            async with self._admitted(token, method, context):
                if not inspect.isasyncgenfunction(serve):
                    await serve(request, context)
                    return
                async with aclosing(serve(request, context)) as messages:
                    async for message in messages:
                        await context.write(message)

        make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        guarded = stream if handler.response_streaming else unary
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    @asynccontextmanager
    async def _admitted(self, token: AcceptedToken, method: str, context: Context) -> AsyncIterator[None]:
        if token not in self._tokens():  # withdrawn while the call waited for its first message
            await self._refuse(context, "revoked")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in a task of its own
        call = _Call(token, task)
        admitted.set(call)
        structlog.contextvars.bind_contextvars(caller=token.name)  # for every log line of this call
        log = _log.debug if method.startswith(_HEALTH) else _log.info
        log("call admitted", method=method, peer=context.peer())
        self._calls.add(call)
        try:
            yield
        except asyncio.CancelledError:
            if not call.revoked or context.done():
                raise
            task.uncancel()
            await self._refuse(context, "revoked")
        finally:
            self._calls.discard(call)

    async def _refuse(self, context: Context, failure: Failure) -> NoReturn:
        self._failed(failure)
        _log.warning("call refused", reason=failure, peer=context.peer())
        await abort(context, grpc.StatusCode.UNAUTHENTICATED, REFUSED)
