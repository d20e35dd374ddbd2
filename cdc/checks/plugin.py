"""Checks the output plugin, and the publication that pgoutput needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cdc.checks.finding import fail, good, warn
from cdc.mapping.sql_text import quote_name
from cdc.postgres.errors import PLUGIN_REMEDY
from cdc.replication import pgoutput, wal2json
from cdc.replication.own_slot import AUTO
from cdc.replication.publication_plan import Kind, repairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Deployment, Finding, Site
    from cdc.replication.publication_plan import Repair

_LISTED = re.compile(r'"([^"]*)"|([^\s,"]+)')
_NOT_READY = "55000"
_SETUP = "run pads-cdc setup, which makes the publication that pgoutput needs"


def output_plugin_libraries(site: Site) -> Iterator[Finding]:
    """Check the setting ``output_plugin_libraries``, which exists since PostgreSQL 15.19, 16.15, 17.11 and
    18.6.
    """
    listed = site.output_plugins
    slot = site.slot.plugin if site.slot is not None else None
    plugin = site.plugin if site.plugin != AUTO else slot or wal2json.NAME
    settled = site.plugin != AUTO or slot is not None
    if listed is None:
        shown = "" if site.server.superuser else f", or does not show it to {site.server.role}: see `plugin`"
        yield good(f"this server has no list of output plugins{shown}")
    elif plugin in _names(listed):
        yield good(f"{plugin} is in output_plugin_libraries")
    elif not settled and site.publication is not None and pgoutput.NAME in _names(listed):
        yield good(f"{pgoutput.NAME} is in output_plugin_libraries, {plugin} is not")
    else:
        yield fail(
            f"this server loads only listed output plugins, and {plugin} is not one of them",
            ("" if settled else f"{_SETUP}; or ") + _allow(site),
        )


def plugin(site: Deployment) -> Iterator[Finding]:
    """Make the server load the plugin. On a standby, this also shows whether the primary's wal_level is high
    enough.
    """
    chosen = site.chosen or wal2json.NAME
    trial = site.trial(chosen)
    if trial.loads:
        yield good(f"{chosen} can be loaded")
    elif trial.loads is None:
        yield _untried(site, chosen)
    elif trial.sqlstate == _NOT_READY and site.server.in_recovery:
        yield fail(
            "the primary's wal_level is not logical, so this standby cannot decode",
            "on the primary: ALTER SYSTEM SET wal_level = 'logical'; and restart it",
        )
    elif trial.error is not None:
        raise trial.error


def publication(site: Site) -> Iterator[Finding]:
    """Check that the publication has everything that the mapping needs. Postgres never sends the changes that
    a publication leaves out.
    """
    if site.chosen is None:
        why, _, remedy = str(site.trial(wal2json.NAME).error).partition("; ")
        yield fail(
            f"this server does not load {wal2json.NAME} ({why}), and for {pgoutput.NAME} there is no"
            f" publication {site.publication_name}",
            f"{_SETUP}; or {remedy or _allow(site)}",
        )
        return
    found = [*_repairs(site, Kind.MISSED, Kind.LATER)]
    for repair in found:
        where = "on the primary: " if site.server.in_recovery else ""
        judge = fail if repair.kind is Kind.MISSED else warn
        yield judge(repair.fault, where + repair.remedy)
    if not found:
        yield good(_fine(site, f"the publication {site.publication_name} has all that is needed"))


def refused_changes(site: Site) -> Iterator[Finding]:
    """Find tables whose updates Postgres refuses because of the publication."""
    found = [*_repairs(site, Kind.REFUSED)]
    for repair in found:
        yield fail(repair.fault, repair.remedy)
    if not found:
        yield good(_fine(site, "no UPDATE or DELETE is refused because of the publication"))


def published_columns(site: Site) -> Iterator[Finding]:
    """Find columns that the publication sends although we do not need them. They may contain API keys."""
    found = [*_repairs(site, Kind.MORE)]
    for repair in found:
        yield warn(repair.fault, repair.remedy)
    if not found:
        yield good(_fine(site, "only keys and replica identities enter the replication stream"))


def _repairs(site: Site, *kinds: Kind) -> Iterator[Repair]:
    if site.chosen == pgoutput.NAME:
        mapping = site.database.mapping
        for repair in repairs(site.publication_name, site.publication, site.tables, mapping):
            if repair.kind in kinds:
                yield repair


def _fine(site: Site, text: str) -> str:
    return text if site.chosen == pgoutput.NAME else f"not needed: the plugin is {site.chosen}"


def _untried(site: Deployment, chosen: str) -> Finding:
    """Return the finding if no slot is free for a trial. If our slot is being read, its plugin must be
    loaded.
    """
    if site.slot is not None and site.slot.active_pid is not None:
        return good(f"{chosen} is loaded: our slot is being read")
    return warn(
        f"whether {chosen} can be loaded cannot be tried: no slot is free",
        f"ALTER SYSTEM SET max_replication_slots = {site.server.slots_most + 4}; and restart the server",
    )


def _names(listed: str) -> set[str]:
    return {quoted or plain for quoted, plain in _LISTED.findall(listed)}


def _allow(site: Site) -> str:
    return PLUGIN_REMEDY.format(role=quote_name(site.service_role or site.server.role))
