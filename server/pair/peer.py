"""Connections to the peer: its address, TLS and the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from server.security.reloaded import read_file

if TYPE_CHECKING:
    from pathlib import Path

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # an endpoint may have any size
    ("grpc.enable_http_proxy", 0),
    # A connection that died silently is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Peer:
    """The peer's address and our credentials. Files are read at each connection, so they can change."""

    def __init__(
        self,
        address: str,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        token_file: Path | None = None,
        setting: str = "PEER",
    ) -> None:
        """``ca_file`` enables TLS, certificate and key mutual TLS. ``setting`` is the settings' prefix."""
        self._setting = setting
        self._address = address
        self._ca_file = ca_file
        self._cert_file = cert_file
        self._key_file = key_file
        self._token_file = token_file

    def verify(self) -> None:
        """Check at the start that the files can be read. Later they may change.

        Raises:
            ConfigurationError: a file cannot be read.

        """
        for setting, path in (
            ("CA_FILE", self._ca_file),
            ("CERT_FILE", self._cert_file),
            ("KEY_FILE", self._key_file),
            ("TOKEN_FILE", self._token_file),
        ):
            if path is not None:
                read_file(f"{self._setting}_{setting}", path)

    def channel(self) -> grpc.Channel:
        """Open a connection.

        Raises:
            OSError: a file cannot be read.

        """
        if self._ca_file is None:
            return grpc.insecure_channel(self._address, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self._ca_file.read_bytes(),
            None if self._key_file is None else self._key_file.read_bytes(),
            None if self._cert_file is None else self._cert_file.read_bytes(),
        )
        return grpc.secure_channel(self._address, credentials, options=_OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of each call: the token, if there is one.

        Raises:
            OSError: the token's file cannot be read.

        """
        if self._token_file is None:
            return ()
        return (("authorization", f"Bearer {self._token_file.read_text().strip()}"),)
