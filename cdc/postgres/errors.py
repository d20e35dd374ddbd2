"""Translates the driver's errors into ours. No other module does so.

`translate` and `not_connected` decide whether waiting may help (`SourceError`, which is retried) or a person
has to change something (`Refusal`, with a remedy to type). They look at the SQLSTATE, and never at the
server's text, whose language varies. If one SQLSTATE has several causes, they look at names that are never
translated: the names of settings, files, and functions in the server's source.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

import psycopg2

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError
from cdc.mapping.sql_text import quote_name
from cdc.postgres.refused import LET_IN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cdc.postgres.refused import Refused

_IN_USE = "55006"

ABOUT_A_ROW: Final = "about_a_row"
"""The reason of an error that was caused by a key, or by a value of a row."""

LOCKED: Final = "locked"
"""The reason of an error after a lock was waited for in vain."""

_FAILED: Final = "query_failed"

_OF_THE_STATEMENT = frozenset({ABOUT_A_ROW, _FAILED})

_ABOUT_DATA = ("22", "23", "P0")
"""Classes of SQLSTATEs whose error texts quote values, which may be API keys."""

_WAITING_HELPS = {
    "57014": ("cancelled", "a query was cancelled or took too long"),
    "55P03": (LOCKED, "another session holds a lock on a table of the mapping"),
    "40P01": (
        "deadlock",
        "a query was cancelled so that a session that locks the mapping's tables can continue",
    ),
    "40001": ("recovery_conflict", "a query was cancelled by recovery on the standby"),
    "53300": (
        "too_many_connections",
        "the server has no connection left for us (max_connections, max_wal_senders)",
    ),
    "57P01": ("shutdown", "the server ended our connection"),
    "57P02": ("shutdown", "the server crashed"),
    "57P03": ("shutdown", "the server is starting up or shutting down"),
}

_NO_SUCH_USER = "28000"
_NO_RIGHT = "42501"
_NO_CONNECT = "CheckMyDatabase"
"""The function in the server's source that detects that the privilege CONNECT is missing, or that the
database's connection limit is reached.
"""
_FULL_ROLE = "InitializeSessionUserId"
"""The function in the server's source that detects that the role's connection limit is reached."""
_SETS = ("call_", "set_config")
"""Prefixes of the functions in the server's source that refuse a setting in a connection string's options."""
_FROM_A_POOLER = {"08P01", "0A000"}
"""The SQLSTATEs with which a pooler refuses requests that it does not support. A server does not use them so.
"""

_REFUSED_AT_CONNECT = {
    "28P01": "check user and password in {setting}",
    "3D000": "correct the database name in {setting}",
    "22023": "correct the options in {setting}",
    "42704": "correct the options in {setting}",
    "55000": "ALTER DATABASE {database} ALLOW_CONNECTIONS true;",
}
"""Remedies for refused connections that a retry does not cure, by SQLSTATE."""

_NOT_REACHED = (
    (
        r"connection refused",
        "start the server there, or correct host and port in {setting} (elsewhere: its listen_addresses)",
    ),
    (r"could not translate host name", "correct the host in {setting}"),
    (r"invalid port number", "correct the port in {setting}: 1 to 65535"),
    (
        r"timeout expired|timed out|no route|unreachable",
        "correct the host in {setting}, or let us through to it",
    ),
    (r"no such file or directory", "give host=... in {setting}, or start the server on this machine"),
    (r"server does not support SSL", "give sslmode=prefer in {setting}, or turn ssl on at the server"),
    (r"certificate verify failed|root certificate file", "correct sslrootcert or sslmode in {setting}"),
)
"""Patterns of libpq's own texts about a server that does not answer, and their remedies. libpq writes English
whatever the server's language is, because our process has set no locale.
"""


PLUGIN_REMEDY = (
    "set output_plugin_libraries = 'pgoutput, test_decoding, wal2json' in postgresql.conf and reload; or, as"
    " a superuser: ALTER ROLE {role} SET output_plugin_libraries = pgoutput, test_decoding, wal2json;"
)
"""A remedy that allows the server to load our plugin, for all roles or for one role (quoted)."""

_OUTSIDE = "name its schema in the mapping's query, or add a cast: only pg_catalog is searched"
_ONE_TYPE = "give the columns that are compared one type, or cast them in a mapping of your own"

_REMEDIES = (
    (
        "55000",
        "wal_level",
        "set wal_level = logical (managed services: rds.logical_replication or its like) and restart",
    ),
    (
        "58P01",
        "wal2json",
        "install the plugin on the database server: Debian's package is postgresql-VERSION-wal2json",
    ),
    ("42501", "StartupDecodingContext", PLUGIN_REMEDY),
    (
        "42501",
        "CheckSlotPermissions",
        "ALTER ROLE {role} REPLICATION; (on RDS: GRANT rds_replication TO {role};)",
    ),
    ("42501", "check_enable_rls", "ALTER ROLE {role} BYPASSRLS; (hidden rows would be taken for deletes)"),
    ("42501", "", "run pads-cdc setup, which grants what is missing, or pads-cdc check, which names it"),
    ("42P01", "", "create it, name it in `reads` of affects.toml, or correct MAPPING and DB_SCHEMA"),
    ("42704", "", _OUTSIDE),
    ("42883", "op_error", f"{_ONE_TYPE}; or {_OUTSIDE}"),
    ("42883", "", _OUTSIDE),
    ("55000", "ApplyRetrieveRule", "a view runs functions with our rights: put its query into the mapping"),
    (
        "55000",
        "get_relation_info",
        "rows of other servers are not read: detach that partition",
    ),
    ("3F000", "", "create it, or correct MAPPING and DB_SCHEMA"),
    ("42703", "", "add the column, or correct MAPPING"),
    *((code, "", _ONE_TYPE) for code in ("42804", "42846", "42P18", "42P21", "42P22")),
    (
        "53400",
        "temp_file_limit",
        "ALTER ROLE {role} SET temp_file_limit = -1; (as a superuser), or raise it for everybody",
    ),
    ("53400", "", "raise max_replication_slots and restart, or drop a slot that nobody uses"),
)
"""Remedies for errors that a retry does not cure: by SQLSTATE, and by a name that is never translated (a
setting, a library, or a function in the server's source). The first match is used.
"""


def translate(error: psycopg2.Error, setting: str) -> PadsCdcError:
    """Turn a driver's error into one of ours. ``setting`` is the name of the setting with the connection
    string.

    The result's text never contains the connection string: libpq's own text names at most the host, the port
    and the user.
    """
    code = error.pgcode or ""
    text = _first_line(error)
    if code in _WAITING_HELPS:
        reason, what = _WAITING_HELPS[code]
        return SourceError(reason, f"{what} ({setting}): {text}")
    if code.startswith(_ABOUT_DATA):
        return SourceError(
            ABOUT_A_ROW, f"a query of the mapping fails because of a value in a row ({setting}, {code})"
        )
    if code == _IN_USE:  # the code is the same in every language
        pid = re.search(r"PID\s*(\d+)", text)
        return SlotHeld(
            f"{text}; stop the process that has it, or give this server a SLOT_NAME of its own",
            int(pid.group(1)) if pid else None,
        )
    if code:
        remedy = _remedy(error, code, text)
        return Refusal(f"{text}; {remedy}") if remedy else SourceError(_FAILED, f"{text} ({setting}, {code})")
    return not_connected(error, None, setting, {}, decoding=False)


def is_lasting(error: PadsCdcError) -> bool:
    """Return whether a statement that failed with this error would fail again. After a lock or an outage it
    would not.
    """
    return not isinstance(error, SourceError) or error.reason in _OF_THE_STATEMENT


def is_shutdown(error: BaseException) -> bool:
    """Return whether the server is stopping or starting. If so, our replication connection must be closed at
    once, since a fast shutdown of the server waits for it.
    """
    return isinstance(error, SourceError) and error.reason == "shutdown"


@contextmanager
def translated(setting: str) -> Iterator[None]:
    """Translate the driver's errors in a block."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error, setting) from error


def not_connected(
    error: psycopg2.Error, refused: Refused | None, setting: str, given: Mapping[str, str], *, decoding: bool
) -> PadsCdcError:
    """Turn a driver's error at connect into one of ours.

    ``refused`` is the server's answer, or None if it did not answer. ``given`` are the connection's
    parameters. ``decoding`` says whether a replication connection was requested.
    """
    if refused is None or refused is LET_IN:
        text = _first_line(error)
        if "no password supplied" in text:
            return Refusal(f"{text}; put a password into {setting}, or use a passfile")
        for pattern, remedy in _NOT_REACHED:
            if re.search(pattern, text, re.IGNORECASE):
                return SourceError("unreachable", f"{text} ({setting}); {remedy.format(setting=setting)}")
        return SourceError("unreachable", f"{text} ({setting})")
    if refused.code == "53300":
        return SourceError("too_many_connections", f"{refused.text}; {_more(refused, given)} ({setting})")
    if refused.code in _WAITING_HELPS:
        return SourceError(_WAITING_HELPS[refused.code][0], f"{refused.text} ({setting})")
    to_type = _refused_remedy(refused, setting, given, decoding=decoding)
    if to_type is None:
        return SourceError("unreachable", f"{refused.text} ({setting}, {refused.code})")
    return Refusal(f"{refused.text}; {to_type}")


def _refused_remedy(
    refused: Refused, setting: str, given: Mapping[str, str], *, decoding: bool
) -> str | None:
    """Return the remedy for a refused connection; None if a retry may help."""
    role, database = _who_and_where(given)
    if refused.code in _REFUSED_AT_CONNECT:
        return _REFUSED_AT_CONNECT[refused.code].format(setting=setting, database=database)
    if refused.code == _NO_SUCH_USER:
        if "pg_hba.conf" in refused.text:
            return f"add to pg_hba.conf, and reload: {hba_line(refused.text, given)}"
        return f"correct the user in {setting}, or create the role with LOGIN"
    if refused.code == _NO_RIGHT and refused.function.startswith(_SETS):
        return f"correct the options in {setting}"
    if refused.code == _NO_RIGHT and decoding and refused.function != _NO_CONNECT:
        return f"ALTER ROLE {role} REPLICATION; (on RDS: GRANT rds_replication TO {role};)"
    if refused.code == _NO_RIGHT:
        return f"GRANT CONNECT ON DATABASE {database} TO {role};"
    if refused.code == "0A000" and "UTF8" in refused.text:  # only MULE_INTERNAL has no conversion
        return "copy the database (pg_dump) into one with the encoding UTF8"
    if refused.code in _FROM_A_POOLER and decoding:
        return (
            f"give the server's own address in {setting}: most poolers, such as PgBouncer before 1.23, can be"
            " used only in QUERY_CONNECTION_STRING"
        )
    return None


def _more(refused: Refused, given: Mapping[str, str]) -> str:
    """Return the remedy if no connection is left.

    The limit may be that of the server, the role or the database.
    """
    role, database = _who_and_where(given)
    if refused.function == _FULL_ROLE:
        return f"ALTER ROLE {role} CONNECTION LIMIT -1;"
    if refused.function == _NO_CONNECT:
        return f"ALTER DATABASE {database} CONNECTION LIMIT -1;"
    return "raise max_connections or max_wal_senders"


def _who_and_where(given: Mapping[str, str]) -> tuple[str, str]:
    """Return the role and the database of a connection, quoted."""
    role, database = (quote_name(given[name]) if name in given else "..." for name in ("user", "dbname"))
    return role, database


def hba_line(text: str, given: Mapping[str, str]) -> str:
    """Return the line of pg_hba.conf that admits us.

    ``text`` is the server's error, which names our address.
    """
    names = " ".join(hba_name(given.get(name, name.upper())) for name in ("dbname", "user"))
    if "[local]" in text:
        return f"local {names} scram-sha-256"
    address = "OUR_ADDRESS"
    for word in re.findall(r"[0-9A-Fa-f.:]+", text):
        with suppress(ValueError):
            address = str(ip_network(word))
            break
    return f"host {names} {address} scram-sha-256"


def hba_name(name: str) -> str:
    """Return the name of a database or role for pg_hba.conf, quoted if it would have a special meaning."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    keyword = name in {"all", "sameuser", "samerole", "samegroup", "replication"}
    return name if plain and not keyword else f'"{name}"'


def _remedy(error: psycopg2.Error, code: str, text: str) -> str | None:
    """Return the remedy for an error that a retry does not cure; None if a retry may help."""
    for of, mark, remedy in _REMEDIES:
        if of == code and (mark in text or mark == error.diag.source_function):
            return remedy.format(role=_role(error))
    return None


def _role(error: psycopg2.Error) -> str:
    """Return the name of our role, quoted."""
    name = error.cursor.connection.info.user if error.cursor is not None else None
    return quote_name(name) if name else "..."


def _first_line(error: psycopg2.Error) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "no message from the libpq" in lines[0]:  # psycopg2's own words, which name a status of libpq's
        return "the connection was cut off without a message from the server"
    # At connect libpq prints a line for each address. The last line with FATAL is used, or else the first
    # line.
    fatal = [line for line in lines if "FATAL:" in line]
    line = fatal[-1] if fatal else lines[0]
    return re.sub(r"^.*?(FATAL|ERROR):\s+", "", line)
