"""``pads-cdc authorize``: runs `authz` with a gRPC server, TLS, HTTP pages and logs, in one or more
processes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import signal
import socket
import sys
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from pads_cdc_client import EndpointFeed

from authz import workers
from authz.config import Config, UpstreamHeaders
from authz.identity import Places
from authz.serve import DesertedError, serve
from cdc.errors import PadsCdcError
from server.addresses import ListenError, address, refusal
from server.descriptors import shares
from server.observe import http, logs
from server.observe.log_counters import LogCounters
from server.rpc import unknown_methods
from server.security.reloaded import read_file
from server.security.security import Security

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.descriptor import ServiceDescriptor
    from pads_cdc_client import Change
    from prometheus_client import CollectorRegistry

    from authz.health import AuthorizerHealth
    from server.config.authorize_settings import AuthorizeSettings
    from server.observe.log_writer import LogWriter

_log = structlog.get_logger("pads_cdc")

_SWITCH_SECONDS: Final = 0.0001
"""Maximum time for which another thread, such as the log's, holds the interpreter while the event loop waits,
in seconds.
"""
_WORKER: Final = "PADS_CDC_AUTHORIZE_WORKER"
"""A variable in a worker's environment. Its value is the worker's number, followed by `late` if other workers
serve already.
"""
_LINE_BYTES: Final = 4 * 1024 * 1024
_SOCKET_MODE: Final = 0o660


def authorize(settings: AuthorizeSettings, flags: Mapping[str, object]) -> int:
    """Answer Envoy's checks until SIGTERM or SIGINT, and return the exit code. Workers get the same
    ``flags``.

    Raises:
        PadsCdcError: the authorizer cannot start, or cannot continue.

    """
    writer = logs.configure(settings)
    for meaningless in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(meaningless, signal.SIG_IGN)  # changed files are read again without a signal
    sys.setswitchinterval(_SWITCH_SECONDS)
    number, _, late = os.environ.get(_WORKER, "").partition(" ")
    if not number:
        for line in settings.misspelt():
            _log.warning("environment", message=line)
        _warn(settings)
    try:
        if settings.workers > 1 and not number:
            return asyncio.run(_supervise(settings, flags))
        asyncio.run(_serve(settings, writer, int(number or 0), late=bool(late)))
    except DesertedError as error:
        raise PadsCdcError(f"{error}: this is a bug, please report it with the log") from error
    return 0


def _warn(settings: AuthorizeSettings) -> None:
    if settings.rate_limit == "local" and settings.workers > 1:
        _log.warning(
            "with RATE_LIMIT=local each worker counts separately", most=f"{settings.workers} times the limit"
        )
    if settings.jwt_subject_header is None:
        _log.info("JWT_SUBJECT_HEADER is not set: endpoints that ask for a JWT are refused")


async def _serve(settings: AuthorizeSettings, writer: LogWriter, number: int, *, late: bool) -> None:
    shared = shares()

    def transport(registry: CollectorRegistry, health: AuthorizerHealth) -> _Transport:
        registry.register(LogCounters(lambda: writer.dropped))
        return _Transport(settings, registry, health, shared.grpc)

    @asynccontextmanager
    async def expose(
        registry: CollectorRegistry, health: AuthorizerHealth
    ) -> AsyncIterator[Callable[[int], None]]:
        pages = await http.start(
            host=settings.metrics_host,
            port=settings.metrics_port,
            most=shared.http,
            registry=registry,
            health=health,
        )
        try:
            yield lambda port: _say_serving(settings, port, pages.port)
        finally:
            await pages.stop()

    await serve(
        _config(settings, number),
        version=version("pads-cdc"),
        feed=_feed(settings, number),
        transport=transport,
        expose=workers.reporting if number else expose,
        until=workers.orphaned() if number else None,
        late=late,
    )


async def _supervise(settings: AuthorizeSettings, flags: Mapping[str, object]) -> int:
    given = {name.upper(): _typed(value) for name, value in flags.items() if value is not None}
    with _reserved(settings.host, settings.port) as port:

        async def start(number: int, late: bool) -> asyncio.subprocess.Process:
            worker = {"PORT": str(port), _WORKER: f"{number} late" if late else str(number)}
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server",
                "authorize",
                env={**os.environ, **given, **worker},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
                start_new_session=True,  # so that Ctrl-C reaches only us, and `stop` passes it on
            )

        supervisor = workers.Supervisor(settings.workers, start)
        loop = asyncio.get_running_loop()
        for signalled in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signalled, supervisor.stop, signalled)
        pages = await http.start(
            host=settings.metrics_host,
            port=settings.metrics_port,
            most=shares().http,
            registry=supervisor.registry,
            health=supervisor,
        )
        try:
            code = await supervisor.run(lambda served: _say_serving(settings, served, pages.port))
        finally:
            await pages.stop()
    return code


def _say_serving(settings: AuthorizeSettings, port: int, pages: int) -> None:
    unix = None if settings.unix_socket is None else str(settings.unix_socket)
    _log.info(
        "serving", grpc=port, http=pages, socket=unix, feed=settings.feed_addresses, workers=settings.workers
    )


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _config(settings: AuthorizeSettings, number: int) -> Config:
    header, subject, unix = settings.id_header, settings.jwt_subject_header, settings.unix_socket
    return Config(
        host=settings.host,
        port=settings.port,
        unix_socket=unix if unix is None or not number else unix.with_name(f"{unix.name}.{number}"),
        share_port=number > 0,
        places=Places(None if header is None else header.lower(), settings.id_path_prefix),
        subject_header=None if subject is None else subject.lower(),
        upstream=UpstreamHeaders(
            endpoint=settings.upstream_endpoint_header,
            account=settings.upstream_account_header,
            limited=settings.upstream_limited_header,
            throughput=settings.upstream_throughput_header,
            remove_authorization=settings.remove_authorization,
        ),
        rate_limit=settings.rate_limit,
        max_staleness=settings.max_staleness,
        staleness_header=settings.staleness_header,
        drain_seconds=settings.drain_time,
    )


def _feed(settings: AuthorizeSettings, number: int) -> Callable[[Callable[[Change], object]], EndpointFeed]:
    """Return a function that makes the client. The client's files are read now, to find wrong names at the
    start.

    Raises:
        ConfigurationError: a file cannot be read.

    """
    for name in ("feed_ca_file", "feed_cert_file", "feed_key_file", "feed_token_file"):
        if (path := getattr(settings, name)) is not None:
            read_file(name.upper(), path, secret=name in ("feed_key_file", "feed_token_file"))
    ca, cert, key, token = (
        settings.feed_ca_file,
        settings.feed_cert_file,
        settings.feed_key_file,
        settings.feed_token_file,
    )

    def credentials() -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            None if ca is None else ca.read_bytes(),
            None if key is None else key.read_bytes(),
            None if cert is None else cert.read_bytes(),
        )

    def bearer() -> str:
        return "" if token is None else token.read_text().strip()

    name = f"authorize {platform.node()}{f' {number}' if number else ''}"
    client_id = "".join(each if " " <= each <= "~" else "?" for each in name)[:128]
    return lambda on_change: EndpointFeed(
        *settings.feeds,
        client_id=client_id,
        credentials=None if ca is None else credentials,
        bearer=None if token is None else bearer,
        on_change=on_change,
        loop=asyncio.get_running_loop(),
    )


class _Transport:
    """A gRPC server like the one of `serve`, which survives calls of unknown methods and reloads
    certificates.
    """

    def __init__(
        self, settings: AuthorizeSettings, registry: CollectorRegistry, health: AuthorizerHealth, most: int
    ) -> None:
        """``most`` is the maximum number of connections."""
        self._most = most
        self._security = Security(settings, registry, health)

    def server(self, options: Sequence[tuple[str, object]]) -> grpc.aio.Server:
        """Make a server for the running event loop."""
        bounded = (*options, (unknown_methods.MOST_CONNECTIONS, self._most))
        return unknown_methods.server(bounded, self._security.interceptors)

    def register(
        self, server: grpc.aio.Server, handler: grpc.GenericRpcHandler, descriptor: ServiceDescriptor
    ) -> None:
        """Register a service."""
        unknown_methods.register(server, handler, descriptor)

    def listen(self, server: grpc.aio.Server, host: str, port: int, *, shared: bool) -> int:
        """Listen on an address, and return the port.

        Raises:
            ListenError: the port is in use, or this machine does not have the address.

        """
        if not shared:  # a shared port was tried by the supervisor
            with _bound(host, port):
                pass
        return self._security.listen(server, address(host, port))

    def listen_unix(self, server: grpc.aio.Server, path: Path) -> None:
        """Listen on a Unix socket that our user and group may connect to. If a dead process has left a
        socket, it is replaced.

        Raises:
            ListenError: another process listens there, or the socket cannot be made.

        """
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise _no_socket(path, error.strerror or "unknown") from error
            else:
                raise _no_socket(path, "something else listens there")
        if path.exists() and not path.is_socket():
            raise _no_socket(path, "there is a file of that name that is not a socket")
        if not path.parent.is_dir():
            raise _no_socket(path, "there is no such folder")
        before = os.umask(0o777 & ~_SOCKET_MODE)
        try:
            server.add_insecure_port(f"unix:{path.absolute()}")
        except RuntimeError as error:
            raise _no_socket(path, "the socket cannot be created; may we write to that folder?") from error
        finally:
            os.umask(before)

    async def watch(self) -> None:
        """Reload renewed certificates, until the task is cancelled."""
        await self._security.watch()


def _no_socket(path: Path, why: str) -> ListenError:
    return ListenError(f"gRPC cannot listen on {path}: {why}; choose another with UNIX_SOCKET")


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the port. Unlike gRPC's error, the error gives the reason of a
    failure.

    Raises:
        ListenError: the port is in use, or this machine does not have the address.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise refusal("gRPC", host, port, error) from error


class _reserved:  # noqa: N801 (reads as a function)
    """Keeps a port that the workers share, so that no other process can take it, even while no worker
    listens.
    """

    def __init__(self, host: str, port: int) -> None:
        with _bound(host, port) as free:
            chosen = free.getsockname()[:2]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind(chosen)  # bound without listening, so that no connection comes here
        except OSError as error:
            self._socket.close()
            raise refusal("gRPC", host, port, error) from error

    def __enter__(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()
