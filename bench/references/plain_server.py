"""The limit of sending: a gRPC server that only sends prepared messages."""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from bench.subscribers import STREAM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from multiprocessing.connection import Connection

_spawn: Final = multiprocessing.get_context("spawn")


@contextmanager
def serving(messages: Sequence[bytes]) -> Iterator[str]:
    """Send these messages to each stream of the legacy contract, from another process; yield its address."""
    pipe, other = _spawn.Pipe()
    process = _spawn.Process(target=_run, args=(other, messages), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{pipe.recv()}"
    finally:
        process.kill()
        process.join()


def _run(pipe: Connection, messages: Sequence[bytes]) -> None:
    asyncio.run(_serve(pipe, messages))


async def _serve(pipe: Connection, messages: Sequence[bytes]) -> None:
    async def stream(_: bytes, context: grpc.aio.ServicerContext[Any, bytes]) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(())
        for message in messages:
            yield message
        await asyncio.Event().wait()

    service, _, method = STREAM[1:].partition("/")
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        service, {method: grpc.unary_stream_rpc_method_handler(stream)}
    )
    server.add_generic_rpc_handlers((handler,))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()
