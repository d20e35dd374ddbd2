"""Connections to NATS.

After a loss, a new connection is made and the state of the stream is queried again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.aio.client import Client

from cdc.errors import PadsCdcError
from server.security.reloaded import read_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.config.settings import Serving

_CONNECT_SECONDS: Final = 5
_CLEAR_SECONDS: Final = 0.2
"""Time limit for closing a connection that was never established. After a TLS error, closing waits for an
answer that may never arrive.
"""
_PING_SECONDS: Final = 5
"""Interval of pings, in seconds. A connection that has died silently is detected within three pings."""
_CORRECT_CA: Final = "correct BROKER_TLS_CA_FILE"
_REMEDIES: Final = {
    9: "renew the broker's certificate, or correct the clock here",
    10: "renew the broker's certificate, or correct the clock here",
    62: "name the broker in BROKER_URL as its certificate does",
    64: "name the broker in BROKER_URL as its certificate does",
}
"""What to do about a certificate, by OpenSSL's number of the error (X509_V_ERR): it is not valid yet, has
expired, or is for another name or address.
"""
_CREDENTIALS: Final = "-----BEGIN NATS USER JWT-----"


class BrokerError(PadsCdcError):
    """The broker cannot be reached, or refuses a request; the text contains the remedy."""


class PlaintextError(BrokerError):
    """The broker does not offer TLS, although our settings ask for it."""


class _Client(Client):
    """A client that sends nothing in plaintext if our settings ask for TLS.

    nats-py uses TLS only if the server demands it. So a program that pretends to be the server could get our
    credentials and every page without TLS. The overridden method is not public;
    `tests/server/broker/test_connection.py` shows that it is called.
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        first = self.options.get("tls_handshake_first")
        if initial_connection and "tls" in self.options and not first and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise PlaintextError
            info["tls_required"] = True  # the server allows TLS and plaintext: use TLS
        await super()._process_info(info, initial_connection)


