"""Asks a primary to log its running transactions, because the creation of a slot on its standby waits for
this log record.

A busy primary logs them every 15 s. An idle primary may not log them for a long time.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from cdc.errors import PadsCdcError
from cdc.mapping.sql_text import quote_name
from cdc.postgres.errors import translated
from cdc.postgres.session import ask

if TYPE_CHECKING:
    from cdc.postgres.connection import Address


_FUNCTION = "pg_log_standby_snapshot"
"""The function to call. Only superusers may call it, unless they grant EXECUTE to others."""


class StandbySnapshotRequest:
    """Asks in a separate thread, so that a frozen or unreachable primary delays nothing else."""

    def __init__(self, primary: Address, query: str) -> None:
        self._primary = primary
        self._query = query
        self._asking: threading.Thread | None = None
        self.fault: str | None = None
        """Why the last request failed, as one line; None if it succeeded."""

    def give(self) -> None:
        """Send a request, unless an earlier one is still running. Returns at once."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="snapshot_request", daemon=True)
            self._asking.start()

    def _ask(self) -> None:
        role = ""
        try:
            with closing(self._primary.connect()) as connection, translated(self._primary.setting):
                role = quote_name(connection.info.user)
                ask(connection, self._query)
        except PadsCdcError as error:
            fault, _, remedy = str(error).partition("; ")
            if _FUNCTION in fault:
                remedy = f"type there: GRANT EXECUTE ON FUNCTION {_FUNCTION}() TO {role};"
            self.fault = f"{fault}; {remedy}" if remedy else fault
        else:
            self.fault = None
