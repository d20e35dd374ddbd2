"""Checks replica identities, unique keys and indexes, and finds the triggers that PADS left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdc.checks.finding import fail, good, warn
from cdc.mapping.folder import bundled
from cdc.mapping.sql_text import quote_name
from cdc.mapping.tables import column_to_name, followed, keys, wanted_indexes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Finding, Site
    from cdc.mapping.tables import Index, Table


def replica_identity(site: Site) -> Iterator[Finding]:
    """Check each table's replica identity. If it has no columns, updates and deletes are lost. If it lacks
    the parent's key, the server has to remember the parent of each row.
    """
    mapping = site.database.mapping
    sound = True
    for table in followed(site.tables, mapping):
        parent = column_to_name(mapping, table.mapped)
        finding = _lost(table) or (_nameless(site, table, parent) if parent else None)
        finding = finding or _misses(
            site, table, [rule.column for rule in mapping.rules[table.mapped]], parent
        )
        if finding is not None:
            sound = False
            yield finding
    if sound:
        yield good("every update and delete in the WAL contains the keys that the mapping needs")


def unique_keys(site: Site) -> Iterator[Finding]:
    """Check that the keys in ``schema.sql`` are unique in the tables. Otherwise a join finds several rows."""
    mapping = site.database.mapping
    sound = True
    for mapped, columns in keys(mapping):
        affecting = {rule.column for rule in mapping.rules[mapped]}
        for table in (table for table in site.tables if table.top and table.mapped == mapped):
            unique = [index for index in table.indexes if index.unique and index.valid and index.plain]
            if any(set(index.columns) == columns for index in unique) or not columns <= set(table.columns):
                continue
            sound = False
            named = ", ".join(sorted(columns))
            text = f"{named} is not unique in {table.name}"
            remedy = (
                f"ALTER TABLE {table.name} ADD UNIQUE ({named}); after removing the duplicates that are found"
                f" by SELECT {named} FROM {table.name} GROUP BY {named} HAVING count(*) > 1;"
            )
            if columns <= affecting:
                yield fail(f"{text}: if several rows match, the one with the greatest id is used", remedy)
            else:
                yield warn(text, remedy)
    if sound:
        yield good("the keys of schema.sql are unique")


def indexes(site: Site) -> Iterator[Finding]:
    """Check that there are indexes for finding the applications of a changed parent."""
    sound = True
    for wanted in wanted_indexes(site.database.mapping):
        for table in wanted.lacked_by(site.tables):
            sound = False
            name, create = wanted.name_on(table), wanted.create_on(table)
            invalid = [index.full_name for index in table.indexes if index.raw_name == name]
            yield warn(
                f"{table.name} has no index that begins with {', '.join(wanted.columns)}: each change of a"
                " parent scans the whole table",
                f"DROP INDEX CONCURRENTLY {invalid[0]}; {create}" if invalid else create,
            )
    for query, scanned in _without_index(site) if sound else ():
        sound = False
        yield warn(
            f"the query {query} has no index to find rows of {scanned}: each change scans the whole table",
            "create an index on the column that it compares with its keys, in setup.sql; an index on a column"
            " cannot be used if the query compares column::TEXT",
        )
    if sound:
        yield good("the rows of a ripple are found by indexes")


def _without_index(site: Site) -> Iterator[tuple[str, str]]:
    """Yield each query of affects.toml that has to scan a table, and the name of the table."""
    mapping = site.database.mapping
    named = {rule.query for rules in mapping.rules.values() for rule in rules}
    for name in sorted(named - {mapping.endpoint_keys}):
        statement = f"SET LOCAL enable_seqscan = off; EXPLAIN (FORMAT JSON)\n{mapping.queries[name]}"
        [(plan,)] = site.database.query_tables(f"{site.database.names()}{statement}", {name: []})
        for table in sorted(_scanned(plan[0]["Plan"])):
            yield name, table


def _scanned(node: dict[str, Any]) -> set[str]:
    """Return the tables that a plan reads by a sequential scan."""
    found = {node["Relation Name"]} if node["Node Type"] == "Seq Scan" else set()
    return found.union(*map(_scanned, node.get("Plans", ())))


def legacy_triggers(site: Site) -> Iterator[Finding]:
    """Find the triggers of PADS, which slow down every writer and are no longer needed."""
    tables = list(site.database.mapping.tables)
    found = site.read("LegacyTriggers", schema=site.schema, tables=tables)
    for trigger, table, remedy in found:
        yield warn(
            f"the trigger {trigger} on {table} writes or notifies for each endpoint, within the writer's"
            " transaction (where PADS's were measured, a plan over 100,000 applications took 330 ms to update"
            " instead of 0.3 ms, and there were 4,100 small updates a second instead of 10,900)",
            f"when PADS is no longer in use: {remedy}",
        )
    if not found:
        yield good("no trigger of PADS is left")


def _lost(table: Table) -> Finding | None:
    """Check whether a table's identity has no columns: the plugin then silently leaves out updates and
    deletes.
    """
    if table.identity:
        return None
    why = {
        "n": "has REPLICA IDENTITY NOTHING",
        "d": "has no primary key",
        "i": "has lost its identity's index",
    }
    other = table.identifier()
    identity = f"USING INDEX {other.name}" if other else "FULL"
    remedy = f"give it a primary key; or else ALTER TABLE {table.name} REPLICA IDENTITY {identity};"
    if any(index.primary for index in table.indexes):
        remedy = f"ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT;"
    return fail(f"{table.name} {why[table.identity_kind]}: its updates and deletes are lost", remedy)


def _nameless(site: Site, table: Table, parent: str) -> Finding | None:
    """Check whether a table's identity lacks the parent's key, so that parents have to be remembered."""
    if parent in table.identity:
        return None
    index = table.identifier(parent)
    remedy = (
        _identify(site, table, index)
        if index
        else f"add a unique index that has {quote_name(parent)}, over columns that are NOT NULL"
    )
    return warn(
        f"deletes from {table.name} do not name their {parent}: the server keeps it in memory for each row",
        remedy,
    )


def _misses(site: Site, table: Table, affecting: list[str], parent: str | None) -> Finding | None:
    """Check whether a table's identity lacks a column that no memory of parents can replace."""
    missing = [column for column in affecting if column != parent and column not in table.identity]
    if not missing or parent is not None:
        return None
    index = table.identifier(missing[0])
    remedy = _identify(site, table, index) if index else f"ALTER TABLE {table.name} REPLICA IDENTITY FULL;"
    if site.database.mapping.name not in bundled() and len(table.identity) == 1:
        row = f'row = "{table.identity[0]}"'
        remedy += f" Or add {row} and parents to its entry in affects.toml (docs/mappings.md)."
    return warn(
        f"updates and deletes of {table.name} do not name their {missing[0]}: each one costs a full re-read",
        remedy,
    )


def _identify(site: Site, table: Table, index: Index) -> str:
    """Return the statement that chooses an identity, or a warning if Postgres would then refuse all updates
    because of a publication.
    """
    choose = f"ALTER TABLE {table.name} REPLICA IDENTITY USING INDEX {index.name};"
    names = site.refusing(table, index.columns)
    if not names:
        return choose
    columns = ", ".join(map(quote_name, index.columns))
    return (
        f"change nothing while the publication {names[0]} does not send {columns} of every row of"
        f" {table.name}: Postgres would refuse every UPDATE; otherwise {choose}"
    )
