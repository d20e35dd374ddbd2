"""The one place where the driver's errors become ours.

`translate` says whether waiting may help (`SourceError`, retried) or somebody has to change something
(`Refusal`, with what to type). While a connection is being made the driver gives no SQLSTATE, so the server's
words have to do there; elsewhere the SQLSTATE decides.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_USE = "55006"

_ABOUT_DATA = ("22", "23", "P0")
"""Classes of errors whose text quotes values: one may be an API key."""

_SHUTDOWN = {"57P01", "57P02", "57P03"}
"""The server is stopping or starting: our replication connection must go at once, or a fast stop waits for
it.
"""

_WAITING_HELPS = {
    "57014": ("cancelled", "a query was cancelled or took too long"),
    "55P03": ("locked", "somebody holds a lock on a table of the mapping"),
    "40P01": ("deadlock", "a query was cancelled to let somebody who locks tables of the mapping go on"),
    "40001": ("recovery_conflict", "a query was cancelled by recovery on the standby"),
    "53300": (
        "too_many_connections",
        "the server has no connection left for us (max_connections, max_wal_senders)",
    ),
    "57P01": ("shutdown", "the server ended our connection"),
    "57P02": ("shutdown", "the server crashed"),
    "57P03": ("shutdown", "the server is starting up or shutting down"),
}

_REFUSED_AT_CONNECT = (
    (r"password authentication failed for user (?P<what>\S+)", "check user and password in {setting}"),
    (r"no password supplied", "put a password into {setting}, or use a passfile"),
    (r"database (?P<what>\S+) does not exist", "correct the database name in {setting}"),
    (r"role (?P<what>\S+) does not exist", "correct the user in {setting}, or create the role"),
    (
        r"no pg_hba\.conf entry for (?P<what>replication connection|host)",
        "add to pg_hba.conf: host DATABASE USER ADDRESS scram-sha-256 (our database's name), and reload",
    ),
    (
        r"must be superuser or replication role to start walsender|permission denied to start WAL sender",
        "give the role the right: ALTER ROLE ... REPLICATION (on RDS: GRANT rds_replication TO ...)",
    ),
    (
        r"(?P<what>unsupported startup parameter: replication|.*pgbouncer.*)",
        "give the server's own address in {setting}: a pooler will do only in QUERY_CONNECTION_STRING",
    ),
)

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
"""What libpq says about a server that does not answer (in English: it is our process's language)."""


def translate(error: psycopg2.Error, setting: str) -> PadsCdcError:
    """Turn a driver's error into one of ours; ``setting`` names the connection string that it happened on.

    The result's text never holds the connection string: libpq's own text names host, port and user at most.
    """
    code = error.pgcode or ""
    text = _first_line(error)
    if code in _WAITING_HELPS:
        reason, what = _WAITING_HELPS[code]
        return SourceError(reason, f"{what} ({setting}): {text}")
    if code.startswith(_ABOUT_DATA):
        return SourceError(
            "query_failed", f"a query of the mapping fails on what is in a row ({setting}, {code})"
        )
    if code == _IN_USE:  # in any language of the server
        pid = re.search(r"PID (\d+)", text)
        return SlotHeld(
            f"{text}; stop the process that has it, or give this server a SLOT_NAME of its own",
            int(pid.group(1)) if pid else None,
        )
    if code:
        remedy = _remedy(code, text)
        return (
            Refusal(f"{text}; {remedy}")
            if remedy
            else SourceError("query_failed", f"{text} ({setting}, {code})")
        )
    return _not_connected(error, text, setting)


def is_shutdown(error: BaseException) -> bool:
    """Tell whether the server said that it is going down."""
    return isinstance(error, SourceError) and error.reason == "shutdown"


@contextmanager
def translated(setting: str) -> Iterator[None]:
    """Let only our own errors out of a block that talks to a server."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error, setting) from error


def _not_connected(error: psycopg2.Error, text: str, setting: str) -> PadsCdcError:
    for pattern, remedy in _REFUSED_AT_CONNECT:
        if re.search(pattern, str(error)):
            return Refusal(f"{text}; {remedy.format(setting=setting)}")
    if "too many clients" in text or "max_wal_senders" in text or "connection slots" in text:
        return SourceError(
            "too_many_connections", f"{text}; raise max_connections or max_wal_senders ({setting})"
        )
    if "starting up" in text or "shutting down" in text or "not yet accepting" in text:
        return SourceError("shutdown", f"{text} ({setting})")
    for pattern, remedy in _NOT_REACHED:
        if re.search(pattern, text, re.IGNORECASE):
            return SourceError("unreachable", f"{text} ({setting}); {remedy.format(setting=setting)}")
    return SourceError("unreachable", f"{text} ({setting})")


def _remedy(code: str, text: str) -> str | None:
    """Say what to type for an error that waiting does not mend; None if it may be mended by waiting."""
    match code:
        case "55000" if "wal_level" in text:
            return (
                "set wal_level = logical (managed services: rds.logical_replication or its like) and restart"
            )
        case "58P01" if "wal2json" in text:
            return (
                "install the plugin on the database server: Debian's package is postgresql-VERSION-wal2json"
            )
        case "42501" if "output_plugin" in text or "output plugin" in text or "wal2json" in text:
            return (
                "set output_plugin_libraries = 'pgoutput, test_decoding, wal2json' in postgresql.conf and"
                " reload (or ALTER ROLE ... SET output_plugin_libraries = ... by a superuser)"
            )
        case "42501" if "replication" in text.lower():
            return "ALTER ROLE ... REPLICATION (on RDS: GRANT rds_replication TO ...)"
        case "42501" if "row-level security" in text:
            return "let the role bypass it: ALTER ROLE ... BYPASSRLS; hidden rows would be taken for deletes"
        case "42501":
            return (
                "grant the right: GRANT USAGE ON SCHEMA ..., GRANT SELECT ON the mapping's tables TO our role"
            )
        case "42P01" | "3F000":
            return "create it, or correct MAPPING and DB_SCHEMA"
        case "42703":
            return "add the column, or correct MAPPING"
        case "53400":
            return "raise max_replication_slots and restart, or drop a slot that nobody uses"
        case _:
            return None


def _first_line(error: psycopg2.Error) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "no message from the libpq" in lines[0]:  # psycopg2's own words, which name a status of libpq's
        return "the connection was cut off, with no word from the server"
    # At connect libpq lists an attempt a line for each address: the last one that says FATAL, or the first.
    fatal = [line for line in lines if "FATAL:" in line]
    line = fatal[-1] if fatal else lines[0]
    return re.sub(r"^.*?(FATAL|ERROR):\s+", "", line)