class Broker:
    """The broker's addresses and our credentials. Files are read at each connection."""

    def __init__(self, settings: Serving, name: str) -> None:
        """``name`` is the connection's name in the broker's monitoring."""
        self._urls = (settings.broker_url or "").split(",")
        self._credentials = settings.broker_credentials_file
        self._ca, self._cert, self._key = (
            settings.broker_tls_ca_file,
            settings.broker_tls_cert_file,
            settings.broker_tls_key_file,
        )
        self._tls = self._ca is not None or any(url.startswith("tls:") for url in self._urls)
        self._name = f"{name} {socket.gethostname()}"
        self._first: set[str] = set()
        """The URLs at which TLS begins at once, as behind a proxy. At other URLs the server sends a plaintext
        line first.
        """
        self._refusal = ""
        """The broker's last error about a missing permission on the current connection."""

    def verify(self) -> None:
        """Check at the start that the files can be read. Later they may change.

        Raises:
            ConfigurationError: a file cannot be read.

        """
        for setting, path in (
            ("BROKER_CREDENTIALS_FILE", self._credentials),
            ("BROKER_TLS_CA_FILE", self._ca),
            ("BROKER_TLS_CERT_FILE", self._cert),
            ("BROKER_TLS_KEY_FILE", self._key),
        ):
            if path is not None:
                read_file(setting, path, secret=setting in {"BROKER_CREDENTIALS_FILE", "BROKER_TLS_KEY_FILE"})

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect to one of the servers, and close the connection at the end. The client never reconnects by
        itself.

        Raises:
            BrokerError: no server accepts the connection.

        """
        self._refusal = ""
        client = await self._connect()
        try:
            yield client
        except BrokerError as error:
            if not self._refusal:
                raise
            text, semicolon, remedy = str(error).partition("; ")
            raise BrokerError(f"{text} (it said: {self._refusal}){semicolon}{remedy}") from error
        finally:
            await _close(client)

    def refuses(self, subject: str) -> bool:
        """Return whether the broker has refused us a subject that begins with ``subject``."""
        return f'"{subject.lower()}' in self._refusal.lower()

    async def _connect(self) -> Client:
        why = ""
        for url in self._urls:
            first = url in self._first
            for tls_first in (first, not first) if self._tls else (False,):
                client = _Client()
                try:
                    async with asyncio.timeout(_CONNECT_SECONDS + 1):
                        await client.connect(
                            servers=[url],
                            name=self._name,
                            allow_reconnect=False,
                            connect_timeout=_CONNECT_SECONDS,
                            ping_interval=_PING_SECONDS,
                            max_outstanding_pings=2,
                            error_cb=self._hear_error,
                            tls=self._context() if self._tls else None,
                            tls_handshake_first=tls_first,
                            **self._credentials_given(),
                        )
                except (nats.errors.Error, PlaintextError, OSError, TimeoutError, ValueError) as error:
                    await _close(client, _CLEAR_SECONDS)
                    if tls_first == first or not _is_mute(error):
                        why = _why(error, url)
                    if not _is_mute(error):
                        break  # the server answered, so the order of the handshake was right
                else:
                    (self._first.add if tls_first else self._first.discard)(url)
                    return client
        raise BrokerError(why)

    async def _hear_error(self, error: Exception) -> None:
        """Keep an error about a missing permission.

        All other errors are raised by the calls that they belong to.
        """
        text = " ".join(str(error).split()).removeprefix("nats: ")
        if "permissions violation" in text.lower():
            self._refusal = text

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=None if self._ca is None else str(self._ca))
        if self._cert is not None:
            context.load_cert_chain(self._cert, self._key)
        return context

    def _credentials_given(self) -> dict[str, Any]:
        if self._credentials is None:
            return {}
        return credentials(self._credentials)


def credentials(path: Path) -> dict[str, Any]:
    """Read a credentials file; returns the matching arguments for the NATS client.

    Raises:
        ConfigurationError: the file cannot be read.

    """
    text = read_file("BROKER_CREDENTIALS_FILE", path, secret=True).decode("utf-8", "replace").strip()
    if text.startswith(_CREDENTIALS):
        return {"user_credentials": str(path)}
    user, colon, password = text.partition(":")
    return {"user": user, "password": password} if colon else {"token": text}


async def _close(client: Client, seconds: float = _CONNECT_SECONDS) -> None:
    with suppress(nats.errors.Error, OSError, TimeoutError):
        await asyncio.wait_for(client.close(), seconds)


def _is_mute(error: Exception) -> bool:
    """Return whether the server has sent nothing that we understand. It may be waiting for TLS to begin."""
    if isinstance(error, TimeoutError | nats.errors.TimeoutError | ConnectionResetError):
        return True
    return isinstance(error, nats.errors.Error) and "expecting INFO" in str(error)


def _why(error: Exception, url: str) -> str:
    text = " ".join(str(error).split()).removeprefix("nats: ")
    lower = text.lower()
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in lower:
        return f"the broker {url} refuses our credentials; correct BROKER_CREDENTIALS_FILE"
    if isinstance(error, PlaintextError):
        return f"the broker {url} does not offer TLS; configure tls {{}} there, or correct BROKER_URL"
    if isinstance(error, ssl.SSLError):
        reason, remedy = error.reason or "no handshake", _CORRECT_CA
        if isinstance(error, ssl.SSLCertVerificationError):
            reason, remedy = error.verify_message, _REMEDIES.get(error.verify_code, _CORRECT_CA)
        return f"TLS with the broker {url} fails ({reason}); {remedy}"
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return (
            f"the broker {url} does not answer within {_CONNECT_SECONDS} s; start it, or correct BROKER_URL"
        )
    what = text or type(error).__name__
    return f"the broker {url} cannot be reached ({what}); start it, or correct BROKER_URL"
