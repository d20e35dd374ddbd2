"""Finds the tables and functions that the queries of a mapping read. Postgres shows them in two ways.

- By locks: Postgres locks each table of a query when it plans the query, also behind views and inlined
  functions. This needs no privilege and writes nothing, so it works on standbys, and `serve` uses it
  (`reads`). If a function's body is in the catalog (``BEGIN ATOMIC``), the catalog also lists what the
  function reads.
- By dependencies: Postgres records what a view over a query reads, with the columns, and with functions
  behind operators and casts. The view is temporary and is rolled back. It needs a primary and the privilege
  TEMPORARY, and it is DDL: it takes transaction ids, and event triggers and DDL logs see it. So only commands
  that people type make views: ``pads-cdc check`` and ``pads-cdc mapping test``.

What any other function reads is unknown, so a finding names each such function.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2

from cdc.checks.finding import fail, good, warn
from cdc.checks.mapping import NO_ROWS, with_place
from cdc.errors import PadsCdcError, Refusal, SourceError, gives_way
from cdc.mapping.mapping import names_table, placed
from cdc.mapping.sql_text import quote_name
from cdc.mapping.table_names import calls
from cdc.postgres.errors import ABOUT_A_ROW, is_lasting, translate, translated
from cdc.postgres.session import begin
from cdc.postgres.statements import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.checks.finding import Finding, Site

_VIEW = "pads_cdc_dependencies"
_MAY = """
SELECT
    pg_catalog.pg_is_in_recovery(),
    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'),
    pg_catalog.current_database(),
    current_user"""
_TABLES = """
SELECT c.relname FROM pg_catalog.pg_class AS c
WHERE c.relnamespace = pg_catalog.to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"""


@contextmanager
def rolled_back(connection: Connection, setting: str, isolation: str = "READ COMMITTED") -> Iterator[Cursor]:
    """Open a transaction that can create temporary objects, and roll it back at the end. Yields its cursor.

    It waits for no lock (`AT_ONCE`), so the caller has to repeat it.

    Raises:
        Refusal: the server is a standby, or our role may not create temporary objects.
        SourceError, Refusal: the driver raised an error in the block. It is translated to one of these.

    """
    with translated(setting), connection.cursor() as cursor:
        cursor.execute(_MAY)
        [(standby, may, database, role)] = cursor.fetchall()
        if standby:
            raise Refusal(f"{setting} leads to a standby, on which nothing can be tried; give its primary")
        if not may:
            raise Refusal(
                f"{role} may not make temporary tables; GRANT TEMPORARY ON DATABASE {quote_name(database)}"
                f" TO {quote_name(role)};"
            )
        try:
            cursor.execute(f"{begin(connection, isolation, 'READ WRITE')}{AT_ONCE}")
            yield cursor
        except UnicodeDecodeError as error:
            raise Refusal(
                "a row has bytes that are not text in the database's encoding; leave --database out"
            ) from error
        finally:
            if not connection.closed:
                cursor.execute("ROLLBACK")


@dataclass(frozen=True)
class Listed:
    """The tables in affects.toml.

    The file may have faults, so entries that cannot be understood are ignored.
    """

    reads: tuple[str, ...]
    affecting: Mapping[str, Mapping[str, str]]
    """For each table in an [[affects]] entry, the queries by column."""
    signals: tuple[str, ...] = ()

    @classmethod
    def of(cls, toml: Mapping[str, Any]) -> Listed:
        """Read a file's tables."""
        affects = toml.get("affects")
        affecting: dict[str, dict[str, str]] = {}
        for entry in affects if isinstance(affects, list) else ():
            match entry:
                case {"table": str(table), "column": str(column), "query": str(query)}:
                    affecting.setdefault(table, {})[column] = query
        return cls(_texts(toml.get("reads")), affecting, _texts(toml.get("signals")))


