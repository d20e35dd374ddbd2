r"""Finds the folders of mappings, and reads the texts and queries in them.

A line ``-- include: FILE`` in an .sql file, or ``\ir FILE`` as in psql, is replaced by another file, whose
path is relative to the including file. So several mappings can share a text. A copy of a bundled mapping
still finds the files that the bundled one includes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cdc.errors import ConfigurationError
from cdc.mapping import sql_text

_FILES = ("affects.toml", "queries.sql", "schema.sql", "setup.sql")
_INCLUDE = re.compile(r"^(?:-- include: |\\ir )(\S+)[ \t\r]*$", re.MULTILINE)


def read_queries(folder: Path) -> dict[str, str]:
    """Return the queries of a mapping's folder by name, in psycopg2's form. Reads no other file of the
    folder.

    Raises:
        ConfigurationError: queries.sql does not exist, or something in it is wrong.

    """
    queries = named_queries(folder / "queries.sql")
    return {name: sql_text.bind(query, name) for name, query in queries.items()}


def bundled() -> list[str]:
    """Return the names of the bundled mappings. Reads a folder."""
    return sorted(path.parent.name for path in _sql().glob("*/affects.toml"))


def server_queries() -> dict[str, str]:
    """Return the queries of ``sql/server.sql``, which need no mapping, in psycopg2's form."""
    queries = named_queries(_sql() / "server.sql")
    return {name: sql_text.bind(query) for name, query in queries.items()}


def reading_query(name: str) -> str:
    """Return a query of ``sql/read.sql``, in psycopg2's form. Reads of every mapping use these queries."""
    return sql_text.bind(named_queries(_sql() / "read.sql")[name])


def named_queries(path: Path) -> dict[str, str]:
    """Return the queries of a file by name, unchanged.

    Raises:
        ConfigurationError: the file cannot be read, or a line with a query's name is wrong.

    """
    try:
        return sql_text.named_queries(read_sql(path))
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _sql() -> Path:
    """Return the folder ``sql``: within the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "sql"
    return installed if installed.is_dir() else package.parent / "sql"


def folder_of(name_or_path: str) -> Path:
    """Return the folder of a bundled mapping by its name, or of any mapping by its path.

    Raises:
        ConfigurationError: there is no such mapping.

    """
    names = bundled()
    if name_or_path in names:
        return _sql() / name_or_path
    folder = Path(name_or_path).expanduser()
    try:
        found = folder.is_dir()
    except OSError as error:  # we may not enter a folder on the way
        raise ConfigurationError(f"MAPPING: {folder} cannot be read: {error.strerror}") from error
    if found:
        if not any((folder / file).exists() for file in _FILES):
            raise ConfigurationError(
                f"MAPPING: the folder {folder} is not a mapping: none of {', '.join(_FILES)} is in it;"
                f" choose {', '.join(names)}, or a folder with these files"
            )
        return folder.resolve()
    raise ConfigurationError(
        f"MAPPING: there is no mapping {name_or_path!r}: choose {', '.join(names)}, or a folder's path"
    )


def read_sql(path: Path) -> str:
    """Return the text of an .sql file, with each include line replaced by the included file's text.

    Raises:
        ConfigurationError: one of the files cannot be read.

    """

    def included(line: re.Match[str]) -> str:
        beside = path.parent / line[1]
        shared = Path(os.path.normpath(_sql() / path.parent.name / line[1]))
        return read_text(shared if shared.is_file() and not beside.exists() else beside)

    return _INCLUDE.sub(included, read_text(path))


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ConfigurationError: the file cannot be read.

    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"{path}: cannot be read: {reason}") from error
