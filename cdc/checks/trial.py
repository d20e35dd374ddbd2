"""A trial of a plugin: a slot that ends with its session, which shows whether the server loads it."""

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
"""How long the trial slot may wait for running transactions: by then the plugin has been loaded."""


@dataclass(frozen=True)
class Trial:
    """What came of one."""

    loads: bool | None
    """None where it could not be tried, as no slot is free."""
    error: PadsCdcError | None = None
    """Why it is not loaded."""
    sqlstate: str | None = None


def try_plugin(source: Address, query: str, plugin: str) -> Trial:
    """Have the server load a plugin, for a second at most; ``query`` is `TryPlugin`.

    Raises:
        SourceError, Refusal: no connection could be had, or it was lost: that says nothing of the plugin.

    """
    connection = source.connect()
    try:
        # Running transactions are waited for by their locks.
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
