"""Checks whether all tables, columns and rows of the mapping can be read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cdc.checks.copies import ColumnOf
from cdc.checks.finding import fail, good, warn
from cdc.checks.giving_way import giving_way
from cdc.errors import Refusal
from cdc.mapping.folder import bundled
from cdc.mapping.mapping import load
from cdc.mapping.row_rule import in_short
from cdc.mapping.sql_text import quote_name
from cdc.replication.publication import needed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Finding, Site
    from cdc.errors import PadsCdcError
    from cdc.mapping.mapping import Mapping
    from cdc.mapping.tables import Table

NO_ROWS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_UNHEARD = "it does not exist, or its owner is neither the schema's nor a mapped table's"

_BEGINNING = 160
"""Characters of an id that are read for a report."""
_ABOUT_TYPES = re.compile(r"\btype|operator|function|collation|coerce|cast")
_SHORT_NAME = re.compile(r'\b(?:FROM|JOIN)\s+(?:"(?:[^"]|"")+"\.)?(\w+)\s+AS\s+(\w+)', re.IGNORECASE)


def tables(site: Site) -> Iterator[Finding]:
    """Check that every table of the mapping exists, and that its rows are in the WAL."""
    mapping = site.database.mapping
    usable = [row for (row,) in site.read("Schema", schema=site.schema)]
    if not usable:
        yield fail(
            f"the schema {site.schema} does not exist in the database {site.reader.database}",
            "create it, or correct DB_SCHEMA and the connection string",
        )
        return
    if not usable[0]:
        yield fail(
            f"permission denied: {site.reader.role} may not use the schema {site.schema}",
            f"GRANT USAGE ON SCHEMA {quote_name(site.schema)} TO {quote_name(site.reader.role)};",
        )
        return
    found = {table.mapped for table in site.tables}
    missing = [f"{site.schema}.{table}" for table in mapping.reads if table not in found]
    if missing:
        yield fail(
            f"the mapping {mapping.name} needs {', '.join(missing)}, which does not exist",
            f"create it (see {mapping.name}/schema.sql), or correct MAPPING and DB_SCHEMA",
        )
    for table in site.tables:
        # Signal tables are optional. If another user creates something in their place, we must not stop.
        judge = fail if table.mapped in mapping.reads else warn
        if table.kind in NO_ROWS:
            yield judge(
                f"{table.name} is {NO_ROWS[table.kind]}: its changes are not in the WAL",
                "map the tables behind it, with a MAPPING of your own",
            )
        elif not table.logged:
            yield judge(
                f"{table.name} is unlogged: its changes are not in the WAL",
                f"ALTER TABLE {table.name} SET LOGGED;",
            )
        for column in _virtual_keys(mapping, table):
            yield judge(
                f"{column} of {table.name} is a virtual generated column: its values are not in the WAL",
                _stored(site, table, column),
            )
    sound = all(t.logged and t.kind not in NO_ROWS and not _virtual_keys(mapping, t) for t in site.tables)
    if not missing and sound:
        unheard = [table for table in mapping.signals if table not in found]
        less = f"; {', '.join(unheard)} is not followed: {_UNHEARD}" if unheard else ""
        yield good(f"the mapping {mapping.name} finds its {len(found)} tables in {site.schema}{less}")


def _virtual_keys(mapping: Mapping, table: Table) -> list[str]:
    """Return the key columns that are virtual: no change of the table contains their values. A partition has
    the key columns of its table.
    """
    return [name for name in table.virtual if table.top and name in needed(mapping.rules[table.mapped])]


def _stored(site: Site, table: Table, column: str) -> str:
    """Return the statement that makes a virtual generated column a stored one.

    It drops the column and adds it again. No index is lost: a virtual column cannot have one.
    """
    for row in site.read("Definitions", schema=site.schema, tables=[table.mapped]):
        one = ColumnOf.of(row)
        if one.name == column:
            drop = f"DROP COLUMN {quote_name(column)}"
            return f"ALTER TABLE {table.name} {drop}, ADD COLUMN {one.definition};"
    return f"make {column} a STORED one"


def select(site: Site) -> Iterator[Finding]:
    """Check the privilege to read the tables."""
    mapping = site.database.mapping
    unreadable = [
        table.name
        for table in site.tables
        if table.top and table.mapped in mapping.reads and not table.readable
    ]
    if unreadable:
        names = ", ".join(unreadable)
        yield fail(
            f"permission denied: {site.reader.role} may not read {names}",
            f"GRANT SELECT ON {names} TO {quote_name(site.reader.role)};",
        )
    else:
        yield good(f"{site.reader.role} may read them")


def row_security(site: Site) -> Iterator[Finding]:
    """Check row-level security: a hidden row would be taken for a deleted one."""
    reads = site.database.mapping.reads
    hidden = [table.name for table in site.tables if table.top and table.mapped in reads and table.hides_rows]
    if hidden:
        yield fail(
            f"row-level security hides rows of {', '.join(hidden)} from {site.reader.role}: they would be"
            " taken for deletes",
            f"ALTER ROLE {quote_name(site.reader.role)} BYPASSRLS;",
        )
    else:
        yield good("no row-level security hides rows")


def soft_delete(site: Site) -> Iterator[Finding]:
    """Check that the mapping takes account of all columns that mark rows as deleted."""
    mapping = site.database.mapping
    marked = site.read("SoftDeleted", schema=site.schema, tables=list(mapping.reads))
    ignored = [table for (table,) in marked if table not in mapping.honours_deleted]
    if ignored:
        yield fail(
            f"{site.schema}.{ignored[0]} marks rows as deleted (a column deleted or deleted_at), which the"
            f" mapping {mapping.name} ignores: deleted endpoints would be authorized",
            _that_honours(mapping, {table for (table,) in marked}, ignored[0]),
        )
    else:
        yield good("the mapping serves no rows that are marked as deleted")


def _that_honours(mapping: Mapping, marked: set[str], ignored: str) -> str:
    """Return a remedy. If a bundled mapping of the same tables leaves out the marked rows, suggest it."""
    if mapping.name not in bundled():
        return (
            f"leave out such rows of {ignored} by a condition in the query Endpoints; or, if the query does"
            f" so in another way, list {ignored} in `honours_deleted` of affects.toml"
        )
    for name in bundled():
        other = load(name)
        if set(other.reads) == set(mapping.reads) and other.honours_deleted == marked:
            return f"use MAPPING={name}, or a mapping of your own"
    return "use a mapping of your own (docs/mappings.md)"


def operators(site: Site) -> Iterator[Finding]:
    """Check the types whose operators are in another schema than ``pg_catalog``: other roles could add
    operators there.
    """
    types = site.database.outside_types()
    for one in types:
        if one.fault is not None:
            yield fail(str(one), one.remedy or "")
    if not types:
        yield good("all operators are those of pg_catalog")
    elif all(one.fault is None for one in types):
        yield good("; ".join(map(str, types)))


def statements(site: Site) -> Iterator[Finding]:
    """Plan every query of the mapping. Planning reads no row, and finds missing columns."""
    mapping = site.database.mapping
    keys: dict[str, list[str]] = {name: [] for name in mapping.queries}
    wrong: dict[str, None] = {}  # a set that keeps its order
    for statement in site.typed_queries.values():
        try:
            probe = f"{site.database.names()}SELECT * FROM ({statement}) probed LIMIT 0"
            site.database.query_tables(probe, keys)
        except Refusal as error:
            wrong.setdefault(_by_tables(with_place(error), statement))
    for text in wrong:
        fault, _, remedy = text.partition("; ")
        yield fail(fault, remedy)
    for table in site.tables:
        for rule in mapping.rules[table.mapped]:
            absent = [name for name in (rule.column, rule.row) if name and name not in table.columns]
            if absent:
                yield fail(
                    f"column {absent[0]} of {table.name} does not exist", "add the column, or correct MAPPING"
                )
                wrong.setdefault(table.name)
    if wrong:
        return
    if missing := [column for column in mapping.columns if column not in site.types.columns]:
        yield fail(
            f"the query Endpoints returns no column {', '.join(missing)}",
            f"name one of its columns so (`... AS {missing[0]}`), or return `NULL AS {missing[0]}`",
        )
    else:
        yield good(f"all {len(mapping.queries)} queries fit the tables")


def with_place(error: PadsCdcError) -> str:
    """Return an error's text with the line of SQL that it is about. In a check, this line contains no key."""
    line = re.search(r"^LINE \d+: +(.*)$", str(error.__cause__), re.MULTILINE)
    fault, separator, remedy = str(error).partition("; ")
    return f"{fault}, in: {line[1]}{separator}{remedy}" if line and _ABOUT_TYPES.search(fault) else str(error)


