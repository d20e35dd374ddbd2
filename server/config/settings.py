# ruff: noqa: TC001, TC003 (pydantic evaluates the annotations when the class is made)
"""All settings in one frozen object, read once: a flag wins over the environment, that over the default.

To add a setting, add one field: its environment name (upper case), its flag, its line in ``--help`` and in
docs/configuration.md follow from it. The unvalidated form of every value is what people type.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cdc.errors import ConfigurationError
from server.config.connection_string import ConnectionString
from server.config.misspelt import misspelt
from server.config.quantities import Bytes, Seconds
from server.config.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

_SHOWN = 60
"""Characters of a bad value that a message quotes."""


def _readable(given: ConnectionString) -> ConnectionString:
    try:
        given.read()
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return given


def _lower(given: object) -> object:
    return given.lower() if isinstance(given, str) else given


def _none(given: object) -> object:
    return None if isinstance(given, str) and given.lower() == "none" else given


def _identifier(given: str) -> str:
    if not given or "\0" in given or len(given.encode()) > _IDENTIFIER_BYTES:
        raise ValueError(f"is not a name that Postgres takes: 1 to {_IDENTIFIER_BYTES} bytes")
    return given


def _slot_name(given: str) -> str:
    if re.fullmatch(rf"[a-z0-9_]{{1,{_IDENTIFIER_BYTES}}}", given) is None:
        raise ValueError(f"is not a slot name: 1 to {_IDENTIFIER_BYTES} of a-z, 0-9 and _")
    return given


def _host(given: str) -> str:
    # With a colon it can only be an IPv6 address; "host:port" is what people try.
    if re.fullmatch(r"[A-Za-z0-9._-]+", given) is None and not _is_ip(given):
        raise ValueError("is not a host name or an IP address (without port and brackets)")
    return given


def _address(given: str | None) -> str | None:
    if given is None:
        return None
    host, _, port = given.rpartition(":")
    bare = _bare(given)
    if not port.isdigit() or not 0 < int(port) <= _PORTS or not bare or (":" in bare and bare == host):
        raise ValueError("is not HOST:PORT, or [IPv6]:PORT")
    _host(bare)
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
        _host(parts.hostname)
    return given


def _stream(given: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given) is None:
        raise ValueError("is not a stream name: 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return given


def _bare(address: str) -> str:
    host = address.rpartition(":")[0]
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_ip(given: str) -> bool:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        return False
    return True


_IDENTIFIER_BYTES = 63
_NO_BROKER = "is not nats://HOST:PORT or tls://HOST:PORT, or several of them with commas"
_PORTS = 65535
_CLIENT_FILES = ("ca_file", "cert_file", "key_file", "token_file")

Secret = Annotated[InstanceOf[ConnectionString], AfterValidator(_readable)]
"""Also to be had as ``NAME_FILE``."""
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65535)]
Identifier = Annotated[str, AfterValidator(_identifier)]


def _setting(default: Any, example: str, description: str) -> Any:
    """Declare a setting: its default as typed, what to type instead, and what it is for."""
    return Field(default, description=description, examples=[example], validate_default=True)


class _Environment(EnvSettingsSource):
    """The environment, with each secret also taken from ``NAME_FILE``."""

    def __call__(self) -> dict[str, Any]:
        given = super().__call__()
        for name in _secrets(self.settings_cls):
            if file := self.env_vars.get(f"{name}_file"):
                given[f"{name}_file"] = file
        return _gather(self.settings_cls, given)


class Serving(BaseSettings):
    """What a server and a relay have in common: who is served where, and what is logged."""

    model_config = SettingsConfigDict(
        frozen=True, env_ignore_empty=True, extra="forbid", hide_input_in_errors=True
    )

    host: Host = _setting("127.0.0.1", "0.0.0.0", "Address that gRPC listens on.")  # noqa: S104 (an example)
    port: Port = _setting(10002, "10002", "Port that gRPC listens on; 0 takes any free one.")
    allow_insecure: bool = _setting(
        False,
        "true",
        "Allow gRPC on an address that is not loopback without TLS, or without asking who connects.",
    )
    tls_cert_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/tls.crt",
        "gRPC's certificate with its chain, PEM; without it gRPC is plaintext. Read again when it changes.",
    )
    tls_key_file: Path | None = _setting(
        None, "/etc/pads-cdc/tls.key", "The certificate's private key, PEM, without passphrase."
    )
    tls_client_ca_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/clients-ca.crt",
        "Authorities, PEM: only clients with a certificate of theirs may connect (mutual TLS).",
    )
    auth_tokens_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/tokens",
        "Lines of name:token; every call needs one of these tokens. Read again when it changes.",
    )
    metrics_host: Host = _setting("127.0.0.1", "0.0.0.0", "Address of the metrics and health pages.")  # noqa: S104
    metrics_port: Port = _setting(9090, "9090", "Port of the metrics and health pages; 0 takes any free one.")
    max_staleness: Annotated[Seconds | None, BeforeValidator(_none)] = _setting(
        None, "10m", "Staleness beyond which the server reports itself not ready; never if not given."
    )
    progress_interval: Seconds = _setting(
        "5s", "5s", "How often a subscriber of the feed hears from the server, busy or idle."
    )
    tombstone_retention: Seconds = _setting(
        "24h", "7d", "How old a resume token of the feed may be; with an older one a client starts over."
    )
    max_concurrent_snapshots: Annotated[int, Field(ge=1)] = _setting(
        8, "32", "Clients of the feed that are sent everything at the same time; others wait their turn."
    )
    broker_url: Annotated[str | None, AfterValidator(_broker)] = _setting(
        None,
        "tls://nats-1:4222,tls://nats-2:4222",
        "NATS servers between a leader and its relays: a server publishes its map there, a relay reads it.",
    )
    broker_stream: Annotated[str, AfterValidator(_stream)] = _setting(
        "pads_cdc", "pads_cdc", "JetStream stream with the map; one for each database and mapping."
    )
    broker_credentials_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/nats.creds",
        "Credentials for NATS: its .creds file, USER:PASSWORD, or a token. Read again at each connection.",
    )
    broker_tls_ca_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/nats-ca.crt",
        "Authorities, PEM, by which the broker's certificate is judged; the machine's own if not given.",
    )
    broker_tls_cert_file: Path | None = _setting(
        None, "/etc/pads-cdc/nats.crt", "Our certificate, PEM, where the broker asks for one (mutual TLS)."
    )
    broker_tls_key_file: Path | None = _setting(
        None, "/etc/pads-cdc/nats.key", "That certificate's private key, PEM."
    )
    broker_seal_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/seal.keys",
        "Keys that seal what the broker stores (AES-GCM), one a line: the first seals, all open. Read again"
        " when it changes.",
    )
    logger_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = _setting(
        "info", "info", "Least severe level that is logged: debug, info, warning or error."
    )
    log_format: Annotated[Literal["console", "json"] | None, BeforeValidator(_lower)] = _setting(
        None, "json", "console or json; console on a terminal and json elsewhere if not given."
    )

    @classmethod
    def load(cls, flags: Mapping[str, object] | None = None) -> Self:
        """Read flags (by setting name, None where not given), then the environment.

        Raises:
            ConfigurationError: one line for each setting that is bad, with what to type in its place.

        """
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        try:
            return cls(**_gather(cls, given))
        except ValidationError as error:
            # "from None": the chained error would hold the input.
            raise ConfigurationError("\n".join([*_complaints(cls, error), *cls.misspelt()])) from None

    @classmethod
    def misspelt(cls) -> list[str]:
        """Return a line for each name in the environment that was probably meant for a setting."""
        names = [*cls.model_fields, *(f"{name}_file" for name in cls.secrets())]
        return [
            f"{name} is no setting and counts for nothing; did you mean {meant}?"
            for name, meant in misspelt(os.environ, (each.upper() for each in names))
        ]

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings: those of the command alone, and then those that all have."""
        return sorted(cls.model_fields, key=lambda name: name in Serving.model_fields)

    @classmethod
    def secrets(cls) -> tuple[str, ...]:
        """Names of the settings that hold a secret and so exist as ``NAME_FILE`` too."""
        return _secrets(cls)

    @property
    def connection_strings(self) -> tuple[ConnectionString, ...]:
        """Every secret, for the redactor of the logs."""
        given = (getattr(self, name) for name in self.secrets())
        return tuple(one for one in given if one is not None)

    @property
    def console(self) -> bool:
        """Whether logs are for a person."""
        return self.log_format == "console" or (self.log_format is None and sys.stderr.isatty())

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        for name in ("tls_key_file", "tls_client_ca_file"):
            if getattr(self, name) is not None and self.tls_cert_file is None:
                raise ValueError(_needs(name, "tls_cert_file"))
        if self.tls_cert_file is not None and self.tls_key_file is None:
            raise ValueError(_needs("tls_cert_file", "tls_key_file"))
        return self

    @model_validator(mode="after")
    def _broker_whole(self) -> Self:
        for name in ("credentials_file", "tls_ca_file", "tls_cert_file", "seal_file"):
            if getattr(self, f"broker_{name}") is not None and self.broker_url is None:
                raise ValueError(_needs(f"broker_{name}", "broker_url"))
        pair = ("broker_tls_cert_file", "broker_tls_key_file")
        for name, other in (pair, pair[::-1]):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(_needs(name, other))
        for url in (self.broker_url or "").split(",") if not self.allow_insecure else ():
            given = urlsplit(url)
            if (
                given.scheme == "nats"
                and self.broker_tls_ca_file is None
                and not _is_loopback(given.hostname or "")
            ):
                raise ValueError(
                    f"BROKER_URL (--broker-url): {given.hostname} is not loopback, and API keys would go"
                    " there unencrypted; give tls://, or BROKER_TLS_CA_FILE, or on a network that you trust"
                    " ALLOW_INSECURE=true"
                )
        return self

    @model_validator(mode="after")
    def _insecure_only_on_purpose(self) -> Self:
        if self.allow_insecure or _is_loopback(self.host):
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

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take flags, then the environment; no dotenv and no secrets folder: fewer places to search."""
        return init_settings, _Environment(settings_cls)


class Settings(Serving):
    """What an operator chose for a server. Build it with ``Settings.load``."""

    postgres_connection_string: Secret = Field(
        description="Required. Where the replication slot is, as a role with REPLICATION and SELECT.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    query_connection_string: Secret = Field(
        default_factory=lambda given: given["postgres_connection_string"],
        description="Where the mapping is queried: a server of the same system; if not given, the slot's.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    primary_connection_string: Secret | None = Field(
        None,
        description="For a slot on a standby: its primary, to be asked for what making the slot waits for.",
        examples=["postgresql://USER:PASSWORD@HOST:5432/DATABASE"],
    )
    mapping: Annotated[str, Field(min_length=1)] = _setting(
        "grove",
        "grove_soft_delete",
        "How rows become endpoints: grove, grove_soft_delete, grove_jwt, or a folder's path.",
    )
    db_schema: Identifier = _setting("public", "public", "Schema that holds the mapping's tables.")
    slot_name: Annotated[str, AfterValidator(_slot_name)] = _setting(
        "pads_cdc",
        "pads_cdc",
        "Replication slot to read, created if missing; one for each server, or for each pair.",
    )
    peer_address: Annotated[str | None, AfterValidator(_address)] = _setting(
        None,
        "pads-cdc-1:10002",
        "gRPC address of a second server with the same SLOT_NAME: one reads the slot, the other stands by.",
    )
    peer_ca_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/ca.crt",
        "Authorities, PEM, by which the peer's certificate is judged; without it the peer has no TLS.",
    )
    peer_cert_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/client.crt",
        "Our certificate, PEM, where the peer asks for one (mutual TLS).",
    )
    peer_key_file: Path | None = _setting(
        None, "/etc/pads-cdc/client.key", "That certificate's private key, PEM."
    )
    peer_token_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/peer-token",
        "File with one of the peer's AUTH_TOKENS_FILE tokens (without its name). Read at each connection.",
    )
    slot_failover: bool = _setting(
        False, "true", "Have standbys keep the slot too, for one that is promoted (PostgreSQL 17 or later)."
    )
    state_file: Path = _setting(
        "pads-cdc.state",
        "/var/lib/pads-cdc/state",
        "File that remembers revisions across restarts; it holds no keys.",
    )
    max_retained_wal: Bytes = _setting(
        "1GB", "1GB", "WAL that the slot may hold back before it is let go at the price of a full re-read."
    )
    audit_interval: Seconds = _setting("5m", "5m", "How often the whole map is compared with the database.")

    @model_validator(mode="after")
    def _peer_whole(self) -> Self:
        _judge_client(self, "peer", allow_insecure=self.allow_insecure)
        return self


class RelaySettings(Serving):
    """What an operator chose for a relay, which needs no database. Build it with ``RelaySettings.load``."""

    leader_address: Annotated[str | None, AfterValidator(_address)] = _setting(
        None,
        "pads-cdc-0:10002",
        "gRPC address of the server to follow directly, in place of BROKER_URL.",
    )
    leader_ca_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/ca.crt",
        "Authorities, PEM, by which the leader's certificate is judged; without it the leader has no TLS.",
    )
    leader_cert_file: Path | None = _setting(
        None, "/etc/pads-cdc/client.crt", "Our certificate, PEM, where the leader asks for one (mutual TLS)."
    )
    leader_key_file: Path | None = _setting(
        None, "/etc/pads-cdc/client.key", "That certificate's private key, PEM."
    )
    leader_token_file: Path | None = _setting(
        None,
        "/etc/pads-cdc/leader-token",
        "File with one of the leader's AUTH_TOKENS_FILE tokens (without its name). Read at each connection.",
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
    """Judge how we connect to a peer or a leader: all that belongs together, and no token in plaintext."""
    given = {name: getattr(settings, f"{of}_{name}") for name in ("address", *_CLIENT_FILES)}
    for name in ("ca_file", "token_file"):
        if given[name] is not None and given["address"] is None:
            raise ValueError(_needs(f"{of}_{name}", f"{of}_address"))
    for name, other in (("cert_file", "key_file"), ("key_file", "cert_file"), ("cert_file", "ca_file")):
        if given[name] is not None and given[other] is None:
            raise ValueError(_needs(f"{of}_{name}", f"{of}_{other}"))
    plain = given["address"] is not None and given["ca_file"] is None
    if (
        plain
        and given["token_file"] is not None
        and not allow_insecure
        and not _is_loopback(_bare(given["address"]))
    ):
        raise ValueError(
            f"{of.upper()}_TOKEN_FILE (--{of}-token-file): the token would go to the {of} unencrypted; set"
            f" {of.upper()}_CA_FILE, or on a network that you trust ALLOW_INSECURE=true"
        )


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    # An optional one is a union of the annotated type and None.
    return any(
        kind is ConnectionString or get_args(kind)[:1] == (ConnectionString,)
        for kind in (field.annotation, *get_args(field.annotation))
    )


def _secrets(settings: type[BaseSettings]) -> tuple[str, ...]:
    return tuple(name for name, field in settings.model_fields.items() if is_secret(field))


def _gather(settings: type[BaseSettings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Make one connection string of NAME and NAME_FILE, so that each source is judged, and wins, as one."""
    gathered = dict(given)
    for name in _secrets(settings):
        value, file = gathered.pop(name, None), gathered.pop(f"{name}_file", None)
        if value is not None or file is not None:
            gathered[name] = ConnectionString(name.upper(), value=value, file=file)
    return gathered


