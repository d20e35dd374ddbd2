"""Checks whether the database is ready for a server. `serve` and `pads-cdc check` use the same list.

A server runs the `NECESSARY` checks when it starts (`preflight`), and does not start if one of them fails.
The `FURTHER` checks find faults that would make a server lose events, fill a disk, or be slow. A server
starts in spite of them.
"""

from __future__ import annotations

from cdc.checks import dependencies, failover, identities, machine, mapping, plugin, slot, source, types
from cdc.checks.finding import Check, Deployment, Finding, Site, Verdict, run

__all__ = ["FURTHER", "NECESSARY", "Check", "Deployment", "Finding", "Site", "Verdict", "run"]

_CONNECTED = ("connection",)
_FOUND = ("connection", "tables")
_READABLE = (*_FOUND, "select", "row_security", "operators")
_TYPED = (*_READABLE, "statements")
_READ = (*_TYPED, "column_types")

NECESSARY: tuple[Check[Site], ...] = (
    Check("connection", source.connection),
    Check("server_version", source.server_version, _CONNECTED),
    Check("wal_level", source.wal_level, _CONNECTED),
    Check("output_plugin_libraries", plugin.output_plugin_libraries, _CONNECTED),
    Check("replication_right", source.replication_right, _CONNECTED),
    Check("slot_failover", failover.slot_failover, _CONNECTED),
    Check("query_server", source.query_server, _CONNECTED),
    Check("encoding", types.encoding, _CONNECTED),
    Check("tables", mapping.tables, _CONNECTED),
    Check("publication", plugin.publication, (*_FOUND, "wal_level", "replication_right")),
    Check("select", mapping.select, _FOUND),
    Check("row_security", mapping.row_security, _FOUND),
    Check("soft_delete", mapping.soft_delete, _FOUND),
    Check("operators", mapping.operators, _FOUND),
    Check("statements", mapping.statements, _READABLE),
    Check("reads", dependencies.reads, _TYPED),
    Check("column_types", types.column_types, _TYPED),
    Check("key_types", types.key_types, _TYPED),
)

FURTHER: tuple[Check[Deployment], ...] = (
    Check("role", source.role, _FOUND),
    Check("replication_slots", source.replication_slots, _CONNECTED),
    Check("wal_senders", source.wal_senders, (*_CONNECTED, "replication_right")),
    Check(
        "plugin",
        plugin.plugin,
        (*_CONNECTED, "server_version", "wal_level", "output_plugin_libraries", "replication_right"),
    ),
    Check("refused_changes", plugin.refused_changes, _FOUND),
    Check("published_columns", plugin.published_columns, (*_FOUND, "publication")),
    Check("slot", slot.slot, _CONNECTED),
    Check("synchronous_standby", slot.synchronous_standby, _CONNECTED),
    Check("retained_wal", slot.retained_wal, _CONNECTED),
    Check("max_slot_wal_keep_size", slot.max_slot_wal_keep_size, _CONNECTED),
    Check("standby", slot.standby, _CONNECTED),
    Check("failover", failover.failover, (*_CONNECTED, "slot_failover")),
    Check("replica_identity", identities.replica_identity, _CONNECTED),
    Check("unique_keys", identities.unique_keys, _CONNECTED),
    Check("indexes", identities.indexes, _TYPED),
    Check("legacy_triggers", identities.legacy_triggers, _CONNECTED),
    Check("limits", types.limits, _READ),
    Check("endpoints", mapping.endpoints, _READ),
    Check("odd_rows", mapping.odd_rows, _READ),
    Check("clock", machine.clock, _CONNECTED),
    Check("state_file", machine.state_file),
)
