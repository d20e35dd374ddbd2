"""Checks whether a standby will have our slot when it is promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.checks.finding import fail, good, warn
from cdc.mapping.sql_text import quote_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Deployment, Finding, Server, Site

_OLDEST = 17
_RELOAD = "SELECT pg_reload_conf();"


def slot_failover(site: Site) -> Iterator[Finding]:
    """Check whether the slot's server supports failover slots, if SLOT_FAILOVER asks for one."""
    if not site.failover:
        yield good("SLOT_FAILOVER is off: a promoted server gets a new slot, and everything is read again")
    elif site.server.major < _OLDEST:
        yield fail(
            f"SLOT_FAILOVER needs PostgreSQL {_OLDEST}, and the slot's server is {site.server.major}",
            f"SLOT_FAILOVER=false, or upgrade the server to {_OLDEST} or later",
        )
    else:
        yield good(f"PostgreSQL {site.server.major} has failover slots")


def failover(site: Deployment) -> Iterator[Finding]:
    """Check the primary, and each standby among the hosts of the connection string."""
    if not site.failover:
        yield good("not asked for")
        return
    servers = list(site.servers())
    if site.reader.in_recovery:
        servers.append(("the query server", site.reader))
    named = ",".join(one.waited_for for _, one in servers if not one.in_recovery)
    waited_for = {name.strip() for name in named.split(",")} - {""}
    standbys = [(host, one) for host, one in servers if one.in_recovery]
    kept = sorted(waited_for | {one.primary_slot for _, one in standbys} - {""})
    wait = f"ALTER SYSTEM SET synchronized_standby_slots = '{', '.join(kept)}'; {_RELOAD}"
    if not waited_for:
        yield warn(
            "synchronized_standby_slots is empty on the primary: if the primary is lost, gateways may have"
            " changes that the promoted standby lacks, and these are then taken back",
            f"on the primary: {wait}"
            if kept
            else "name in it, on the primary, the slots that the standbys have in primary_slot_name",
        )
    for number, (host, standby) in enumerate(standbys, 1):
        found = list(_judge(host, standby, f"standby_{number}"))
        if waited_for and standby.primary_slot and standby.primary_slot not in waited_for:
            found.append(
                warn(
                    f"synchronized_standby_slots does not name {standby.primary_slot}, the slot of {host}",
                    f"on the primary: {wait}",
                )
            )
        yield from found or [good(f"{host} keeps the slot for its promotion")]
    if not standbys:
        yield warn(
            "no standby is among the hosts given, so no check shows whether a standby keeps the slot",
            "name all hosts in POSTGRES_CONNECTION_STRING: host=a,b target_session_attrs=primary",
        )


def _judge(host: str, standby: Server, slot: str) -> Iterator[Finding]:
    """Check one standby. If it has no physical slot, ``slot`` is the name to suggest for one."""
    on = f"on {host}: ALTER SYSTEM SET"
    if not standby.syncs_slots:
        yield fail(f"sync_replication_slots is off on {host}", f"{on} sync_replication_slots = on; {_RELOAD}")
    if not standby.feedback:
        yield fail(f"hot_standby_feedback is off on {host}", f"{on} hot_standby_feedback = on; {_RELOAD}")
    if not standby.primary_slot:
        yield fail(
            f"primary_slot_name is empty on {host}",
            f"on the primary: SELECT pg_create_physical_replication_slot('{slot}');"
            f" {on} primary_slot_name = '{slot}'; {_RELOAD}",
        )
    if standby.names_database is None:
        yield warn(
            f"{standby.role} may not see whether primary_conninfo on {host} names a database",
            f"on the primary: GRANT pg_read_all_settings TO {quote_name(standby.role)}; or look on {host}:"
            " SHOW primary_conninfo;",
        )
    elif not standby.names_database:
        yield fail(
            f"primary_conninfo on {host} names no database, so the standby cannot copy the slots",
            f"on {host}: add dbname=postgres to the end of primary_conninfo, where it is set, and {_RELOAD}",
        )