def _by_tables(text: str, statement: str) -> str:
    """Replace the aliases of tables in an error's text by the tables' names."""
    named = {short: table for table, short in _SHORT_NAME.findall(statement)}
    return re.sub(r"\bcolumn (\w+)\.", lambda found: f"column {named.get(found[1], found[1])}.", text)


def ids(site: Site) -> Iterator[Finding]:
    """Find ids that are NULL or not unique. Reads the whole mapping."""
    database = site.database
    endpoints = database.mapping.queries["Endpoints"]
    query = (
        f"{database.names()}SELECT pg_catalog.left(named.id, {_BEGINNING}), count(*)"
        f" FROM (SELECT found.endpoint_id::TEXT AS id FROM (\n{endpoints}\n) AS found) AS named"
        " GROUP BY named.id HAVING count(*) > 1 OR named.id IS NULL ORDER BY named.id LIMIT 3"
    )
    wrong = giving_way(database, site.queries["Blocked"], lambda: database.query_tables(query))
    for endpoint_id, number in wrong:
        what = "is NULL" if endpoint_id is None else f"{in_short(endpoint_id)} comes"
        yield fail(
            f"the query Endpoints: endpoint_id {what} in {number} rows",
            "make it return each endpoint once, with its id: a join that finds several rows repeats it",
        )
    if not wrong:
        yield good("each endpoint has an id of its own")


