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
_PORTS = 65535

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
        for name in Settings.secrets():
            if file := self.env_vars.get(f"{name}_file"):
                given[f"{name}_file"] = file
        return _gather(given)


class Settings(BaseSettings):
    """What an operator chose. Build it with ``Settings.load``."""

    model_config = SettingsConfigDict(
        frozen=True, env_ignore_empty=True, extra="forbid", hide_input_in_errors=True
    )

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
    audit_interval: Seconds = _setting("5m", "5m", "How often the whole map is compared with the database.")
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
            return cls(**_gather(given))
        except ValidationError as error:
            # "from None": the chained error would hold the input.
            raise ConfigurationError("\n".join([*_complaints(error), *cls.misspelt()])) from None

    @classmethod
    def misspelt(cls) -> list[str]:
        """Return a line for each name in the environment that was probably meant for a setting."""
        names = [*cls.model_fields, *(f"{name}_file" for name in cls.secrets())]
        return [
            f"{name} is no setting and counts for nothing; did you mean {meant}?"
            for name, meant in misspelt(os.environ, (each.upper() for each in names))
        ]

    @classmethod
    def secrets(cls) -> tuple[str, ...]:
        """Names of the settings that hold a secret and so exist as ``NAME_FILE`` too."""
        return tuple(name for name, field in cls.model_fields.items() if is_secret(field))

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
    def _peer_whole(self) -> Self:
        for name in ("peer_ca_file", "peer_token_file"):
            if getattr(self, name) is not None and self.peer_address is None:
                raise ValueError(_needs(name, "peer_address"))
        for name, other in (("peer_cert_file", "peer_key_file"), ("peer_key_file", "peer_cert_file")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(_needs(name, other))
        if self.peer_cert_file is not None and self.peer_ca_file is None:
            raise ValueError(_needs("peer_cert_file", "peer_ca_file"))
        plain = self.peer_address is not None and self.peer_ca_file is None
        away = self.peer_address is not None and not _is_loopback(_bare(self.peer_address))
        if plain and away and self.peer_token_file is not None and not self.allow_insecure:
            raise ValueError(
                "PEER_TOKEN_FILE (--peer-token-file): the token would go to the peer unencrypted; set"
                " PEER_CA_FILE, or on a network that you trust ALLOW_INSECURE=true"
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


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    # An optional one is a union of the annotated type and None.
    return any(
        kind is ConnectionString or get_args(kind)[:1] == (ConnectionString,)
        for kind in (field.annotation, *get_args(field.annotation))
    )


def _gather(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make one connection string of NAME and NAME_FILE, so that each source is judged, and wins, as one."""
    gathered = dict(given)
    for name in Settings.secrets():
        value, file = gathered.pop(name, None), gathered.pop(f"{name}_file", None)
        if value is not None or file is not None:
            gathered[name] = ConnectionString(name.upper(), value=value, file=file)
    return gathered


def _needs(name: str, other: str) -> str:
    flag = name.replace("_", "-")
    return f"{name.upper()} (--{flag}): needs {other.upper()} too; give both, or neither"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host.lower() == "localhost"


def _complaints(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        what = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            lines.append(what)
            continue
        name = str(fault["loc"][0])
        field = Settings.model_fields[name]
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
