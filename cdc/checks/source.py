"""Checks whether we may connect, replicate and decode on the slot's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.checks.finding import fail, good, warn
from cdc.errors import PadsCdcError
from cdc.mapping.sql_text import quote_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Deployment, Finding, Site

_OLDEST = 15
_OLDEST_DECODING_STANDBY = 16


def connection(site: Site) -> Iterator[Finding]:
    """Connect to both servers."""
    server, reader = site.server, site.reader
    yield good(f"connected to the database {server.database} as {server.role}")
    if reader.in_recovery != server.in_recovery or reader.database != server.database:
        yield good(
            f"the mapping is read from the database {reader.database}, "
            + ("on a standby" if reader.in_recovery else "on a primary")
        )


def server_version(site: Site) -> Iterator[Finding]:
    """Check the version: decoding on a standby needs a newer one."""
    server = site.server
    if server.major < _OLDEST:
        yield fail(f"PostgreSQL {server.major} is too old", f"upgrade the server to {_OLDEST} or later")
    elif server.in_recovery and server.major < _OLDEST_DECODING_STANDBY:
        yield fail(
            f"this server is a standby, and PostgreSQL {server.major} cannot decode on one",
            "give the primary in POSTGRES_CONNECTION_STRING (and the standby, if you like, in"
            f" QUERY_CONNECTION_STRING), or upgrade to {_OLDEST_DECODING_STANDBY} or later",
        )
    else:
        yield good(f"PostgreSQL {server.major}" + (", a standby" if server.in_recovery else ""))


def wal_level(site: Site) -> Iterator[Finding]:
    """Check wal_level. On a standby, the primary's counts as well: see `plugin`."""
    level = site.server.wal_level
    if level == "logical":
        yield good("wal_level is logical")
    else:
        yield fail(
            f"wal_level is {level}",
            "set wal_level = logical in postgresql.conf (ALTER SYSTEM SET wal_level = 'logical'; managed"
            " services: rds.logical_replication = 1, cloudsql.logical_decoding = on, or their like) and"
            " restart the server",
        )


def replication_right(site: Site) -> Iterator[Finding]:
    """Open a replication connection. Only an attempt shows whether the role and pg_hba.conf allow one."""
    try:
        site.source.connect_replication().close()
    except PadsCdcError as error:
        [(_, may_replicate, *_)] = site.ask("Role", role=site.server.role, schema=site.schema, tables=[])
        if may_replicate:
            raise
        text = str(error).partition("; ")[0]
        role = quote_name(site.server.role)
        yield fail(
            f"the role {site.server.role} may not replicate: {text}",
            f"GRANT rds_replication TO {role};" if site.server.on_rds else f"ALTER ROLE {role} REPLICATION;",
        )
    else:
        yield good(f"{site.server.role} may replicate")


def role(site: Site) -> Iterator[Finding]:
    """Check that the role has no more rights than it needs."""
    server = site.server
    writable = [table.name for table in site.tables if table.writable]
    least = "run pads-cdc setup, and connect as the role that it makes"
    if server.superuser:
        yield warn(f"{server.role} is a superuser: a stolen connection string may do anything", least)
    elif writable:
        yield warn(f"{server.role} may write to {', '.join(writable)}: reading is enough", least)
    else:
        yield good(f"{server.role} may only read")


def query_server(site: Site) -> Iterator[Finding]:
    """Check that both servers have the same database. Otherwise rows of another database would be served."""
    [(ours,)] = site.ask("Identity")
    [(theirs,)] = site.read("Identity")
    if ours == theirs and site.server.database == site.reader.database:
        yield good("slot and mapping are in the same database of the same cluster")
    else:
        yield fail(
            f"the slot is in the database {site.server.database} of the cluster {ours}, the mapping in"
            f" {site.reader.database} of {theirs}",
            "give the same server or a standby of it, and the same database, in QUERY_CONNECTION_STRING",
        )


def replication_slots(site: Deployment) -> Iterator[Finding]:
    """Check that a slot is free, unless ours exists."""
    most, used = site.server.slots_most, site.server.slots_used
    text = f"{used} of {most} replication slots are used"
    if used < most or site.slot is not None:
        yield good(text)
    else:
        yield fail(
            f"{text}, and {site.slot_name} is not one of them",
            f"ALTER SYSTEM SET max_replication_slots = {most + 4}; and restart the server, or drop a slot"
            " that nobody uses",
        )


def wal_senders(site: Deployment) -> Iterator[Finding]:
    """Check that a WAL sender is free, unless a WAL sender already reads our slot."""
    most, used = site.server.senders_most, site.server.senders_used
    text = f"{used} of {most} WAL senders are busy"
    if used < most or (site.slot is not None and site.slot.active_pid is not None):
        yield good(text)
    else:
        yield fail(
            text, f"ALTER SYSTEM SET max_wal_senders = {most + 4}; and restart the server (standbys first)"
        )
