"""A Postgres connection string, given as a value or as the name of a file. Its repr does not contain the
text.

Files are read again at each use, so that a rotated password needs no restart.
"""

from __future__ import annotations

import errno
import re
import stat
import threading
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import psycopg2
from psycopg2.extensions import parse_dsn

from cdc.errors import ConfigurationError

_URL_SCHEMES: Final = ("postgres://", "postgresql://")
_INSTEAD: Final = {
    "schema": "take it out, and set DB_SCHEMA",
    "currentSchema": "take it out, and set DB_SCHEMA",
    "pgbouncer": "take it out: poolers are recognized, and may be named in QUERY_CONNECTION_STRING",
}
"""Remedies for common parameters of other drivers (Prisma, JDBC)."""
FORMS: Final = "postgresql://USER:PASSWORD@HOST:5432/DATABASE, or host=... dbname=... user=..."


class ConnectionString:
    """A connection string. Only ``read()`` and ``secrets()`` reveal its text."""

    def __init__(self, name: str, *, value: str | None = None, file: str | None = None) -> None:
        """Take the setting's name, for messages, and exactly one of ``value`` and ``file``."""
        self._name = name
        self._value = value
        self._file = file
        self._lock = threading.Lock()
        self._read: set[str] = set()

    def __repr__(self) -> str:
        return f"<ConnectionString {self._name}{'_FILE' if self._file else ''}>"

    @property
    def setting(self) -> str:
        """The name of the given setting, for messages. It ends in ``_FILE`` if a file was given."""
        return f"{self._name}_FILE" if self._file is not None else self._name

    def read(self) -> str:
        """Return the current connection string. If it is in a file, this reads the file.

        Raises:
            ConfigurationError: it cannot be read or is malformed. The message contains no part of it.

        """
        if self._file is not None and self._value is not None:
            raise ConfigurationError(
                f"{self._name}: also given as {self._name}_FILE; give exactly one of the two"
            )
        text = (self._from_file() if self._file is not None else self._value or "").strip()
        with self._lock:
            self._read |= _parts(text)
        fault = _fault(text)
        if fault is not None:
            where = (
                f"{self._name}_FILE: the file's content"
                if self._file is not None
                else f"{self._name}: the value"
            )
            raise ConfigurationError(f"{where} {fault}")
        return text

    def secrets(self) -> frozenset[str]:
        """Return every text that must not be shown: each string ever read, and its password, plain and
        quoted.
        """
        with self._lock:
            return frozenset(self._read)

    def _from_file(self) -> str:
        assert self._file is not None  # noqa: S101 (for the type checker; the caller has just looked)
        try:
            return _content(Path(self._file))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            # People sometimes give the connection string itself here, so only a text that is surely a path is
            # shown.
            shown = "the file" if "=" in self._file or "://" in self._file else repr(self._file)
            raise ConfigurationError(
                f"{self._name}_FILE: cannot read {shown} ({why}); "
                "give the path of a file that holds the connection string"
            ) from None


def _content(path: Path) -> str:
    if stat.S_ISREG(path.stat().st_mode) or path.is_dir():
        return path.read_text(encoding="utf-8")  # for a folder this raises a clear error
    # A pipe could block, and would return its content only once. A device may never end.
    raise OSError(errno.EINVAL, "a pipe or a device: it is read again at each connection")


def _fault(text: str) -> str | None:
    """Return the fault of a connection string; None if it has none.

    The text quotes only the name of a parameter, because the fault may be inside the password.
    """
    if not text:
        return f"is empty; give {FORMS}"
    try:
        fields = parse_dsn(text)
    except (psycopg2.Error, ValueError) as error:  # ValueError: escapes that are not UTF-8, a NUL
        foreign = _foreign_parameter(text, str(error))
        if foreign is not None:
            remedy = _INSTEAD.get(foreign, "take it out")
            return f"has the parameter {foreign}, which Postgres does not know; {remedy}"
        return f"is not a connection string that Postgres understands; give {FORMS}"
    if text.startswith(_URL_SCHEMES) and any("@" in fields.get(part, "") for part in ("host", "dbname")):
        # libpq would look for a host called "word@host" and quote a piece of the password in its error.
        return "has a password with characters that a URL must escape; write @ as %40, / as %2F, : as %3A"
    if any(port and not port.isdigit() for port in fields.get("port", "").split(",")):
        return f"has a port that is not a number (a / in a password is written %2F); give {FORMS}"
    return None


def _foreign_parameter(text: str, said: str) -> str | None:
    """Return the name of the parameter that libpq refuses.

    Returns None if libpq refuses something else, or if the name may be a part of the password. ``said`` is
    libpq's error, which quotes the name.
    """
    quoted = re.search(r'"([A-Za-z_]{1,40})"', said)
    if quoted is None:
        return None
    url, _, query = text.partition("?")
    authority = url.partition("://")[2].partition("/")[0]
    # A question mark in a password looks like the beginning of the parameters. In this case an @ follows. If
    # the password is itself a parameter, an ampersand in it looks like the beginning of the next parameter.
    safe = "@" not in query and "password" not in query.lower() and ("@" in authority or ":" not in authority)
    safe = safe and text.startswith(_URL_SCHEMES) and quoted[1] in query
    return quoted[1] if safe or quoted[1] in _INSTEAD else None


def _parts(text: str) -> set[str]:
    found = {text}
    try:
        password = parse_dsn(text).get("password", "")
        found |= {password, quote(password, safe="")}
        if text.startswith(_URL_SCHEMES):
            found.add(urlsplit(text).password or "")
    except (psycopg2.Error, ValueError):
        found.add(text.rpartition("@")[0].rpartition(":")[2])
    return found - {""}
