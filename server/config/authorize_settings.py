# ruff: noqa: TC001, TC003 (pydantic evaluates the annotations when the class is made)
"""All settings of ``pads-cdc authorize``. `server.config.base` explains how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from authz.identity import is_prefix
from server.config.base import (
    CommandSettings,
    Host,
    Port,
    bare,
    is_address,
    is_loopback,
    lower,
    none,
    require,
    setting,
)
from server.config.quantities import Seconds

_SOCKET_BYTES = 100
"""Maximum length of a socket's path, in bytes. Linux allows 107 bytes; the rest is for a worker's number."""
_TAKEN = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that already have another meaning."""


def _addresses(given: str) -> str:
    each = [address.strip() for address in given.split(",")]
    for address in each:
        is_address(address)
    if len(set(each)) < len(each):
        raise ValueError("names a server twice")
    return ",".join(each)


def _header(given: str | None) -> str | None:
    if given is None:
        return None
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", given) is None:
        raise ValueError("is not a header's name: letters, digits and dashes")
    if given.lower() in _TAKEN:
        raise ValueError("is a header that means something else already")
    return given


def _prefix(given: str | None) -> str | None:
    if given is not None and not is_prefix(given):
        raise ValueError(
            "is not a path's beginning: letters, digits and ._~- between slashes, none of them doubled"
        )
    return given


def _socket(given: Path | None) -> Path | None:
    if given is not None and len(str(given).encode()) > _SOCKET_BYTES:
        raise ValueError(f"is too long for a socket: {_SOCKET_BYTES} bytes at most")
    return given


Header = Annotated[str | None, BeforeValidator(none), AfterValidator(_header)]