def endpoints(site: Site) -> Iterator[Finding]:
    """Count the endpoints that anybody may call and those that nobody may call, which may both be mistakes.
    Reads the whole mapping.
    """
    census = site.census
    number, open_to_all, without_key = census.endpoints, census.open_to_all, census.without_key
    if open_to_all.number:
        yield warn(
            f"{open_to_all.number} of {number} endpoints have no settings that say whether a key is required,"
            f" so that anybody may call them; the first is {open_to_all.first}",
            "if that is not meant, insert their settings, with secret_key_required = true",
        )
    if without_key.number:
        yield warn(
            f"{without_key.number} of {number} endpoints require a key and have none, so that nobody may call"
            f" them; the first is {without_key.first}",
            "set their secret_key, or secret_key_required = false",
        )
    if not open_to_all.number and not without_key.number:
        yield good(f"{number} endpoints, and the settings of each say who may call")


def odd_rows(site: Site) -> Iterator[Finding]:
    """Find the odd rows (`cdc.mapping.row_rule`). Reads the whole mapping."""
    census = site.census
    for served, what in ((False, "left out"), (True, "served with another limit")):
        if number := census.odd_rows[served]:
            odd = [item for item in census.odd.items() if item[1].served == served]
            named = "; ".join(f"{in_short(name)} ({oddity.text})" for name, oddity in odd)
            more = number - len(odd)
            yield warn(
                f"{number:,} {'rows are' if number > 1 else 'row is'} {what}: {named}"
                + (f"; and {more:,} more" if more else ""),
                "correct them, and prevent such values by a type or a CHECK; docs/operate.md has the rule",
            )
    if not census.odd:
        yield good("each row is a valid endpoint")
