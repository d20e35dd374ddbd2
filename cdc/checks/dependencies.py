"""What the queries of a mapping read, by the dependencies that Postgres itself records for a view over each.

They name columns, and reach through other views. A view takes a primary and the right TEMPORARY, so this is
for ``pads-cdc mapping test``; `cdc.checks.mapping.reads` asks the locks, which name tables alone, everywhere.
The view is gone when the transaction is rolled back. Nobody knows what a function reads, unless its body is
in the catalog (``BEGIN ATOMIC``): such functions are named.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2

from cdc.checks.finding import fail, good, warn
from cdc.checks.mapping import NO_ROWS, with_place
from cdc.errors import Refusal
from cdc.mapping.mapping import names_table, placed
from cdc.mapping.sql_text import quote_name
from cdc.postgres.errors import is_lasting, translate, translated
from cdc.postgres.session import begin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.checks.finding import Finding

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
    """Open a transaction that may make temporary objects, and is rolled back; yields its cursor.

    Raises:
        Refusal: this server, or our role, takes none. SourceError, Refusal: what the driver says meanwhile.

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
            cursor.execute(begin(connection, isolation, "READ WRITE"))
            yield cursor
        except UnicodeDecodeError as error:
            raise Refusal(
                "a row has bytes that are no text in the database's encoding; leave --database out"
            ) from error
        finally:
            if not connection.closed:
                cursor.execute("ROLLBACK")


@dataclass(frozen=True)
class Listed:
    """What affects.toml says of tables, as far as it can be read: it may be what is to be corrected."""

    reads: tuple[str, ...]
    affecting: Mapping[str, Mapping[str, str]]
    """The tables that an [[affects]] entry names: the queries, by column."""

    @classmethod
    def of(cls, toml: Mapping[str, Any]) -> Listed:
        """Read a file's tables."""
        reads, affects = toml.get("reads"), toml.get("affects")
        affecting: dict[str, dict[str, str]] = {}
        for entry in affects if isinstance(affects, list) else ():
            match entry:
                case {"table": str(table), "column": str(column), "query": str(query)}:
                    affecting.setdefault(table, {})[column] = query
        return cls(
            tuple(table for table in reads if isinstance(table, str)) if isinstance(reads, list) else (),
            affecting,
        )


@dataclass(frozen=True)
class ReadRelation:
    """Something that a query reads."""

    schema: str
    name: str
    kind: str
    """As in ``pg_class.relkind``; ``function`` for a function of which nobody knows what it reads."""
    columns: tuple[str, ...]
    """Those that the query reads; none where only rows count, as in EXISTS."""

    @property
    def described(self) -> str:
        """Its name, and the columns that are read."""
        return f"{self.name} ({', '.join(self.columns)})" if self.columns else self.name


@dataclass
class Dependencies:
    """What each query reads, and what was wrong with those that are not in it."""

    of_query: dict[str, tuple[ReadRelation, ...]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """By the query's name; a fault, a semicolon and what to type."""
    references: tuple[tuple[str, str, str, str], ...] = ()
    """Foreign keys: table, column, the table that it refers to, and the column there."""
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The columns of each table's primary key."""

    @classmethod
    def ask(
        cls,
        connection: Connection,
        server_queries: Mapping[str, str],
        queries: Mapping[str, str],
        schema: str,
        setting: str,
    ) -> Dependencies:
        """Make a view of each query in turn, within one transaction that is rolled back.

        ``queries`` are as a folder has them, in psycopg2's form; ``setting`` is the connection string's name.

        Raises:
            SourceError, Refusal: the server takes no views from us.

        """
        found = cls()
        with rolled_back(connection, setting) as cursor:
            cursor.execute(_TABLES, {"schema": quote_name(schema)})
            tables = [table for (table,) in cursor]
            for name, query in queries.items():
                named = [table for table in tables if names_table(query, table)]
                found._derive(cursor, server_queries, name, placed(query, named, schema), setting)
            cursor.execute(server_queries["References"], {"schema": schema})
            found.references = tuple(sorted(cursor.fetchall()))
            cursor.execute(server_queries["Constraints"], {"schema": schema, "tables": tables})
            for table, definition in cursor:
                if primary := re.fullmatch(r"PRIMARY KEY \((.*?)\).*", definition):
                    found.keys[table] = tuple(part.strip().strip('"') for part in primary[1].split(","))
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
            self.faults[name] = with_place(ours)
        cursor.execute("ROLLBACK TO SAVEPOINT derive")

    def judge(self, listed: Listed, schema: str) -> Iterator[Finding]:
        """Hold what is read against what affects.toml lists."""
        sound = True
        for name, text in self.faults.items():
            sound = False
            fault, _, remedy = text.partition("; ")
            yield fail(f"the query {name}: {fault}", remedy or "correct it")
        for name, relation in self._each():
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
        if sound:
            read = [one.described for one in self.of_query.get("Endpoints", ()) if one.kind != "function"]
            yield good(f"Endpoints reads {', '.join(read)}; affects.toml lists all that the queries read")

    def _each(self) -> Iterator[tuple[str, ReadRelation]]:
        """Yield everything that is read once, with the first query that reads it."""
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
                f"the query {name} calls {relation.name}, and nobody knows what a function reads",
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
        """Suggest an [[affects]] entry: with the query that has the table's name and its key, or by a foreign
        key with the query of the table that it refers to.
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
        """Return tables so that those that others refer to come first, and otherwise as they were."""
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


def _as_toml(**entry: str) -> str:
    return "\n".join(["[[affects]]", *(f'{key} = "{value}"' for key, value in entry.items())])


def _camel(table: str) -> str:
    return "".join(map(str.title, table.split("_")))


def _reads(tables: Sequence[str]) -> str:
    names = ", ".join(f'"{table}"' for table in tables)
    return f"reads = [{names}]"
