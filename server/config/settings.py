# ruff: noqa: TC001, TC003 (pydantic evaluates the annotations when the class is made)
"""The settings of a server and of a relay. `server.config.base` explains how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from server.config.base import (
    CommandSettings,
    Host,
    Port,
    Secret,
    bare,
    is_address,
    is_host,
    is_loopback,
    lower,
    none,
    require,
    setting,
)
from server.config.quantities import Bytes, Seconds


def _identifier(given: str) -> str:
    if not given or "\0" in given or len(given.encode()) > _IDENTIFIER_BYTES:
        raise ValueError(f"is not a name that Postgres takes: 1 to {_IDENTIFIER_BYTES} bytes")
    return given


def _slot_name(given: str) -> str:
    if re.fullmatch(rf"[a-z0-9_]{{1,{_IDENTIFIER_BYTES}}}", given) is None:
        raise ValueError(f"is not a slot name: 1 to {_IDENTIFIER_BYTES} of a-z, 0-9 and _")
    return given


def _broker(given: str | None) -> str | None:
    if given is None:
        return None
    for url in given.split(","):
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(_NO_BROKER) from None
        if parts.scheme not in {"nats", "tls"} or not parts.hostname or port == 0 or parts.path.strip("/"):
            raise ValueError(_NO_BROKER)
        if parts.username is not None:
            raise ValueError("has credentials in it; give them in BROKER_CREDENTIALS_FILE")
        is_host(parts.hostname)
    return given


def _stream(given: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given) is None:
        raise ValueError("is not a stream name: 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return given


_IDENTIFIER_BYTES = 63
_NO_BROKER = "is not nats://HOST:PORT or tls://HOST:PORT, or several of them with commas"

Identifier = Annotated[str, AfterValidator(_identifier)]


class Serving(CommandSettings):
    """The settings that a server and a relay share: addresses, TLS and tokens, the broker, logs."""

    host: Host = setting("127.0.0.1", "0.0.0.0", "Address that gRPC listens on.")  # noqa: S104 (an example)
    port: Port = setting(10002, "10002", "Port that gRPC listens on; 0 takes any free one.")
    allow_insecure: bool = setting(
        False,
        "true",
        "Allow gRPC on an address that is not loopback without TLS, or without asking who connects.",
    )
    tls_cert_file: Path | None = setting(
        None,
        "/etc/pads-cdc/tls.crt",
        "gRPC's certificate with its chain, PEM; without it gRPC is plaintext. Read again when it changes.",
    )
    tls_key_file: Path | None = setting(
        None, "/etc/pads-cdc/tls.key", "The certificate's private key, PEM, without passphrase."
    )
    tls_client_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/clients-ca.crt",
        "Authorities, PEM: only clients with a certificate of theirs may connect (mutual TLS).",
    )
    auth_tokens_file: Path | None = setting(
        None,
        "/etc/pads-cdc/tokens",
        "Lines of name:token; every call needs one of these tokens. Read again when it changes.",
    )
    metrics_host: Host = setting("127.0.0.1", "0.0.0.0", "Address of the metrics and health pages.")  # noqa: S104
    metrics_port: Port = setting(9090, "9090", "Port of the metrics and health pages; 0 takes any free one.")
    max_staleness: Annotated[Seconds | None, BeforeValidator(none)] = setting(
        None, "10m", "Staleness beyond which the server reports itself not ready; never if not given."
    )
    progress_interval: Seconds = setting(
        "5s", "5s", "How often a subscriber of the feed hears from the server, busy or idle."
    )
    tombstone_retention: Seconds = setting(
        "24h",
        "7d",
        "How long deletes are remembered, and how old a resume token of the feed may be; with an older one a"
        " client starts over.",
    )
    max_concurrent_snapshots: Annotated[int, Field(ge=1)] = setting(
        8, "32", "Maximum number of clients that receive a snapshot at the same time; others wait their turn."
    )
    broker_url: Annotated[str | None, AfterValidator(_broker)] = setting(
        None,
        "tls://nats-1:4222,tls://nats-2:4222",
        "NATS servers between a leader and its relays: a server publishes its map there, a relay reads it.",
    )
    broker_stream: Annotated[str, AfterValidator(_stream)] = setting(
        "pads_cdc", "pads_cdc", "JetStream stream with the map; one for each database and mapping."
    )
    broker_replicas: Annotated[int, Field(ge=1, le=5)] = setting(
        1, "3", "Number of copies of the stream that the broker keeps, if a server makes the stream."
    )
    broker_credentials_file: Path | None = setting(
        None,
        "/etc/pads-cdc/nats.creds",
        "Credentials for NATS: its .creds file, USER:PASSWORD, or a token. Read again at each connection.",
    )
    broker_tls_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/nats-ca.crt",
        "Authorities, PEM, that signed the broker's certificate; the machine's own if not given.",
    )
    broker_tls_cert_file: Path | None = setting(
        None, "/etc/pads-cdc/nats.crt", "Our certificate, PEM, if the broker requires one (mutual TLS)."
    )
    broker_tls_key_file: Path | None = setting(
        None, "/etc/pads-cdc/nats.key", "That certificate's private key, PEM."
    )
    broker_seal_file: Path | None = setting(
        None,
        "/etc/pads-cdc/seal.keys",
        "Keys, one on each line, that seal what the broker stores (AES-GCM): the first seals, all open. Read"
        " again when it changes.",
    )

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        require(
            self,
            ("tls_key_file", "tls_cert_file"),
            ("tls_client_ca_file", "tls_cert_file"),
            ("tls_cert_file", "tls_key_file"),
        )
        return self

    @model_validator(mode="after")
    def _broker_whole(self) -> Self:
        files = ("credentials_file", "tls_ca_file", "tls_cert_file", "seal_file")
        pair = ("broker_tls_cert_file", "broker_tls_key_file")
        require(self, *((f"broker_{file}", "broker_url") for file in files), pair, pair[::-1])
        for url in (self.broker_url or "").split(",") if not self.allow_insecure else ():
            given = urlsplit(url)
            if (
                given.scheme == "nats"
                and self.broker_tls_ca_file is None
                and not is_loopback(given.hostname or "")
            ):
                raise ValueError(
                    f"BROKER_URL (--broker-url): {given.hostname} is not loopback, and API keys would go"
                    " there unencrypted; give tls://, or BROKER_TLS_CA_FILE, or on a network that you trust"
                    " ALLOW_INSECURE=true"
                )
        return self

    @model_validator(mode="after")
    def _insecure_only_on_purpose(self) -> Self:
        if self.allow_insecure or is_loopback(self.host):
            return self
        asked = self.tls_client_ca_file is not None or self.auth_tokens_file is not None
        if self.tls_cert_file is not None and asked:
            return self
        if self.tls_cert_file is not None:
            danger, remedy = "hand API keys to anyone who connects", "TLS_CLIENT_CA_FILE or AUTH_TOKENS_FILE"
        elif asked:
            danger, remedy = "send API keys and tokens unencrypted", "TLS_CERT_FILE and TLS_KEY_FILE"
        else:
            danger = "hand API keys, unencrypted, to anyone who connects"
            remedy = "TLS_CERT_FILE, TLS_KEY_FILE and TLS_CLIENT_CA_FILE or AUTH_TOKENS_FILE"
        raise ValueError(
            f"HOST (--host): {self.host} is not loopback, and gRPC would {danger}; keep 127.0.0.1, or set"
            f" {remedy}, or on a network that you trust ALLOW_INSECURE=true"
        )


class Settings(Serving):
    """The settings of a server. Build it with ``Settings.load``."""

    postgres_connection_string: Secret = Field(
        description="Required. The server with the replication slot, and a role with REPLICATION and SELECT.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    query_connection_string: Secret = Field(
        default_factory=lambda given: given["postgres_connection_string"],
        description="The server that is queried; by default the slot's. It must be of the same system.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    primary_connection_string: Secret | None = Field(
        None,
        description="The primary, if the slot is on a standby: it logs the snapshot that a new slot needs.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    mapping: Annotated[str, Field(min_length=1)] = setting(
        "grove",
        "grove_soft_delete",
        "The mapping from rows to endpoints: a bundled one (README.md lists them), or a folder's path.",
    )
    db_schema: Identifier = setting("public", "public", "Schema that holds the mapping's tables.")
    slot_name: Annotated[str, AfterValidator(_slot_name)] = setting(
        "pads_cdc",
        "pads_cdc",
        "Replication slot to read, created if missing; one for each server, or for each pair.",
    )
    plugin: Annotated[Literal["auto", "wal2json", "pgoutput"], BeforeValidator(lower)] = setting(
        "auto",
        "pgoutput",
        "Output plugin: wal2json, pgoutput, or auto (the slot's; for a new slot wal2json if it loads).",
    )
    publication: Identifier = setting(
        "pads_cdc", "pads_cdc", "Publication for pgoutput; pads-cdc setup makes it."
    )
    peer_address: Annotated[str | None, AfterValidator(is_address)] = setting(
        None,
        "pads-cdc-1:10002",
        "gRPC address of a second server with the same SLOT_NAME: one reads the slot, the other stands by.",
    )
    peer_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/ca.crt",
        "Authorities, PEM, that signed the peer's certificate; without it the peer has no TLS.",
    )
    peer_cert_file: Path | None = setting(
        None,
        "/etc/pads-cdc/client.crt",
        "Our certificate, PEM, if the peer requires one (mutual TLS).",
    )
    peer_key_file: Path | None = setting(
        None, "/etc/pads-cdc/client.key", "That certificate's private key, PEM."
    )
    peer_token_file: Path | None = setting(
        None,
        "/etc/pads-cdc/peer-token",
        "File with a token from the peer's AUTH_TOKENS_FILE (without its name). Read at each connection.",
    )
    slot_failover: bool = setting(
        False, "true", "Copy the slot to standbys, so that a promoted one has it (PostgreSQL 17 or later)."
    )
    state_file: Path = setting(
        "pads-cdc.state",
        "/var/lib/pads-cdc/state",
        "File that remembers revisions across restarts; it holds no keys.",
    )
    max_retained_wal: Bytes = setting(
        "1GB",
        "1GB",
        "WAL that an unread slot may retain. Beyond that it is dropped, and the map is re-read.",
    )
    audit_interval: Seconds = setting("5m", "5m", "How often the whole map is compared with the database.")

    @model_validator(mode="after")
    def _peer_whole(self) -> Self:
        _judge_client(self, "peer", allow_insecure=self.allow_insecure)
        return self


class RelaySettings(Serving):
    """The settings of a relay, which needs no database. Build it with ``RelaySettings.load``."""

    leader_address: Annotated[str | None, AfterValidator(is_address)] = setting(
        None,
        "pads-cdc-0:10002",
        "gRPC address of the server to follow directly, in place of BROKER_URL.",
    )
    leader_ca_file: Path | None = setting(
        None,
        "/etc/pads-cdc/ca.crt",
        "Authorities, PEM, that signed the leader's certificate; without it the leader has no TLS.",
    )
    leader_cert_file: Path | None = setting(
        None, "/etc/pads-cdc/client.crt", "Our certificate, PEM, if the leader requires one (mutual TLS)."
    )
    leader_key_file: Path | None = setting(
        None, "/etc/pads-cdc/client.key", "That certificate's private key, PEM."
    )
    leader_token_file: Path | None = setting(
        None,
        "/etc/pads-cdc/leader-token",
        "File with a token from the leader's AUTH_TOKENS_FILE (without its name). Read at each connection.",
    )

    @model_validator(mode="after")
    def _leader_whole(self) -> Self:
        if (self.leader_address is None) == (self.broker_url is None):
            raise ValueError(
                "BROKER_URL (--broker-url), LEADER_ADDRESS (--leader-address): a relay follows one of them;"
                " give one, for example BROKER_URL=nats://127.0.0.1:4222"
            )
        _judge_client(self, "leader", allow_insecure=self.allow_insecure)
        return self


def _judge_client(settings: Serving, of: str, *, allow_insecure: bool) -> None:
    """Check the settings for connections to a peer or leader: some need each other, and no token may be sent
    in plaintext.
    """
    address, ca, cert, key, token = (
        f"{of}_{name}" for name in ("address", "ca_file", "cert_file", "key_file", "token_file")
    )
    require(settings, (ca, address), (token, address), (cert, key), (key, cert), (cert, ca))
    target, plain = getattr(settings, address), getattr(settings, ca) is None
    if target and plain and getattr(settings, token) and not allow_insecure and not is_loopback(bare(target)):
        raise ValueError(
            f"{of.upper()}_TOKEN_FILE (--{of}-token-file): the token would go to the {of} unencrypted; set"
            f" {of.upper()}_CA_FILE, or on a network that you trust ALLOW_INSECURE=true"
        )