@dataclass(frozen=True)
class ReadRelation:
    """A relation that a query reads, or a function that it calls."""

    schema: str
    name: str
    kind: str
    """``pg_class.relkind``, or ``function`` for a function whose reads are unknown."""
    columns: tuple[str, ...]
    """The columns that the query reads; empty if only the existence of rows counts, as in EXISTS."""

    @property
    def described(self) -> str:
        """The name, and the columns that are read."""
        return f"{self.name} ({', '.join(self.columns)})" if self.columns else self.name


@dataclass
class Dependencies:
    """The relations that each query reads, and the faults of the queries that Postgres rejects."""

    of_query: dict[str, tuple[ReadRelation, ...]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """The error text for each rejected query, by its name. The text ends with a remedy, after a semicolon."""
    references: tuple[tuple[str, str, str, str], ...] = ()
    """Foreign keys: table, column, the table that it refers to, and the column there."""
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The columns of each table's primary key."""
    without_columns: str = ""
    """Why no columns are known; empty if they are."""

    @classmethod
    def ask(
        cls,
        connection: Connection,
        server_queries: Mapping[str, str],
        queries: Mapping[str, str],
        schema: str,
        setting: str,
        names: str = "",
    ) -> Dependencies:
        """Make a view of each query in turn, within one transaction that is rolled back.

        ``queries`` are those of a folder, in psycopg2's form. ``setting`` is the connection string's name.
        ``names`` sets the search path for types of other schemas, if there are any.

        Raises:
            SourceError, Refusal: no views can be created on the server.

        """
        found = cls()
        with rolled_back(connection, setting) as cursor:
            if names:
                cursor.execute(names, {})
            cursor.execute(_TABLES, {"schema": quote_name(schema)})
            tables = [table for (table,) in cursor]
            for name, query in queries.items():
                named = [table for table in tables if names_table(query, table)]
                found._derive(cursor, server_queries, name, placed(query, named, schema), setting)
            cursor.execute(server_queries["References"], {"schema": schema})
            found.references = tuple(sorted(cursor.fetchall()))
            cursor.execute(server_queries["Constraints"], {"schema": schema, "tables": tables})
            found.keys = _primary_keys(cursor.fetchall())
        return found

    def _derive(
        self, cursor: Cursor, server_queries: Mapping[str, str], name: str, query: str, setting: str
    ) -> None:
        cursor.execute("SAVEPOINT derive")
        try:
            cursor.execute(f"CREATE TEMPORARY VIEW {_VIEW} AS\n{query}", {name: []})
            cursor.execute(server_queries["ViewReads"], {"view": f"pg_temp.{_VIEW}"})
            self.of_query[name] = tuple(
                ReadRelation(schema, table, kind, tuple(columns)) for schema, table, kind, columns in cursor
            )
        except psycopg2.Error as error:
            ours = translate(error, setting)
            ours.__cause__ = error
            if not is_lasting(ours):
                raise
            about_a_row = isinstance(ours, SourceError) and ours.reason == ABOUT_A_ROW
            # Making a view reads no row, so the error is about a constant, or an event trigger raised it.
            self.faults[name] = str(error).splitlines()[0] if about_a_row else with_place(ours)
        cursor.execute("ROLLBACK TO SAVEPOINT derive")

    def judge(self, listed: Listed, schema: str) -> Iterator[Finding]:
        """Compare the relations that are read with those that affects.toml lists."""
        sound = True
        for name, text in self.faults.items():
            sound = False
            fault, _, remedy = text.partition("; ")
            yield fail(f"the query {name}: {fault}", remedy or "correct it")
        for name, relation in self.each():
            finding = self._unlisted(name, relation, listed, schema)
            if finding is not None:
                sound = sound and relation.kind == "function"
                yield finding
        for table in listed.reads:
            if table not in listed.affecting and (columns := self._columns("Endpoints", table)) is not None:
                sound = False
                yield fail(
                    f"changes of {table} would be missed: the query Endpoints reads it"
                    f"{columns and f' ({columns})'}, and no [[affects]] entry of affects.toml names it",
                    f"add to affects.toml:\n{self._entry(table, listed)}",
                )
        if (ordered := self._ordered(listed.reads)) != listed.reads:
            yield warn(
                "`reads` lists a table before one that it refers to: a TRUNCATE ... CASCADE and a re-query"
                " could wait for each other",
                f"write in affects.toml: {_reads(ordered)}",
            )
        if sound and self.without_columns:
            yield good(
                "affects.toml lists all tables that the queries read; which of their columns is unknown:"
                f" {self.without_columns}"
            )
        elif sound:
            read = [one.described for one in self.of_query.get("Endpoints", ()) if one.kind != "function"]
            yield good(f"Endpoints reads {', '.join(read)}; affects.toml lists all that the queries read")

    def each(self) -> Iterator[tuple[str, ReadRelation]]:
        """Yield each relation once, with the first query that reads it."""
        seen: set[tuple[str, str]] = set()
        for name in sorted(self.of_query, key=lambda one: (one != "Endpoints", one)):
            for relation in self.of_query[name]:
                if (relation.schema, relation.name) not in seen:
                    seen.add((relation.schema, relation.name))
                    yield name, relation

    def _unlisted(self, name: str, relation: ReadRelation, listed: Listed, schema: str) -> Finding | None:
        what = f"the query {name} reads {relation.described}"
        if relation.kind == "function":
            return warn(
                f"the query {name} calls {relation.name}, and it is unknown what this function reads",
                "put what it does into the query; or give it a body of BEGIN ATOMIC ... END",
            )
        if relation.kind in NO_ROWS:
            return fail(
                f"{what}: {NO_ROWS[relation.kind]}, which sends no changes", "query the tables behind it"
            )
        if relation.schema != schema:
            return fail(
                f"{what} in the schema {relation.schema}",
                f"a mapping follows the tables of one schema: move it to {schema}, or do without it",
            )
        if relation.name in listed.reads:
            return None
        if relation.name in listed.signals:
            return fail(
                f"{what}, which is among the `signals` of affects.toml: its own changes would be missed",
                f'move "{relation.name}" from `signals` to `reads`, in affects.toml',
            )
        ordered = self._ordered((*listed.reads, relation.name))
        entry = "" if relation.name in listed.affecting else f"\n{self._entry(relation.name, listed)}"
        return fail(
            f"{what}, which `reads` of affects.toml leaves out: its changes would be missed",
            f"write in affects.toml: {_reads(ordered)}{entry}",
        )

    def _columns(self, query: str, table: str) -> str | None:
        """Return the columns of a table that a query reads, or None if it does not read the table."""
        for relation in self.of_query.get(query, ()):
            if relation.name == table:
                return ", ".join(relation.columns)
        return None

    def _entry(self, table: str, listed: Listed) -> str:
        """Return an [[affects]] entry to suggest. If a query is named after the table, the entry contains
        that query and the table's key. Otherwise it contains a foreign key, and the query of the table that
        the key refers to.
        """
        keys = self.keys.get(table, ())
        wanted = f"endpointsof{table.replace('_', '')}"
        for name in self.of_query:
            if name.lower() in (wanted, f"{wanted}s") and keys:
                return _as_toml(table=table, column=keys[0], query=name)
        for child, column, parent, key in self.references:
            query = listed.affecting.get(parent, {}).get(key)
            if child == table and query is not None:
                if len(keys) != 1 or column in keys:
                    return _as_toml(table=table, column=column, query=query)
                parents = f"ParentsOf{_camel(table)}"
                entry = _as_toml(table=table, column=column, query=query, row=keys[0], parents=parents)
                if parents in self.of_query:
                    return entry
                return (
                    f"{entry}\nand to queries.sql:\n-- name: {parents} :many\n"
                    f"SELECT {table}.{keys[0]} AS row_id, {table}.{column} AS parent FROM {table};"
                )
        entry = _as_toml(table=table, column=(*keys, "KEY")[0], query=f"EndpointsOf{_camel(table)}")
        return f"{entry}\nand to queries.sql that query, which finds the endpoints of such keys"

    def _ordered(self, tables: Sequence[str]) -> tuple[str, ...]:
        """Return the tables in an order in which each table comes after the tables that it refers to."""
        ordered: list[str] = []

        def add(table: str, above: tuple[str, ...] = ()) -> None:
            if table in ordered or table in above or table not in tables:
                return
            for child, _, parent, _ in self.references:
                if child == table:
                    add(parent, (*above, table))
            ordered.append(table)

        for table in tables:
            add(table)
        return tuple(ordered)


def reads(site: Site) -> Iterator[Finding]:
    """Check that affects.toml lists all tables that the queries read. They are found by the locks that the
    queries take, and also by temporary views if the site allows them.
    """
    mapping = site.database.mapping
    found = _by_views(site) if site.makes_views else Dependencies(without_columns="no views were made")
    known = {(relation.schema, relation.name) for _, relation in found.each()}
    for name, relations in _by_locks(site).items():
        more = tuple(one for one in relations if (one.schema, one.name) not in known)
        found.of_query[name] = found.of_query.get(name, ()) + more
    if found.without_columns:
        tables = [*mapping.reads, *(relation.name for _, relation in found.each())]
        found.references = tuple(sorted(site.read("References", schema=site.schema)))
        found.keys = _primary_keys(site.read("Constraints", schema=site.schema, tables=tables))
    affecting = {table: {rule.column: rule.query for rule in rules} for table, rules in mapping.rules.items()}
    yield from found.judge(Listed(mapping.reads, affecting, mapping.signals), site.schema)


def _by_views(site: Site) -> Dependencies:
    """Return what views over the queries depend on, or why no view could be made."""
    database = site.database
    try:
        with closing(database.address.connect()) as connection:
            found = Dependencies.ask(
                connection,
                site.queries,
                site.typed_queries,
                site.schema,
                database.address.setting,
                names=database.names(),
            )
    except PadsCdcError as error:
        if gives_way(error):
            raise
        return Dependencies(without_columns=str(error).partition("; ")[0])
    for name, fault in found.faults.items():
        # Postgres can plan the query, so the mapping is not at fault.
        return Dependencies(without_columns=f"no view of the query {name} can be made: {fault}")
    return found


def _by_locks(site: Site) -> dict[str, tuple[ReadRelation, ...]]:
    """Return the relations that each query reads and `reads` of affects.toml leaves out, without columns.

    All queries are planned in one short transaction. If this finds a relation, each query is planned by
    itself.
    """
    queries = site.typed_queries
    if not _unlisted(site, *queries.values()):
        return {}
    return {name: _unlisted(site, query) for name, query in queries.items()}


def _unlisted(site: Site, *queries: str) -> tuple[ReadRelation, ...]:
    mapping = site.database.mapping
    probes = ";\n".join(f"SELECT FROM (\n{query}\n) AS probed LIMIT 0" for query in queries)
    statement = f"{site.database.names()}{probes};\n{site.queries['UnlistedReads']}"
    keys: dict[str, list[str]] = {name: [] for name in mapping.queries}
    called = {function for query in queries for function in calls(query)}
    parameters = {
        **keys,
        "schema": site.schema,
        "tables": list(mapping.reads),
        "function_schemas": [schema for schema, _ in called],
        "function_names": [name for _, name in called],
    }
    rows = site.database.query_tables(statement, parameters)
    return tuple(ReadRelation(schema, table, kind, ()) for schema, table, kind in rows)


def _primary_keys(constraints: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the columns of each table's primary key, from the rows of the query `Constraints`."""
    found = {}
    for table, definition in constraints:
        if primary := re.fullmatch(r"PRIMARY KEY \((.*?)\).*", definition):
            found[table] = tuple(part.strip().strip('"') for part in primary[1].split(","))
    return found


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _as_toml(**entry: str) -> str:
    return "\n".join(["[[affects]]", *(f'{key} = "{value}"' for key, value in entry.items())])


def _camel(table: str) -> str:
    return "".join(map(str.title, table.split("_")))


def _reads(tables: Sequence[str]) -> str:
    names = ", ".join(f'"{table}"' for table in tables)
    return f"reads = [{names}]"
