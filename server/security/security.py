"""TLS, client certificates and bearer tokens for a port. All of them are reloaded when their files change.

A client has to pass each measure that is set: with ``TLS_CLIENT_CA_FILE`` the handshake needs a certificate,
and with ``AUTH_TOKENS_FILE`` each call needs a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from prometheus_client import Counter, Gauge

from server.security import auth_tokens, certificates
from server.security.authentication import FAILURES, Authentication
from server.security.reloaded import Reloaded, read_file

if TYPE_CHECKING:
    from pathlib import Path

    import grpc
    from prometheus_client import CollectorRegistry

    from server.security.auth_tokens import Tokens
    from server.security.certificates import Certificates


class _Settings(Protocol):
    """The settings that name files. A command without tokens has None as ``auth_tokens_file``."""

    @property
    def tls_cert_file(self) -> Path | None: ...
    @property
    def tls_key_file(self) -> Path | None: ...
    @property
    def tls_client_ca_file(self) -> Path | None: ...
    @property
    def auth_tokens_file(self) -> Path | None: ...


class _Troubled(Protocol):
    """Receives lasting conditions by name. A message of None reports the end of a condition."""

    def trouble(self, key: str, message: str | None) -> None: ...


_log = structlog.get_logger("pads_cdc")

_LOOK_SECONDS: Final = 1.0
"""Interval between two reads of the files, in seconds. A change is used after two reads."""


class Security:
    """TLS and authentication of a port, by the settings. Belongs to one event loop."""

    def __init__(self, settings: _Settings, registry: CollectorRegistry, observer: _Troubled) -> None:
        """Read all files. Blocks on the disk.

        Raises:
            ConfigurationError: a file is not valid.

        """
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_a_fault)
        self._observer = observer
        self._certificates = _certificates(settings)
        self._clients_need_certificate = settings.tls_client_ca_file is not None
        self._tokens = _tokens(settings)
        failures = Counter(
            "pads_cdc_auth_failures", "Calls without a valid token.", ("reason",), registry=registry
        )
        for failure in FAILURES:
            failures.labels(failure)
        self._authentication: Authentication | None = None
        if (tokens := self._tokens) is not None:
            self._authentication = Authentication(
                lambda: tokens.value, lambda failure: failures.labels(failure).inc()
            )
        if (served := self._certificates) is not None:
            Gauge(
                "pads_cdc_tls_certificate_expiry_timestamp_seconds",
                "End of the certificate that new connections get, Unix time; missing without TLS.",
                registry=registry,
            ).set_function(lambda: served.value.expires)

    @property
    def interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        """The interceptors for `grpc.aio.server`."""
        return () if self._authentication is None else (self._authentication,)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Listen on the address, with TLS if there is a certificate. Returns the port."""
        served = self._certificates
        if served is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(
            address,
            certificates.credentials(lambda: served.value, clients_need_one=self._clients_need_certificate),
        )

    async def watch(self) -> None:
        """Reload files that change, until the task is cancelled."""
        while self._certificates is not None or self._tokens is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self._certificates is not None:
                    await self._look_at_certificates(self._certificates)
                if self._tokens is not None:
                    await self._look_at_tokens(self._tokens)
            except Exception:  # noqa: BLE001 - if a bug ended this loop, tokens could no longer be withdrawn
                _log.exception("looking for new certificates and tokens failed")

    async def _look_at_certificates(self, served: Reloaded[Certificates]) -> None:
        if await _look(served):
            _log.info("certificate reloaded", expires=round(served.value.expires))
        self._observer.trouble("tls_certificate", _kept(served.fault) or served.value.lapsed(time.time()))

    async def _look_at_tokens(self, tokens: Reloaded[Tokens]) -> None:
        if await _look(tokens):
            _log.info("clients reloaded", number=len(tokens.value))
            if self._authentication is not None:
                self._authentication.revoke()
        self._observer.trouble("auth_tokens", _kept(tokens.fault))


_OF_CLIENTS: Final = (
    "Invalid encoding on",  # metadata that are not UTF-8, such as a mangled token, which the line quotes
    "ExecuteBatchError raised in core",  # a client went away while it was sent something
)
"""Beginnings of log lines in which gRPC reports ordinary behaviour of clients with a traceback."""


def _is_a_fault(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_OF_CLIENTS)


async def _look(files: Reloaded[Any]) -> bool:
    # This runs in a thread, since a disk can hang, and the event loop must continue to serve streams.
    return await asyncio.to_thread(files.look)


def _kept(fault: str | None) -> str | None:
    return None if fault is None else f"{fault}; the previous content stays in use"


def _certificates(settings: _Settings) -> Reloaded[Certificates] | None:
    certificate, key, authority = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if certificate is None or key is None:
        return None

    def read() -> tuple[bytes, ...]:
        contents = (
            read_file(certificates.CERTIFICATE, certificate),
            read_file(certificates.KEY, key, secret=True),
        )
        return contents if authority is None else (*contents, read_file(certificates.CLIENT_CA, authority))

    return Reloaded(read, certificates.judge)


def _tokens(settings: _Settings) -> Reloaded[Tokens] | None:
    file = settings.auth_tokens_file
    if file is None:
        return None
    return Reloaded(
        lambda: (read_file(auth_tokens.SETTING, file, secret=True),),
        lambda contents: auth_tokens.parse(contents[0]),
    )
