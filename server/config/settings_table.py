"""The settings as a table of texts, for ``--help`` and docs/configuration.md.

``python -m server.config.settings_table > docs/configuration.md`` writes the page. A test fails if it is
stale.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic_core import PydanticUndefined

from server.config.base import CommandSettings, is_secret
from server.config.commands import AuthorizeSettings, RelaySettings, Settings
from server.config.settings import Serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

_PAGE: Final = """\
# Configuration

<!-- Made by `python -m server.config.settings_table`; change server/config/ instead. -->

Every setting is an environment variable and a flag of its command: `SLOT_NAME` is `--slot-name`. A
flag overrides the environment; an empty variable counts as not set. A bad value gives one line on standard
error that says what to type instead, and exit code 2. A name in the environment that looks like a misspelt
setting gives a warning and is ignored.

## A server: `pads-cdc serve`
{server}

## Servers and relays
{both}

## A relay: `pads-cdc relay`
{relay}

## An authorization server for Envoy: `pads-cdc authorize`
{authorize}

## Values

**Durations** are a number and a unit: `500ms`, `30s`, `5m`, `2h`, `1d`. **Sizes** are Postgres' own: `64MB`
is 64 * 2^20 bytes, `1GB` is 2^30. A number without a unit is refused.

**Secrets** should not be given as flags, which every user of the machine can see. A file named by `NAME_FILE`
is read again at each connection, so a rotated password needs no restart. Give exactly one of `NAME` and
`NAME_FILE`. A connection string is a URL or libpq's `keyword=value` form. It is never shown, and messages
about it never quote it.
"""


@dataclass(frozen=True)
class SettingRow:
    """One setting, as texts."""

    field: str
    """The setting's name for `Settings.load`."""
    default: str
    """The default as people would type it; empty if there is none."""
    example: str
    description: str
    switch: bool
    """Whether the flag takes no value (``--no-...`` stands for false)."""

    @property
    def environment(self) -> str:
        """The setting's name in the environment."""
        return self.field.upper()

    @property
    def flag(self) -> str:
        """The setting's name on the command line."""
        return f"--{self.field.replace('_', '-')}"


def rows(settings: type[CommandSettings] = Settings) -> Iterator[SettingRow]:
    """Yield the settings of a command: first its own, then the shared ones. Each secret is followed by its
    ``_FILE``.
    """
    for name in settings.names():
        field = settings.model_fields[name]
        description = field.description or ""
        yield SettingRow(
            name, _default(field), str((field.examples or [""])[0]), description, field.annotation is bool
        )
        if is_secret(field):
            file = f"The file that holds {name.upper()}; read again at each connection."
            yield SettingRow(f"{name}_file", "", f"/run/secrets/{name}", file, switch=False)


def page() -> str:
    """Render docs/configuration.md."""
    common = set(Serving.model_fields)
    return _PAGE.format(
        server=_table(row for row in rows(Settings) if row.field not in common),
        both=_table(row for row in rows(Serving)),
        relay=_table(row for row in rows(RelaySettings) if row.field not in common),
        authorize=_table(rows(AuthorizeSettings)),
    )


def _table(some: Iterable[SettingRow]) -> str:
    lines = [
        f"| `{row.environment}` | {_code(row.default)} | {_code(row.example)} | {row.description} |"
        for row in some
    ]
    return "\n".join(["| name | default | example | meaning |", "|---|---|---|---|", *lines])


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    sys.stdout.write(page())