class AuthorizeSettings(CommandSettings):
    """The settings of an authorizer. Build it with ``AuthorizeSettings.load``."""

    feed_addresses: Annotated[str, AfterValidator(_addresses)] = Field(
        description="Required. gRPC addresses of servers or relays, comma-separated; one is used at a time.",
        examples=["pads-cdc-1:10002,pads-cdc-2:10002"],
    )
    feed_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/ca.crt",
        "Authorities, PEM, that signed the servers' certificates; without it the feed has no TLS.",
    )
    feed_cert_file: Path | None = setting(
        None,
        "/etc/pads-cdc/client.crt",
        "Our certificate, PEM, for servers that require one (mutual TLS). Read at each connection.",
    )
    feed_key_file: Path | None = setting(
        None, "/etc/pads-cdc/client.key", "That certificate's private key, PEM."
    )
    feed_token_file: Path | None = setting(
        None,
        "/etc/pads-cdc/feed-token",
        "File with a token from the servers' AUTH_TOKENS_FILE (without its name). Read at each connection.",
    )
    host: Host = setting("127.0.0.1", "0.0.0.0", "Address that Envoy's checks are answered on.")  # noqa: S104 (an example)
    port: Port = setting(10001, "10001", "Port that Envoy's checks are answered on; 0 takes any free one.")
    unix_socket: Annotated[Path | None, AfterValidator(_socket)] = setting(
        None,
        "/run/pads-cdc/authorize.sock",
        "Socket to answer on too, for an Envoy beside it; with WORKERS each has its own: NAME.1, NAME.2, ...",
    )
    allow_insecure: bool = setting(
        False, "true", "Allow checks without TLS on an address that is not loopback, and a token without TLS."
    )
    tls_cert_file: Path | None = setting(
        None,
        "/etc/pads-cdc/tls.crt",
        "Certificate with its chain, PEM, that Envoy is shown; without it there is no TLS. Read again when it"
        " changes.",
    )
    tls_key_file: Path | None = setting(
        None, "/etc/pads-cdc/tls.key", "The certificate's private key, PEM, without passphrase."
    )
    tls_client_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/envoy-ca.crt",
        "Authorities, PEM: only an Envoy with a certificate of theirs may connect (mutual TLS).",
    )
    metrics_host: Host = setting("127.0.0.1", "0.0.0.0", "Address of the metrics and health pages.")  # noqa: S104
    metrics_port: Port = setting(9190, "9190", "Port of the metrics and health pages; 0 takes any free one.")
    id_header: Header = setting(
        "Portal-Application-ID", "none", "Header that names the endpoint; none ignores headers."
    )
    id_path_prefix: Annotated[str | None, BeforeValidator(none), AfterValidator(_prefix)] = setting(
        "/v1/", "none", "The path segment after this prefix names the endpoint; none ignores paths."
    )
    jwt_subject_header: Header = setting(
        None,
        "jwt-user-id",
        "Header in which Envoy puts the subject of a token that it has verified. Envoy must remove it from"
        " what clients send (docs/envoy.md). Without it every endpoint that asks for a JWT is refused.",
    )
    upstream_endpoint_header: Header = setting(
        "Portal-Application-ID", "endpoint-id", "Header that tells the upstream the endpoint; or none."
    )
    upstream_account_header: Header = setting(
        "Portal-Account-ID", "none", "Header that tells the upstream the account; or none."
    )
    upstream_limited_header: Header = setting(
        "Rl-Endpoint-Id", "rate-limit-endpoint-id", "Header with the endpoint, if it has a limit; or none."
    )
    upstream_throughput_header: Header = setting(
        "Rl-Throughput", "rate-limit-throughput", "Header with the limit, if any, in calls a second; or none."
    )
    remove_authorization: bool = setting(
        True, "false", "Remove the header Authorization before the request goes upstream."
    )
    rate_limit: Annotated[Literal["headers", "local"], BeforeValidator(lower)] = setting(
        "headers",
        "local",
        "What enforces limits: Envoy (headers), or this process, which answers 429 (local).",
    )
    max_staleness: Annotated[Seconds | None, BeforeValidator(none)] = setting(
        None, "10m", "Staleness of the map beyond which every check is refused with 503; never if not given."
    )
    staleness_header: Header = setting(
        None, "Portal-Map-Staleness", "Response header that says how many seconds old the map may be."
    )
    drain_time: Seconds = setting(
        "3s",
        "10s",
        "How long checks are still answered after SIGTERM, while the health pages say not ready.",
    )
    workers: Annotated[int, Field(ge=1, le=64)] = setting(
        1, "4", "Processes that share the port, each with a map of its own; docs/envoy.md says how many."
    )

    @property
    def auth_tokens_file(self) -> None:
        """None: Envoy authenticates with a certificate, never with a token."""

    @property
    def feeds(self) -> tuple[str, ...]:
        """The addresses of the feed."""
        return tuple(self.feed_addresses.split(","))

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        require(
            self,
            ("tls_key_file", "tls_cert_file"),
            ("tls_client_ca_file", "tls_cert_file"),
            ("tls_cert_file", "tls_key_file"),
            ("feed_cert_file", "feed_key_file"),
            ("feed_key_file", "feed_cert_file"),
            ("feed_cert_file", "feed_ca_file"),
        )
        return self

    @model_validator(mode="after")
    def _insecure_only_on_purpose(self) -> Self:
        if self.allow_insecure:
            return self
        if self.tls_cert_file is None and not is_loopback(self.host):
            raise ValueError(
                f"HOST (--host): {self.host} is not loopback, and Envoy would send its callers' keys there"
                " unencrypted; keep 127.0.0.1, or set TLS_CERT_FILE and TLS_KEY_FILE, or on a network that"
                " you trust ALLOW_INSECURE=true"
            )
        away = [feed for feed in self.feeds if not is_loopback(bare(feed))]
        if self.feed_token_file is not None and self.feed_ca_file is None and away:
            raise ValueError(
                f"FEED_TOKEN_FILE (--feed-token-file): the token would go to {away[0]} unencrypted; set"
                " FEED_CA_FILE, or on a network that you trust ALLOW_INSECURE=true"
            )
        return self

    @model_validator(mode="after")
    def _one_meaning_a_header(self) -> Self:
        if self.id_header is None and self.id_path_prefix is None:
            raise ValueError(
                "ID_HEADER (--id-header): without it and ID_PATH_PREFIX no request could name an endpoint"
            )
        subject = (self.jwt_subject_header or "").lower()
        upstream = [
            name
            for name in type(self).model_fields
            if name.startswith("upstream_") and getattr(self, name) is not None
        ]
        for name in ("id_header", *upstream):
            if subject and (getattr(self, name) or "").lower() == subject:
                raise ValueError(
                    f"JWT_SUBJECT_HEADER (--jwt-subject-header): is the same header as {name.upper()}"
                )
        seen: dict[str, str] = {}
        for name in upstream:
            header = getattr(self, name).lower()
            if header in seen:
                flag = name.replace("_", "-")
                raise ValueError(f"{name.upper()} (--{flag}): is the same header as {seen[header].upper()}")
            seen[header] = name
        return self
