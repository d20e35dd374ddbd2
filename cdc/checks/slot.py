"""Checks our slot, the WAL that it retains, and the standby that it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.checks.finding import fail, good, warn
from cdc.replication import synchronous_standby as synchronous
from cdc.replication.own_slot import AUTO, PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Deployment, Finding

_MIB = 2**20
_LITTLE = 32 * _MIB
"""The size of two WAL files, in bytes. If max_slot_wal_keep_size is smaller, no allowed MAX_RETAINED_WAL is
below it.
"""
_LEAST_SAFE = 0.2
"""The check warns if less than this share of max_slot_wal_keep_size is left."""


def slot(site: Deployment) -> Iterator[Finding]:
    """Check the slot of our name."""
    state, name = site.slot, site.slot_name
    if state is None:
        yield good(f"the slot {name} does not exist yet: the server creates it when it first starts")
        yield from _waits(site)
        return
    if state.kind != "logical" or state.plugin not in (PLUGINS if site.plugin == AUTO else (site.plugin,)):
        yield fail(
            f"the slot {name} is not ours: it is {state.kind}, for the plugin {state.plugin or 'none'}",
            f"choose another SLOT_NAME, or PLUGIN={state.plugin}"
            if state.plugin in PLUGINS
            else "choose another SLOT_NAME",
        )
    elif state.database != site.server.database:
        yield fail(
            f"the slot {name} belongs to the database {state.database}, not to {site.server.database}",
            "choose another SLOT_NAME",
        )
    elif state.wal_status == "lost":
        yield warn(
            f"the slot {name} was invalidated; the server drops it, creates a new one and reads everything"
            " again",
            "see max_slot_wal_keep_size and standby",
        )
    elif state.wal_status == "unreserved":
        yield warn(
            f"the slot {name} is about to be invalidated at the next checkpoint",
            "start the server now, or raise max_slot_wal_keep_size",
        )
    elif state.active_pid is not None:
        yield good(f"the slot {name} is being read by process {state.active_pid}")
    else:
        yield good(f"the slot {name} exists, and no process reads it")


def retained_wal(site: Deployment) -> Iterator[Finding]:
    """Check how much WAL the slot retains, and that our limit is below the size at which the slot is lost."""
    state, most, keep = site.slot, site.max_retained_wal, site.server.keep_bytes
    retained = state.retained_bytes if state else None
    text = f"the slot retains {_size(retained)}" if retained is not None else "no WAL is retained"
    if keep is not None and most >= keep:
        ours = f"MAX_RETAINED_WAL={_size(keep // 2)}, or " if keep >= _LITTLE else ""
        yield warn(
            f"MAX_RETAINED_WAL ({_size(most)}) is not below max_slot_wal_keep_size ({_size(keep)}): the slot"
            " would be lost before our server gives WAL up",
            f"{ours}ALTER SYSTEM SET max_slot_wal_keep_size = '{_size(most * 2)}'; SELECT pg_reload_conf();",
        )
    if retained is not None and retained > most:
        yield warn(
            f"{text}, more than MAX_RETAINED_WAL ({_size(most)})",
            "start the server, which lets go of it and reads everything again; if nobody will:"
            f" SELECT pg_drop_replication_slot('{site.slot_name}');",
        )
    elif state and keep and state.safe_wal_bytes is not None and state.safe_wal_bytes < keep * _LEAST_SAFE:
        yield warn(
            f"{text}, and is lost after another {_size(max(0, state.safe_wal_bytes))}",
            "start the server, or find out why it falls behind",
        )
    elif keep is None or most < keep:
        yield good(text)


def max_slot_wal_keep_size(site: Deployment) -> Iterator[Finding]:
    """Check the server's own limit: without it, the slot fills the disk while no process reads it."""
    keep, timeout = site.server.keep_bytes, site.server.idle_timeout
    if keep is None:
        yield warn(
            "max_slot_wal_keep_size is -1: a slot that nobody reads retains WAL until the disk is full",
            f"ALTER SYSTEM SET max_slot_wal_keep_size = '{_size(site.max_retained_wal * 4)}';"
            " SELECT pg_reload_conf(); (more than MAX_RETAINED_WAL, less than the disk has)",
        )
    else:
        yield good(f"max_slot_wal_keep_size is {_size(keep)}")
    if timeout is not None:
        yield warn(
            f"idle_replication_slot_timeout is {timeout}: a slot that is not read for that long is lost",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )


def standby(site: Deployment) -> Iterator[Finding]:
    """Check the settings that keep a VACUUM on the primary from invalidating a slot on its standby."""
    server = site.server
    if not server.in_recovery:
        yield good("the slot is on a primary")
        return
    if not server.feedback:
        yield fail(
            "hot_standby_feedback is off: a vacuum of the catalog on the primary invalidates the slot",
            "on this standby: ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
        )
    if not server.primary_slot:
        yield warn(
            "primary_slot_name is empty: the primary forgets this standby's feedback whenever it is away",
            "on the primary: SELECT pg_create_physical_replication_slot('standby_1'); on this standby:"
            " ALTER SYSTEM SET primary_slot_name = 'standby_1'; SELECT pg_reload_conf();",
        )
    if server.feedback and server.primary_slot:
        yield good(f"feedback is on, through the primary's slot {server.primary_slot}")


def synchronous_standby(site: Deployment) -> Iterator[Finding]:
    """Check whether commits would wait for us. If so, a server does not read the slot."""
    text = synchronous.refusal(synchronous.Sender.of(site.ask("Sender")))
    if text is None:
        yield good("no commit waits for us")
    else:
        fault, _, remedy = text.partition("; ")
        yield fail(fault, remedy)


def _waits(site: Deployment) -> Iterator[Finding]:
    """Find the transactions that the creation of the slot would wait for."""
    if site.server.in_recovery:
        yield warn(
            "the creation of a slot on a standby waits until the primary logs its running transactions, which"
            " takes long while the primary is idle",
            "when the server starts for the first time, on the primary: SELECT pg_log_standby_snapshot();",
        )
        return
    waited_for = site.ask("OldestTransactions")
    if waited_for:
        yield warn(
            f"the creation of the slot waits for {', '.join(whom for whom, _ in waited_for)}",
            f"let them end, or end them: {' '.join(remedy for _, remedy in waited_for)}",
        )


def _size(number: int) -> str:
    """Write a number of bytes in the form that Postgres' settings and ours have."""
    for unit, of in (("GB", 2**30), ("MB", _MIB)):
        if number >= of and number % of == 0:
            return f"{number // of}{unit}"
    return f"{-(-number // _MIB)}MB"
