"""A trial of a plugin: a temporary slot shows whether the server loads the plugin."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2

from cdc.errors import PadsCdcError, SourceError
from cdc.postgres.errors import is_lasting, translate
from cdc.postgres.session import ask

if TYPE_CHECKING:
    from cdc.postgres.connection import Address

_NO_SLOT_FREE = "53400"
_TRY_SECONDS = 1.0
"""Maximum time that the creation of the slot waits for running transactions, in seconds. The server loads the
plugin before it waits.
"""


@dataclass(frozen=True)
class Trial:
    """The result of a trial."""

    loads: bool | None
    """Whether the server loads the plugin; None if this could not be tried because no slot is free."""
    error: PadsCdcError | None = None
    """Why the server does not load it."""
    sqlstate: str | None = None


def try_plugin(source: Address, query: str, plugin: str) -> Trial:
    """Make the server load a plugin, for at most a second. ``query`` is `TryPlugin`.

    Raises:
        SourceError, Refusal: the connection failed, so nothing is known about the plugin.

    """
    connection = source.connect()
    try:
        # While the creation of a slot waits for running transactions, lock_timeout applies to it.
        brief = f"SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = '{_TRY_SECONDS}s';\n"
        ask(connection, brief + query, {"slot": f"pads_cdc_check_{os.getpid()}", "plugin": plugin})
    except psycopg2.Error as error:
        found = translate(error, source.setting)
        if isinstance(found, SourceError) and found.reason == "cancelled":
            return Trial(loads=True)
        if error.pgcode == _NO_SLOT_FREE:
            return Trial(loads=None)
        if not is_lasting(found):
            raise found from error
        return Trial(False, found, error.pgcode)
    finally:
        connection.close()
    return Trial(loads=True)