def _needs(name: str, other: str) -> str:
    flag = name.replace("_", "-")
    return f"{name.upper()} (--{flag}): needs {other.upper()} too; give both, or neither"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host.lower() == "localhost"


def _complaints(settings: type[Serving], error: ValidationError) -> list[str]:
    lines = []
    order = {name: number for number, name in enumerate(settings.names())}
    for fault in sorted(
        error.errors(), key=lambda fault: order[str(fault["loc"][0])] if fault["loc"] else -1
    ):
        what = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            lines.append(what)
            continue
        name = str(fault["loc"][0])
        field = settings.model_fields[name]
        example = f"{name.upper()}={(field.examples or ['...'])[0]}"
        title = f"{name.upper()} (--{name.replace('_', '-')})"
        if fault["type"] == "missing":
            lines.append(f"{title}: is required, also as {name.upper()}_FILE; for example {example}")
        elif fault["type"] == "default_factory_not_called":
            continue  # follows from a complaint about the setting that it defaults to
        elif is_secret(field):
            lines.append(what)
        else:
            shown = redact(str(fault["input"]))
            shown = repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
            what = what if fault["type"] == "value_error" else f"is wrong: {what[0].lower()}{what[1:]}"
            lines.append(f"{title}: {shown} {what}; for example {example}")
    return lines
