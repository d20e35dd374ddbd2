"""The common parts of all RPCs: the count of calls by status, and UNAVAILABLE with a reason."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

import grpc

from server.rpc.feed_requests import MisuseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.observe.metrics import Metrics

    Context = grpc.aio.ServicerContext[Any, Any]

_Message = TypeVar("_Message")

_FIRST_SECONDS: Final = 10.0
"""Maximum wait for a client's first message, in seconds."""
READY_SECONDS: Final = 30.0
"""Seconds that a call waits for the first complete map before it ends with UNAVAILABLE."""
NOT_READY: Final = "no complete map has been loaded yet; try again"
STANDING_BY: Final = "this server stands by while its peer serves clients; connect to the peer"
SHUTTING_DOWN: Final = "the server is shutting down; reconnect"
OTHER_MAP: Final = (
    "the server has replaced its map, or this stream was stalled for too long; reconnect with the token"
)


async def abort(context: Context, code: grpc.StatusCode, why: str) -> NoReturn:
    """End a call with an error."""
    await context.abort(code, why)
    raise AssertionError("abort returned")


async def unavailable(context: Context, why: str) -> NoReturn:
    """End a call with UNAVAILABLE, which makes every client retry."""
    await abort(context, grpc.StatusCode.UNAVAILABLE, why)


class Admitted(Protocol):
    """A call with a valid token."""

    revoked: bool
    """Whether the call is being ended because its token was withdrawn."""


admitted: ContextVar[Admitted | None] = ContextVar("admitted", default=None)
"""The call of the current task, if tokens are required."""


async def first_message(context: Context, read: Callable[[bytes], _Message], awaited: str) -> _Message:
    """Read the client's first message with ``read``. If that fails, end the call with an error that names
    ``awaited``.
    """
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            raw = await context.read()
        return read(b"" if raw is grpc.aio.EOF else raw)
    except TimeoutError:
        why = f"{awaited}, and arrive within {_FIRST_SECONDS:.0f} s"
    except MisuseError as error:
        why = str(error)
    return await abort(context, grpc.StatusCode.INVALID_ARGUMENT, why)


async def wait(wake: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but at most ``seconds``."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()


@contextmanager
def counted(metrics: Metrics, method: str, context: Context) -> Iterator[None]:
    """Count the RPC that runs inside this context, by the status with which it ends."""
    code = grpc.StatusCode.OK
    try:
        yield
    except grpc.aio.AbortError:
        code = context.code() or grpc.StatusCode.UNKNOWN
        raise
    except (asyncio.CancelledError, GeneratorExit):
        call = admitted.get()
        revoked = call is not None and call.revoked
        code = grpc.StatusCode.UNAUTHENTICATED if revoked else grpc.StatusCode.CANCELLED
        raise
    except BaseException:
        code = grpc.StatusCode.UNKNOWN
        raise
    finally:
        if isinstance(code, int):  # abort() leaves a number in the context
            code = next(known for known in grpc.StatusCode if known.value[0] == code)
        metrics.handled(method, code.name)
