"""``pads-cdc mapping new``: writes a mapping's folder for the user to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from cdc.errors import ConfigurationError, PadsCdcError

_TEMPLATE: Final = Path(__file__).parent / "template"
FILES: Final = ("schema.sql", "queries.sql", "affects.toml", "setup.sql", "sample.sql")
"""The files of a mapping, in the order in which they are best edited."""


def new(folder: Path) -> int:
    """Write the example of docs/mappings.md with comments, and print what to do next; returns the exit code.

    The example passes ``mapping test``.

    Raises:
        ConfigurationError: one of the files exists already. In this case no file is written or replaced.
        PadsCdcError: the folder cannot be written to.

    """
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigurationError(f"{folder}: {', '.join(there)} is there already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write((_TEMPLATE / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise PadsCdcError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
    click.echo(
        f"wrote {', '.join(FILES)} to {folder}: an example that works. Edit them in this order, and then:"
    )
    click.echo(
        f"  pads-cdc mapping test {folder}                  # on a throw-away server, with sample.sql's rows"
    )
    click.echo(
        f"  pads-cdc mapping test {folder} --database URL   # on your own database, without changing it"
    )
    click.echo(f"  MAPPING={folder} pads-cdc serve")
    return 0
