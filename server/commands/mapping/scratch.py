"""A throw-away database for a mapping's folder, made from its schema.sql. The rows are from sample.sql or
made up.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

import psycopg2

from cdc.errors import ConfigurationError, PadsCdcError
from cdc.mapping import sql_text
from cdc.mapping.folder import read_sql, server_queries
from cdc.mapping.lexer import script
from cdc.mapping.sql_text import quote_name
from server.commands.demo.cluster import ephemeral_cluster
from server.commands.demo.programs import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.mapping.mapping import Mapping

_ROWS: Final = 8
"""Number of rows that are made up for each table. All columns of a row contain the row's number, so rows with
the same number are joined, whichever columns join them. There is one row for each way in which three tables
can have a value or NULL.
"""
_TRUE: Final = (2, 5)
"""The numbers of the rows whose booleans are true. In each table, at least one of these rows has a value."""
_LEFT_OUT: Final = re.compile(
    r"GRANT\b|REVOKE\b|ALTER\s.*\sOWNER\s+TO\s|SET\s+transaction_timeout\b", re.IGNORECASE | re.DOTALL
)
"""Statements of a dump that are skipped: they need roles that do not exist here, or a newer server."""
_REFUSED: Final = re.compile(r"\\(?:i|ir|include|include_relative|copy|g\w*|if|elif|else|endif)\b")
"""psql commands that are refused, since they affect what is executed. Other psql commands concern only psql
itself.
"""


@contextmanager
def server() -> Iterator[str]:
    """Start a PostgreSQL server, which takes 2 s, and remove it at the end. Yields its connection string.

    Raises:
        PadsCdcError: the server cannot be started.

    """
    try:
        with ephemeral_cluster() as cluster:
            yield cluster.url()
    except ClusterError as error:
        raise PadsCdcError(f"{error}; or give a database to test on: --database") from error


def fill(url: str, folder: Path, schema: str) -> None:
    """Create the folder's tables in an empty database, and put rows into them.

    Raises:
        ConfigurationError: a file does not exist, or a statement in it fails.

    """
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_name(schema)}")
            cursor.execute(f"SET search_path = {quote_name(schema)}, pg_catalog")
            _run(cursor, folder / "schema.sql")
            cursor.execute(f"SET search_path = {quote_name(schema)}, pg_catalog")
            if (folder / "sample.sql").exists():
                _run(cursor, folder / "sample.sql")
            else:
                _make_up_rows(cursor, folder, schema)


def set_up(url: str, mapping: Mapping, schema: str) -> None:
    """Run the mapping's setup.sql as ``psql`` would, with our own role in place of the service's.

    Raises:
        ConfigurationError: a statement fails.

    """
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in mapping.setup_statements(schema, connection.info.user):
                _execute(cursor, statement, mapping.folder / "setup.sql")


def _run(cursor: Cursor, path: Path) -> None:
    """Run a script as psql would, with each statement in a transaction of its own."""
    for statement in script(read_sql(path)):
        if statement.command is not None and _REFUSED.match(statement.command):
            raise ConfigurationError(
                f"{path}: `{statement.command}` is a command of psql, which does not run this file: write its"
                " effect as SQL, and another file as `\\ir FILE` at the start of a line"
            )
        if statement.text and not _LEFT_OUT.match(statement.text):
            _execute(cursor, statement.text, path, statement.data)


def _execute(cursor: Cursor, statement: str, path: Path, data: str | None = None) -> None:
    try:
        if data is None:
            cursor.execute(statement)
        else:
            cursor.copy_expert(statement, StringIO(data))
    except psycopg2.Error as error:
        begins = " ".join(statement.split())[:60]
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{path}: the statement `{begins}...` fails: {reason}") from error


def _make_up_rows(cursor: Cursor, folder: Path, schema: str) -> None:
    """Insert `_ROWS` rows into every table of schema.sql."""
    tables = list(sql_text.tables(read_sql(folder / "schema.sql")))
    cursor.execute(server_queries()["Definitions"], {"schema": schema, "tables": tables})
    columns: dict[str, list[tuple[Any, ...]]] = {}
    for table, *column in cursor.fetchall():
        columns.setdefault(table, []).append(tuple(column))
    # This switches off foreign keys and triggers, so the rows can be inserted in any order.
    cursor.execute("SET session_replication_role = replica")
    for place, table in enumerate(tables):
        for number in range(1, _ROWS + 1):
            bare = bool(number >> place % 3 & 1)
            values = {
                name: value for name, *of in columns.get(table, ()) if (value := _value(of, number, bare))
            }
            names = ", ".join(map(quote_name, values))
            name = f"{quote_name(schema)}.{quote_name(table)}"
            insert = (
                f"INSERT INTO {name} ({names}) OVERRIDING SYSTEM VALUE VALUES ({', '.join(values.values())})"
                " ON CONFLICT DO NOTHING"  # a key of an enum has fewer values than there are rows
            )
            try:
                cursor.execute(insert)
            except psycopg2.Error as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigurationError(
                    f"{folder / 'sample.sql'}: is not there, and no rows can be made up for {table}"
                    f" ({reason}); write INSERT statements into it, with rows of which Endpoints finds some"
                ) from error
    cursor.execute("RESET session_replication_role")


def _value(column: list[Any], number: int, bare: bool) -> str:
    """Return SQL for a column's value in the row with this number; empty if the column is left out.

    Dates that may be NULL are left out, because they usually mark rows as deleted or inactive. A ``bare`` row
    contains only the values that may not be NULL.
    """
    type_name, category, _, not_null, generated, _, computed, labels, linking = column
    constant = computed is not None and "(" not in computed
    if generated or constant or (not not_null and not linking and (category == "D" or bare)):
        return ""
    texts = {
        "E": labels[number % len(labels)] if labels else "",
        "N": str(number),
        "S": str(number),
        "A": "{}",
        "I": f"192.0.2.{number}",
        "T": f"{number} days",
        "B": "t" if number in _TRUE else "f",
        "D": f"2001-01-0{number}",
    }
    by_name = {
        "uuid": f"00000000-0000-4000-8000-00000000000{number}",
        "json": "{}",
        "jsonb": "{}",
        "bytea": f"\\x0{number}",
    }
    text = by_name.get(type_name, texts.get(category))
    return "" if text is None else f"'{text}'"
