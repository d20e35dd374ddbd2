"""Answers INVALID_ARGUMENT to a request whose bytes are not the method's message.

grpc.aio decodes requests within the call. If this fails, it ends the call with UNKNOWN and logs a traceback,
as if the servicer had failed. So any client could fill the log. Methods that take bytes are not changed.
"""

from __future__ import annotations

import inspect
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from server.rpc.calls import abort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.rpc.calls import Context

    _Handler = grpc.RpcMethodHandler[Any, Any]

UNDECODABLE: Final = "the request is not a message of this method"
_BAD: Final = object()
"""Takes the place of a request that cannot be decoded."""


def answered(handler: _Handler) -> _Handler:
    """Return a handler that differs only in its answer to requests that cannot be decoded."""
    if handler.request_deserializer is None:
        return handler
    decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(_one(handler.unary_unary), decode, encode)
    if handler.unary_stream and not inspect.isasyncgenfunction(handler.unary_stream):
        return grpc.unary_stream_rpc_method_handler(_one(handler.unary_stream), decode, encode)
    if inspect.isasyncgenfunction(handler.stream_stream):
        return grpc.stream_stream_rpc_method_handler(_many(handler.stream_stream), decode, encode)
    raise AssertionError(handler)  # no method of this kind is served


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError:
            return _BAD

    return decoded


def _one(serve: Any) -> Any:
    async def one(request: object, context: Context) -> Any:
        if request is _BAD:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, UNDECODABLE)
        return await serve(request, context)

    return one


def _many(serve: Any) -> Any:
    async def many(requests: AsyncIterator[object], context: Context) -> AsyncIterator[Any]:
        async def decoded() -> AsyncIterator[object]:
            async for request in requests:
                if request is _BAD:
                    await abort(context, grpc.StatusCode.INVALID_ARGUMENT, UNDECODABLE)
                yield request

        async with aclosing(serve(decoded(), context)) as messages:
            async for message in messages:
                yield message

    return many
