"""The common part of all commands' settings: where values come from, and how a bad value is reported.

A flag overrides the environment, which overrides the default. To add a setting, add one field to a command's
class. Its name in the environment (upper case), its flag, and its lines in ``--help`` and in
docs/configuration.md follow from the field. Before validation every value is text, as people type it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cdc.errors import ConfigurationError
from server.config.connection_string import ConnectionString
from server.config.misspelt import misspelt
from server.config.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo

_SHOWN = 60
"""Maximum number of characters of a bad value that a message quotes."""
_PORTS = 65535


def _readable(given: ConnectionString) -> ConnectionString:
    try:
        given.read()
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return given


def lower(given: object) -> object:
    """Return text in lower case, so that the case of typed words does not matter."""
    return given.lower() if isinstance(given, str) else given


def none(given: object) -> object:
    """Return None for the word ``none``."""
    return None if isinstance(given, str) and given.lower() == "none" else given


def is_host(given: str) -> str:
    """Return the value if it is a host name or an IP address; raises ValueError otherwise."""
    # A value with a colon can only be an IPv6 address. People often type "host:port".
    if re.fullmatch(r"[A-Za-z0-9._-]+", given) is None and not _is_ip(given):
        raise ValueError("is not a host name or an IP address (without port and brackets)")
    return given


def is_address(given: str | None) -> str | None:
    """Return the value if it is HOST:PORT; raises ValueError otherwise."""
    if given is None:
        return None
    host, _, port = given.rpartition(":")
    name = bare(given)
    if not port.isdigit() or not 0 < int(port) <= _PORTS or not name or (":" in name and name == host):
        raise ValueError("is not HOST:PORT, or [IPv6]:PORT")
    is_host(name)
    return given


def bare(address: str) -> str:
    """Return the host of HOST:PORT, without brackets."""
    host = address.rpartition(":")[0]
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_ip(given: str) -> bool:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        return False
    return True


Secret = Annotated[InstanceOf[ConnectionString], AfterValidator(_readable)]
"""The type of a secret setting, which may also be given as ``NAME_FILE``."""
Host = Annotated[str, AfterValidator(is_host)]
Port = Annotated[int, Field(ge=0, le=65535)]


def setting(default: Any, example: str, description: str) -> Any:
    """Declare a setting: its default and an example, both as people type them, and its description."""
    return Field(default, description=description, examples=[example], validate_default=True)


class _Environment(EnvSettingsSource):
    """The environment as a source of settings. Each secret may also be given as ``NAME_FILE``."""

    def __call__(self) -> dict[str, Any]:
        given = super().__call__()
        for name in _secrets(self.settings_cls):
            if file := self.env_vars.get(f"{name}_file"):
                given[f"{name}_file"] = file
        return _gather(self.settings_cls, given)


class CommandSettings(BaseSettings):
    """The settings of one command. Build it with ``load``."""

    model_config = SettingsConfigDict(
        frozen=True, env_ignore_empty=True, extra="forbid", hide_input_in_errors=True
    )

    logger_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)] = setting(
        "info", "info", "Least severe level that is logged: debug, info, warning or error."
    )
    log_format: Annotated[Literal["console", "json"] | None, BeforeValidator(lower)] = setting(
        None, "json", "console or json; console on a terminal and json elsewhere if not given."
    )

    @classmethod
    def load(cls, flags: Mapping[str, object] | None = None) -> Self:
        """Read flags (by setting name; None if not given), then the environment.

        Raises:
            ConfigurationError: a setting is bad. The text has one line for each, with what to type instead.

        """
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        try:
            return cls(**_gather(cls, given))
        except ValidationError as error:
            # "from None", because the chained error would contain the input.
            raise ConfigurationError("\n".join([*_complaints(cls, error), *cls.misspelt()])) from None

    @classmethod
    def misspelt(cls) -> list[str]:
        """Return a warning for each name in the environment that looks like a mistyped setting."""
        return [
            f"{name} is not a setting and is ignored; did you mean {meant}?"
            for name, meant in misspelt(os.environ, cls.environment())
            if name.upper() not in _of_all_commands()
        ]

    @classmethod
    def environment(cls) -> list[str]:
        """Return every environment name that this command reads."""
        return [name.upper() for name in (*cls.model_fields, *(f"{name}_file" for name in cls.secrets()))]

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings: first the command's own, then the shared ones."""
        lines = [each for each in cls.__mro__ if issubclass(each, CommandSettings)]
        return sorted(cls.model_fields, key=lambda name: sum(name in each.model_fields for each in lines))

    @classmethod
    def secrets(cls) -> tuple[str, ...]:
        """Names of the settings that hold a secret, and can therefore be given as ``NAME_FILE`` too."""
        return _secrets(cls)

    @property
    def connection_strings(self) -> tuple[ConnectionString, ...]:
        """The settings whose values are secret, for the redactor of the logs."""
        given = (getattr(self, name) for name in self.secrets())
        return tuple(one for one in given if one is not None)

    @property
    def console(self) -> bool:
        """Whether logs are written for people and not as JSON."""
        return self.log_format == "console" or (self.log_format is None and sys.stderr.isatty())

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take flags, then the environment. There is no dotenv file and no secrets folder."""
        return init_settings, _Environment(settings_cls)


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    # The type of an optional setting is a union of the annotated type and None.
    return any(
        kind is ConnectionString or get_args(kind)[:1] == (ConnectionString,)
        for kind in (field.annotation, *get_args(field.annotation))
    )


def _secrets(settings: type[BaseSettings]) -> tuple[str, ...]:
    return tuple(name for name, field in settings.model_fields.items() if is_secret(field))


def _gather(settings: type[BaseSettings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Combine NAME and NAME_FILE into one connection string, so that a flag overrides both of them."""
    gathered = dict(given)
    for name in _secrets(settings):
        value, file = gathered.pop(name, None), gathered.pop(f"{name}_file", None)
        if value is not None or file is not None:
            gathered[name] = ConnectionString(name.upper(), value=value, file=file)
    return gathered


def require(settings: CommandSettings, *needs: tuple[str, str]) -> None:
    """Check pairs of settings. If the first setting of a pair is given, it needs the second one.

    Raises:
        ValueError: the second setting of a pair is missing.

    """
    for name, other in needs:
        if getattr(settings, name) is not None and getattr(settings, other) is None:
            flag = name.replace("_", "-")
            raise ValueError(f"{name.upper()} (--{flag}): needs {other.upper()} too; give both, or neither")


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to this host."""
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host.lower() == "localhost"


def _complaints(settings: type[CommandSettings], error: ValidationError) -> list[str]:
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
            also = f", also as {name.upper()}_FILE" if is_secret(field) else ""
            lines.append(f"{title}: is required{also}; for example {example}")
        elif fault["type"] == "default_factory_not_called":
            continue  # this setting defaults to another one, whose error this would only repeat
        elif is_secret(field):
            lines.append(what)
        else:
            shown = redact(str(fault["input"]))
            shown = repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
            what = what if fault["type"] == "value_error" else f"is wrong: {what[0].lower()}{what[1:]}"
            lines.append(f"{title}: {shown} {what}; for example {example}")
    return lines


def _of_all_commands() -> set[str]:
    """Return the environment names of all commands, since one file may contain the settings of several
    commands.

    Only the commands whose settings are imported are included; `server.config.commands` imports all of them.
    """
    names, classes = set[str](), [CommandSettings]
    while classes:
        settings = classes.pop()
        names.update(settings.environment())
        classes += settings.__subclasses__()
    return names
