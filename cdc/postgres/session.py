"""The settings of our sessions. The settings that decide what a statement means are pinned.

A role, a database or a connection string can set nearly every parameter of a session. Anyone who may create
objects in a schema of the search path can make their own function run in place of a built-in one. So every
setting that matters is pinned, on every connection:

- `at_start` passes all of `PINS` as startup options, which override the settings of a role or a database.
- A pooler may refuse or drop startup options. If a result or the safety of other sessions depends on a pin,
  `begin` sets the pin again in each transaction. It is local to the transaction, so other users of a shared
  connection do not see it.
- `for_good` sets the pins on a session that is never shared: the replication connection.

Other settings can at worst make a statement slower. `tests/e2e/test_session_settings.py` tries every setting
that a server has.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

SEARCH_PATH: Final = "pg_catalog, pg_temp"
"""Only superusers create objects in ``pg_catalog``. ``pg_temp`` is searched first unless it is named."""


class Scope(IntEnum):
    """Why a setting is pinned."""

    START = 0
    """It matters only while a session starts, or cannot be set later."""
    SESSION = 1
    """It matters between transactions, or costs only time."""
    TRANSACTION = 2
    """A result, or the safety of other sessions, depends on it. Each transaction sets it."""


@dataclass(frozen=True)
class Pin:
    """A setting and the value that we give it, in SQL."""

    name: str
    value: str
    scope: Scope = Scope.TRANSACTION
    since: tuple[int, ...] = ()
    """The first version of each major release that has the setting (``server_version_num``). If empty, all
    versions have it.
    """

    def known(self, version: int) -> bool:
        """Return whether a server of this version has the setting."""
        if not self.since or version >= self.since[-1]:
            return True
        return any(first <= version and first // 10_000 == version // 10_000 for first in self.since)


PINS: Final = (
    # Before the first statement.
    Pin("local_preload_libraries", "", Scope.START),
    Pin("transaction_timeout", "0", since=(170000,)),  # in a transaction its time is already running
    # Which objects a name means, and what we may see.
    Pin("search_path", SEARCH_PATH),
    Pin("role", "none"),
    Pin("row_security", "off"),  # hidden rows become an error, and no policy's function runs
    # A view calls functions with our privileges, so no view may be a table of a mapping.
    Pin("restrict_nonsystem_relation_kind", "view, foreign-table", since=(150008, 160004, 170000)),
    # What a statement means.
    Pin("exit_on_error", "off"),  # an error would end the session instead of the statement
    Pin("transform_null_equals", "off"),
    Pin("gin_fuzzy_search_limit", "0"),
    Pin("array_nulls", "on"),
    Pin("standard_conforming_strings", "on"),
    Pin("quote_all_identifiers", "off"),
    # How values are written.
    Pin("datestyle", "ISO, MDY"),
    Pin("intervalstyle", "postgres"),
    Pin("timezone", "UTC"),
    Pin("bytea_output", "hex"),
    Pin("extra_float_digits", "1"),
    Pin("xmlbinary", "base64"),
    Pin("xmloption", "content"),
    Pin("lc_numeric", "C"),
    Pin("lc_monetary", "C"),
    Pin("lc_time", "C"),
    # Defaults for transactions that do not set these themselves. A standby refuses serializable transactions.
    Pin("default_transaction_isolation", "read committed", Scope.SESSION),
    Pin("default_transaction_read_only", "off", Scope.SESSION),
    Pin("default_transaction_deferrable", "off", Scope.SESSION),
    # Time limits; `LIMITS` has those within a transaction.
    Pin("statement_timeout", "0", Scope.SESSION),
    Pin("lock_timeout", "0", Scope.SESSION),
    Pin("idle_in_transaction_session_timeout", "0", Scope.SESSION),
    Pin("idle_session_timeout", "0", Scope.SESSION),
    # Memory that temporary tables take when they are first used (by `mapping test`): 8 MB.
    Pin("temp_buffers", "1024", Scope.SESSION),
    # How a statement is planned.
    Pin("cursor_tuple_fraction", "1"),
    Pin("jit", "off"),
    Pin("geqo", "off", Scope.SESSION),
    Pin("from_collapse_limit", "8", Scope.SESSION),
    Pin("join_collapse_limit", "8", Scope.SESSION),
    *(
        Pin(f"enable_{what}", "on", Scope.SESSION)
        for what in (
            "bitmapscan",
            "hashagg",
            "hashjoin",
            "indexonlyscan",
            "indexscan",
            "material",
            "memoize",
            "mergejoin",
            "nestloop",
            "partition_pruning",
            "seqscan",
            "sort",
        )
    ),
    # Messages in addition to the result.
    Pin("client_min_messages", "error", Scope.SESSION),
)

LIMITS: Final = (
    Pin("lock_timeout", "400ms"),
    Pin("statement_timeout", "60s"),
    Pin("idle_in_transaction_session_timeout", "3s"),
    Pin("tcp_user_timeout", "3s"),
)
"""Time limits of a transaction: for waiting for a lock, for a statement, and for waiting for us. A client
that is frozen (SIGSTOP) or cut off holds its locks for at most 3 s, whether the server waits for its next
statement or cannot write to it.
"""

_DECODING: Final = (
    # The time that a wal sender waits for a reader that is frozen or cut off. A fast shutdown of the server
    # waits for the wal sender, and so does a process that wants the slot. Our reader sends feedback each
    # second.
    Pin("wal_sender_timeout", "5s"),
)


def at_start(given: str = "", version: int = 0, *, decoding: bool = False) -> str:
    """Return the value of the startup option ``options``: the given options, followed by our pins, which
    override them.

    ``version`` is the server's version, or 0 if it is not known yet.
    """
    pins = (*PINS, *_DECODING) if decoding else PINS
    ours = (f"-c {pin.name}={_escaped(pin.value)}" for pin in pins if pin.known(version))
    return " ".join(filter(None, (given, *ours)))


def for_good(connection: Connection) -> str:
    """Return the statements that pin all settings on a replication connection, which is never shared."""
    pins = (*PINS, *_DECODING)
    return "; ".join(
        f"SET {_assignment(pin)}"
        for pin in pins
        if pin.scope >= Scope.SESSION and pin.known(connection.server_version)
    )


def begin(connection: Connection, isolation: str = "READ COMMITTED", access: str = "READ ONLY") -> str:
    """Return the first statements of each transaction on an ordinary connection.

    Send them in one round trip with the next statement. They take 40 us.
    """
    version = connection.server_version
    pins = [pin for pin in (*PINS, *LIMITS) if pin.scope is Scope.TRANSACTION and pin.known(version)]
    settings = "; ".join(f"SET LOCAL {_assignment(pin)}" for pin in pins)
    return f"BEGIN ISOLATION LEVEL {isolation} {access} NOT DEFERRABLE; {settings};\n"


def ask(
    connection: Connection, statement: str, parameters: Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own, and return its rows. A ``%`` in the statement must be
    doubled.

    Raises:
        psycopg2.Error: the statement failed. The connection can be used again, unless it broke.

    """
    with connection.cursor() as cursor:
        try:
            cursor.execute(begin(connection) + statement, {**(parameters or {})})
            rows = cursor.fetchall()
        except psycopg2.Error:
            with suppress(psycopg2.Error):
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")
    return rows


def _assignment(pin: Pin) -> str:
    return f"{pin.name} = {pin.value if pin.name == 'search_path' else repr(pin.value)}"


def _escaped(value: str) -> str:
    return value.replace(" ", "\\ ")
