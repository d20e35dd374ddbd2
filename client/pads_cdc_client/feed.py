"""A client of the endpoint feed: keeps an exact copy of every endpoint in memory.

One thread reads the stream, applies it and runs the callback. All other threads read a dict. Code in asyncio
reads the same dict, and uses awaitable methods instead of blocking ones. If an event loop has to answer fast,
it can follow the stream itself (``loop``), for at most a millisecond at a time. A thread would compete with
the loop for the interpreter: while the thread waits for a core, the loop would wait as well.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from pads_cdc_client.outbox import LoopOutbox, Outbox
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.replica import Applied, Change, Replica, reset_reason
from pads_cdc_client.retry import Backoff, Remedy, remedy
from pads_cdc_client.steps import at_once, in_turns, portions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pads_cdc_client.steps import Steps

_log = logging.getLogger(__name__)

_WATCH: Final = f"/{pb.DESCRIPTOR.services_by_name['EndpointFeedService'].full_name}/Watch"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # an endpoint may have any size
    ("grpc.enable_http_proxy", 0),
    # A connection that has died silently is detected within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this, the timeout would be a minute in spite of the line above.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_FIRST_WORD_SECONDS: Final = 45.0
"""Maximum wait for the first message, in seconds. A server without a complete map answers UNAVAILABLE after
30 s.
"""
_SILENT_INTERVALS: Final = 3
"""The client abandons a stream after this number of progress intervals without a message."""
_MISMATCHES: Final = 2
"""The client abandons a stream after this number of mismatches in a row. The server answers the first
mismatch with a snapshot.
"""
_LOOK_SECONDS: Final = 0.5
"""Interval, in seconds, at which a thread that waits for the event loop checks whether the loop is still
running.
"""


class FeedStoppedError(Exception):
    """The feed has ended permanently: it was closed, or the server reported a bug in this client."""


class EndpointFeed:
    """An exact copy of every endpoint. Start it with `start`, ``with`` or ``async with``."""

    def __init__(
        self,
        *targets: str,
        client_id: str,
        credentials: Callable[[], grpc.ChannelCredentials] | grpc.ChannelCredentials | None = None,
        bearer: Callable[[], str] | None = None,
        on_change: Callable[[Change], object] | None = None,
        endpoints: Mapping[str, bytes] | None = None,
        resume_token: bytes = b"",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Prepare the feed; `start` connects it.

        Args:
            targets: the servers, as ``host:port``. One is used at a time, and the next one if it fails.
            client_id: the client's name on the server's status page: 1 to 128 printable ASCII characters.
            credentials: enables TLS. A function is called at each attempt, so it can renew certificates.
            bearer: returns the token to send. It is called at each attempt, too.
            on_change: called in the feed's thread or in ``loop``, after the map has been changed. The next
                change waits until it returns.
            endpoints: the final `endpoints` of an earlier process, if the feed is to resume from them.
            resume_token: the final `resume_token` of that process.
            loop: a running event loop, in which `start` is called. With it the feed has no thread: it applies
                changes and calls ``on_change`` in that loop, for at most a millisecond at a time.

        Raises:
            ValueError: no target is given.

        """
        if not targets:
            raise ValueError("no target is given")
        self._targets = targets
        self._client_id = client_id
        self._credentials = credentials
        self._bearer = bearer
        self._on_change = on_change
        self._replica = Replica(endpoints, resume_token)
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._task_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pads-cdc-feed", daemon=True)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._call: grpc.Call | None = None
        self._ready: Future[None] = Future()
        self._exact: tuple[float, float] | None = None
        """The newest proof: the monotonic time at which it arrived, and the staleness of the map then, in
        seconds.
        """
        self._heard_at = 0.0
        self._patience = 0.0
        self.received_bytes = 0
        """Number of bytes of the messages that were received since the start."""
        self.attempts = 0
        """Number of connection attempts since the start."""
        self.resets = 0
        """Number of snapshots that a server has begun to send since the start."""
        self.proofs = 0
        """Number of times that a digest has proved that the database had exactly this map."""

    # --- the map: any thread may read it, without waiting

    @property
    def endpoints(self) -> Mapping[str, bytes]:
        """A live view of the map: serialized ``proto.GatewayEndpoint`` by id. It may change while you read
        it.
        """
        return MappingProxyType(self._replica.endpoints)

    @property
    def resume_token(self) -> bytes:
        """The token to store with the map, so that another process can resume. Read it after `close`."""
        return self._replica.token

    def get(self, endpoint_id: str) -> GatewayEndpoint | None:
        """Return the endpoint with this id, or None."""
        endpoint = self._replica.endpoints.get(endpoint_id)
        return None if endpoint is None else GatewayEndpoint.FromString(endpoint)

    def __len__(self) -> int:
        return len(self._replica.endpoints)

    @property
    def ready(self) -> bool:
        """Whether the map has ever been complete. It stays usable while no server is reachable."""
        return self._replica.complete

    def staleness(self) -> float:
        """Return an upper bound of the map's age, in seconds. It is infinite before the first proof.

        The bound grows between messages, which arrive every few seconds, and while no server is reachable.
        """
        if (exact := self._exact) is None:
            return math.inf
        at, staleness = exact
        return staleness + time.monotonic() - at

    # --- start and end

    def start(self) -> Self:
        """Begin to connect, and to reconnect as needed, until `close`. Returns at once."""
        if self._loop is None:
            self._thread.start()
        else:
            self._task = self._loop.create_task(self._run_in_loop(), name="pads-cdc-feed")
            self._task.add_done_callback(self._has_ended)
        return self

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until `ready`. Returns False after ``timeout`` seconds.

        Raises:
            FeedStoppedError: the feed has ended and will never be ready.

        """
        with suppress(TimeoutError):
            self._ready.result(timeout)
            return True
        return False

    async def until_ready(self) -> None:
        """Wait until `ready`, in asyncio. Limit the wait with ``asyncio.timeout``.

        Raises:
            FeedStoppedError: the feed has ended and will never be ready.

        """
        await asyncio.shield(asyncio.wrap_future(self._ready))

    def close(self) -> None:
        """End the connection. Afterwards no callback is called.

        Blocks until the thread and a running callback have ended. If it is called within ``loop``, it does
        not block.
        """
        self._closed.set()
        if self._task is not None:
            self._close_task(self._task)
            return
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _close_task(self, task: asyncio.Task[None]) -> None:
        loop = task.get_loop()
        if _runs_here(loop):
            task.cancel()
            return
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(task.cancel)
        while loop.is_running() and not self._task_ended.wait(_LOOK_SECONDS):
            pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._task is None:
            await asyncio.to_thread(self.close)
        else:
            self.close()
            await asyncio.wait((self._task,))

    # --- the thread

    def _run(self) -> None:
        why = "it failed; see the traceback"
        try:
            why = self._follow()
        finally:
            self._will_never_be_ready(why)

    def _follow(self) -> str:
        """Follow one server after the other, until `close` or until a server reports a bug of this client.
        Return why the feed ended.
        """
        backoff = Backoff()
        for target in itertools.cycle(self._targets):
            found, why = self._session(target, backoff)
            wait = self._next_attempt(target, found, why, backoff)
            if wait is None:
                return why
            if self._closed.wait(wait):
                break
        return "it was closed"

    def _session(self, target: str, backoff: Backoff) -> tuple[Remedy, str]:
        """Follow one server until its stream ends. Return what to do next, and why the stream ended."""
        access = self._access()
        if isinstance(access, str):
            return Remedy.BACK_OFF, access
        metadata, credentials = access
        outbox = Outbox(self._opening(), self._watch_silence)
        with _channel(grpc, target, credentials) as channel:
            call = _watch(channel, self._received)(outbox, metadata=metadata)
            with self._lock:
                self._call = call
            if self._closed.is_set():
                call.cancel()
            try:
                for message in call:
                    at_once(self._take(message, outbox, backoff))
                    if self._replica.mismatches >= _MISMATCHES:
                        return _DIFFERS
            except grpc.RpcError as error:
                return _ended(error)
            finally:
                outbox.close()
                call.cancel()
        return _NO_END

    # --- the same in an event loop

    async def _run_in_loop(self) -> None:
        backoff = Backoff()
        for target in itertools.cycle(self._targets):
            if self._closed.is_set():  # before it was started
                return
            found, why = await self._session_in_loop(target, backoff)
            wait = self._next_attempt(target, found, why, backoff)
            if wait is None:
                self._will_never_be_ready(why)
                return
            await asyncio.sleep(wait)

    async def _session_in_loop(self, target: str, backoff: Backoff) -> tuple[Remedy, str]:
        access = await asyncio.to_thread(self._access)  # in a thread, because it reads files
        if isinstance(access, str):
            return Remedy.BACK_OFF, access
        metadata, credentials = access
        outbox = LoopOutbox(self._opening(), self._watch_silence)
        async with _channel(grpc.aio, target, credentials) as channel:
            self._call = call = _watch(channel, self._received)(aiter(outbox), metadata=metadata)
            try:
                async for message in call:
                    if message is None:  # the message could not be decoded
                        return _UNDECODABLE
                    # Before the first complete map the loop has nothing to answer with, so its other work can
                    # wait.
                    await in_turns(self._take(message, outbox, backoff), lambda: not self.ready)
                    if self._replica.mismatches >= _MISMATCHES:
                        return _DIFFERS
            except grpc.RpcError as error:
                return _ended(error)
            except asyncio.CancelledError:
                if self._task is None or self._task.cancelling():
                    raise
                return _SILENT
            finally:
                call.cancel()
        return _NO_END

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the feed failed", exc_info=error)
            self._will_never_be_ready("it failed; see the traceback")
        self._will_never_be_ready("it was closed")
        self._task_ended.set()

    # --- what both share

    def _will_never_be_ready(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(FeedStoppedError(why))

    def _next_attempt(self, target: str, found: Remedy, why: str, backoff: Backoff) -> float | None:
        """Return the seconds until the next attempt, or None if there will be none."""
        if found is Remedy.STOP:
            _log.error("the feed has stopped for good: %s", why)
            return None
        wait = backoff.wait(found)
        if not self._closed.is_set():
            _log.warning("the feed from %s ended: %s; again in %.1f s", target, why, wait)
        return wait

    def _access(self) -> tuple[tuple[tuple[str, str], ...], grpc.ChannelCredentials | None] | str:
        """Return the metadata and the credentials for an attempt, or the reason why there are none."""
        try:
            credentials = self._credentials() if callable(self._credentials) else self._credentials
            return self._metadata(), credentials
        except OSError as error:
            return f"the token or a certificate cannot be read: {error.strerror}"
        except ValueError:  # the file may be half written; the error's text may quote the token
            return "the token or a certificate is malformed"

    def _opening(self) -> pb.WatchRequest:
        """Begin an attempt, and return its first request."""
        self.attempts += 1
        self._heard_at, self._patience = time.monotonic(), _FIRST_WORD_SECONDS
        return self._replica.opening(self._client_id)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata with the token.

        Raises:
            ValueError: a header cannot contain the token. gRPC's own error would show the token.

        """
        if self._bearer is None:
            return ()
        token = self._bearer()
        if not token.isascii() or not token.isprintable():
            raise ValueError("the token has characters that are not allowed in a header")
        return (("authorization", f"Bearer {token}"),)

    def _received(self, raw: bytes) -> pb.WatchResponse:
        self.received_bytes += len(raw)
        return pb.WatchResponse.FromString(raw)

    def _take(
        self, message: pb.WatchResponse, outbox: Outbox[pb.WatchRequest] | LoopOutbox, backoff: Backoff
    ) -> Steps[None]:
        self._heard_at = math.inf  # while we process the message, the server's silence does not count
        if message.HasField("opened"):
            self._patience = _SILENT_INTERVALS * message.opened.progress_interval.ToNanoseconds() / 1e9
            if message.opened.HasField("reset"):
                self.resets += 1
                reset = message.opened.reset
                _log.info("the server sends all %d endpoints: %s", reset.count, reset_reason(reset))
        applied = yield from self._replica.steps(message)
        if applied.acknowledge is not None:
            outbox.put(pb.WatchRequest(acknowledge=applied.acknowledge))
            if applied.acknowledge.digest_mismatch:
                _log.error("the map differs from the server's and is fetched again")
            else:
                self._matched(applied.staleness, backoff)
        yield from self._call_back(applied)
        self._heard_at = time.monotonic()

    def _matched(self, staleness: float | None, backoff: Backoff) -> None:
        """Record that the map is equal to the server's map. This proves the map only if ``staleness`` is
        known.
        """
        if staleness is not None:
            self._exact = time.monotonic(), staleness
            self.proofs += 1
            backoff.succeeded()
        if not self._ready.done():
            self._ready.set_result(None)

    def _call_back(self, applied: Applied) -> Steps[None]:
        if self._on_change is None:
            return
        for some in portions(applied.changes):
            for change in some:
                if self._closed.is_set():
                    return
                try:
                    self._on_change(change)
                except Exception:  # noqa: BLE001 (the user's code; the map must be kept up to date all the same)
                    _log.exception("a callback failed for %s", change.endpoint_id)
            yield

    def _watch_silence(self) -> None:
        """Cancel the call if the server has been silent for too long although the connection is open."""
        if time.monotonic() - self._heard_at > self._patience:
            with self._lock:
                if self._call is not None:
                    self._call.cancel()


_DIFFERS: Final = (Remedy.RETRY, "the map differs from the server's after a whole snapshot")
_SILENT: Final = (Remedy.RETRY, "the server was silent for too long")
_UNDECODABLE: Final = (Remedy.RETRY, "a message of the server cannot be decoded")
_NO_END: Final = (Remedy.RETRY, "the server ended a stream that has no end")


def _ended(error: grpc.RpcError) -> tuple[Remedy, str]:
    code, details = error.code(), " ".join((error.details() or "").split())
    return remedy(code), f"{code.name} {details}"


def _channel(api: Any, target: str, credentials: grpc.ChannelCredentials | None) -> Any:
    """Open a channel. ``api`` is `grpc` or `grpc.aio`."""
    if credentials is None:
        return api.insecure_channel(target, options=_OPTIONS)
    return api.secure_channel(target, credentials, options=_OPTIONS)


def _watch(channel: Any, received: Callable[[bytes], pb.WatchResponse]) -> Any:
    serialize = pb.WatchRequest.SerializeToString
    return channel.stream_stream(_WATCH, request_serializer=serialize, response_deserializer=received)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
