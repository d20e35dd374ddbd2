"""Prepared statements, so that the server parses and plans the statements of a short read only once.

Parsing and planning take 0.6 ms of the 0.8 ms that a read of one endpoint takes. Postgres plans a prepared
statement again when a table that it reads is altered or analyzed, or when the search path changes.

Prepared statements need a session that is not shared through a pooler. A pooler in transaction mode invents
the process id that it reports when a connection begins. `PreparedStatements.of` compares this id with the
session's real one, and returns None if they differ. The name of a statement is a digest of its text. So even
in an unexpected session, the name stands for the right text or for nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Self

from cdc.postgres.session import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.errors import PadsCdcError

MOST_KEYS: Final = 64
"""Maximum number of keys of a read with a prepared statement, whose plan is made for about ten keys."""

_MOST: Final = 16
"""Maximum number of prepared statements of a session. A read needs six, one of which depends on the kinds of
its keys.
"""
_GENERIC: Final = "SET LOCAL plan_cache_mode = force_generic_plan;\n"
"""Makes the server use one plan for all keys. By default it plans each of the first five executions, and then
compares costs.
"""
_CHANGED: Final = "0A000"
"""SQLSTATE if the types of the statement's columns have changed since it was prepared."""
_NOT_OURS: Final = frozenset({"26000", "42P05"})
"""SQLSTATEs if the statement's name is unknown or already used, so the session is not the one that prepared
it.
"""
_TOOK_LONG: Final = "57014"
"""SQLSTATE if the statement exceeded ``statement_timeout``, perhaps because of a bad plan."""
_DOES_NOT_FIT: Final = "42"
"""The SQLSTATE class of errors in a statement's text, for example that its parameter is not an array of text.
"""

_KEPT: Final = frozenset({_CHANGED, _TOOK_LONG, *_NOT_OURS})


class PreparedStatements:
    """The prepared statements of one session. If a message that uses them fails, the session is closed."""

    def __init__(self, begin: str) -> None:
        """``begin`` are the statements that each transaction begins with."""
        self._begin = f"{begin}{_GENERIC}"
        self._names: dict[str, str] = {}
        """The names of the statements, by their text."""
        self._outdated: set[str] = set()

    @classmethod
    def of(cls, cursor: Cursor) -> Self | None:
        """Return the prepared statements of a new session; None if a pooler may share the session."""
        cursor.execute("SELECT pg_catalog.pg_backend_pid()")
        [(pid,)] = cursor.fetchall()
        return cls(begin(cursor.connection)) if pid == cursor.connection.info.backend_pid else None

    def begin(self) -> str:
        """Return the first statements of a message that executes prepared statements in a transaction."""
        if len(self._names) <= _MOST:
            return self._begin
        self._names.clear()
        self._outdated.clear()
        return f"{self._begin}DEALLOCATE ALL;\n"

    def execute(self, statement: str, parameters: Sequence[str] = ()) -> str:
        """Return the SQL that prepares a statement if necessary, and then executes it.

        ``parameters`` are the names of its parameters, in psycopg2's form. Each parameter is an array of
        text.
        """
        name, before = self._names.get(statement), ""
        if name is not None and statement in self._outdated:
            self._outdated.discard(statement)
            before, name = f"DEALLOCATE {name};\n", None
        if name is None:
            digest = blake2b(statement.encode(), digest_size=8).hexdigest()
            name = self._names[statement] = f"pads_cdc_{digest}"
            numbers = {parameter: f"${number}" for number, parameter in enumerate(parameters, 1)}
            types = f" ({', '.join(['TEXT[]'] * len(parameters))})" if parameters else ""
            body = (statement % numbers).replace("%", "%%")
            before += f"PREPARE {name}{types} AS {body};\n"
        values = ", ".join(f"%({parameter})s" for parameter in parameters)
        return f"{before}EXECUTE {name}{f' ({values})' if values else ''};\n"

    def outdate(self, statement: str) -> None:
        """Prepare a statement again before its next execution, since its plan may be a bad one."""
        self._outdated.add(statement)


def blames(error: PadsCdcError) -> bool:
    """Return whether the same read may succeed without prepared statements."""
    code = _code(error)
    return code in _KEPT or code.startswith(_DOES_NOT_FIT)


def forbids(error: PadsCdcError) -> bool:
    """Return whether the statement may fail in the same way when it is prepared again."""
    return _code(error) != _CHANGED


def _code(error: PadsCdcError) -> str:
    return getattr(error.__cause__, "pgcode", None) or ""
