r"""Reads a mapping: the tables and the query that make endpoints, and the rules for what a changed row
affects.

A mapping is a folder, either bundled under ``sql/`` or the user's own:

``schema.sql``
    the tables that it expects, one ``CREATE TABLE`` each, with all columns that are used;
``queries.sql``
    `Endpoints` with the columns of `COLUMNS` and any of `OPTIONAL_COLUMNS`, named one by one,
    ``EndpointsOf...(@keys)`` and ``ParentsOf...``, each with a line ``-- name: X :many`` as sqlc has it.
    Names are found in ``pg_catalog`` and in ``reads`` alone; whatever else a query uses (a function, an
    operator, a type) it names with its schema, for which ``:"schema"`` stands if it is the tables' own;
``affects.toml``
    the tables it ``reads``, those that others refer to first, the ``signals`` that it hears, whose
    ``deleted`` columns it honours (``honours_deleted``), the query whose keys are endpoint ids
    (``endpoint_keys``, if any), those whose keys stand in a column of `Endpoints` (``key_columns``), and an
    ``[[affects]]`` entry for each `Rule`;
``setup.sql``
    grants, indexes and replica identities. ``:"role"`` and ``:"schema"`` stand for names, ``:'schema'`` for
    text, as psql has it, so that ``psql -v role=... -v schema=...`` runs it too; tables have their schema.

`cdc.mapping.folder` finds and reads the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from cdc.errors import ConfigurationError
from cdc.mapping import sql_text
from cdc.mapping.affects_file import AffectsFile, Rule
from cdc.mapping.folder import folder_of, named_queries, read_sql, read_text, reading_query
from cdc.mapping.key_types import (
    NOTHING_KNOWN,
    TEXT,
    KeyType,
    collation_of,
    is_exact,
    keys_of,
    parameter,
    query_of,
)
from cdc.mapping.table_names import qualify

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from collections.abc import Mapping as Map
    from pathlib import Path

__all__ = ["COLUMNS", "Mapping", "Rule", "load"]


COLUMNS = (
    "endpoint_id",
    "secret_key",
    "secret_key_required",
    "authorized_users",
    "account_id",
    "plan_type",
    "throughput_limit",
    "capacity_limit",
)
"""The columns of `Endpoints` that every mapping has."""

OPTIONAL_COLUMNS = ("capacity_limit_period", "name", "user_id", "email", "environment")
"""More columns that `Endpoints` may have, all text: ``day``, ``week``, ``month`` or ``year`` for the first
one (NULL is a month), and what the contract's ``Metadata`` has beside the account and the plan.
"""

_AS_THEY_ARE = frozenset({"secret_key_required", "throughput_limit", "capacity_limit"})
"""Columns whose integers and booleans come as such; everything else is text, or a list of it."""

_NOT_IN = "NOT EXISTS (SELECT 1 FROM {0} WHERE {0}.endpoint_id = {1}.endpoint_id)"
_PLACEHOLDER = re.compile(r""":(?P<quote>["'])(?P<what>role|schema)(?P=quote)""")
_KEYS = re.compile(r"%\(\w+\)s(?P<text>\s*::\s*TEXT\s*\[\](?!\s*::))?", re.IGNORECASE)
"""The parameter of a query; one that is cast to anything but text is left to its author."""


@dataclass(frozen=True)
class Mapping:
    """Everything that one folder says, checked, with the queries in psycopg2's form.

    A statement that reads begins with a header row: the snapshot, `seen` (the end of WAL after that), what
    the session had put into the setting ``pads_cdc.before``, then NULLs. Any further row is NULL, NULL, the
    id that was wanted, whether there is such an endpoint, and its `columns`, NULLs where not.
    """

    name: str
    folder: Path
    schema: str = field(repr=False)
    setup: str = field(repr=False)
    reads: tuple[str, ...]
    """The tables that the queries read. They must exist and be readable. Their locks are taken in this order.
    """
    signals: tuple[str, ...]
    """Tables whose new rows only name endpoints to read again. They are never read, so they need no grant."""
    honours_deleted: frozenset[str]
    """Tables whose rows the mapping leaves out if ``deleted`` is set."""
    endpoint_keys: str | None
    """The kind of keys that are endpoint ids; None if there is none."""
    key_columns: Map[str, str]
    """Kinds whose keys stand in a column of `COLUMNS`: they find the endpoints that have one of them there,
    and name none that is gone.
    """
    rules: Map[str, tuple[Rule, ...]] = field(repr=False)
    columns: tuple[str, ...]
    """`COLUMNS`, and those of `OPTIONAL_COLUMNS` that `Endpoints` has."""
    queries: Map[str, str] = field(repr=False)
    """Those that are used, by name. The parameter of an ``EndpointsOfX`` is ``%(EndpointsOfX)s``, so that
    several fit together.
    """
    header: str = field(repr=False)
    outside_types: str = field(repr=False)
    """The query that finds the columns whose types have their operators outside of ``pg_catalog``, with the
    parameters ``schema``, ``tables`` and ``columns``.
    """
    types: str = field(repr=False)
    """The query that says what types are, with the parameters ``types``, ``length`` and ``collation``."""
    db_schema: str | None = None
    """The schema that the tables are in; None before `within` has said it, and then nothing finds them."""

    def within(self, schema: str) -> Mapping:
        """Return this mapping for tables in a schema: its statements name them with it, whatever the search
        path is.
        """
        queries = {name: placed(query, self.reads, schema) for name, query in self.queries.items()}
        return replace(self, queries=queries, db_schema=schema)

    def over_copies(self, schema: str) -> Mapping:
        """Return a mapping that `within` has made, over tables of the same names in another schema; all else
        that it names stays where it is.
        """
        tables = "|".join(f'"{re.escape(table)}"|{re.escape(table)}\\b' for table in self.reads)
        before = re.escape(sql_text.quote_name((self.db_schema or "").replace("%", "%%")))
        name = re.compile(rf"{before}\s*\.\s*({tables})")
        after = sql_text.quote_name(schema.replace("%", "%%"))
        queries = {
            one: name.sub(lambda found: f"{after}.{found[1]}", query) for one, query in self.queries.items()
        }
        return replace(self, queries=queries, db_schema=schema)

    @property
    def tables(self) -> tuple[str, ...]:
        """All tables whose changes matter."""
        return self.reads + self.signals

    def fingerprint(self, *place: str) -> int:
        """Return 32 bits that are others for another mapping, and in another ``place`` (database, schema).

        Everything counts that decides which endpoints there are, what is in them, and which transactions name
        them; comments and file names do not.
        """
        rules = sorted(
            repr((table, rule.column, rule.query, rule.row, rule.parents, sorted(rule.actions)))
            for table, some in self.rules.items()
            for rule in some
        )
        said = (
            place,
            sorted(self.queries.items()),
            self.columns,
            self.reads,
            self.signals,
            sorted(self.honours_deleted),
            self.endpoint_keys,
            sorted(self.key_columns.items()),
            rules,
        )
        return int.from_bytes(blake2b(repr(said).encode(), digest_size=4).digest(), "big")

    @property
    def locks(self) -> str:
        """The statement that takes all locks of a read before its snapshot is taken.

        They are taken in the order of `reads`: TRUNCATE ... CASCADE locks parents first and needs what we
        hold. In the order of the joins we could hold the children and wait for the parents, and the server
        could end the writer's transaction for it. Partitions are locked when a statement is planned, and so
        after its own snapshot: one that is emptied and filled again meanwhile would be seen empty. So a
        condition that is never true would not do here, for which they would be left out.
        (LOCK TABLE would need a grant on the whole table.)
        """
        tables = [sql_text.quote_name(table) for table in self.reads]
        if self.db_schema is not None:
            schema = sql_text.quote_name(self.db_schema.replace("%", "%%"))
            tables = [f"{schema}.{table}" for table in tables]
        return "\nUNION ALL\n".join(f"SELECT FROM {table}" for table in tables) + "\nLIMIT 0"

    def full(self, types: Map[str, KeyType] = NOTHING_KNOWN, id_type: KeyType = TEXT) -> str:
        """Return the statement that reads the whole mapping.

        ``types`` are those of the columns of `Endpoints`, ``id_type`` is that of its ids with all that
        decides how they compare.
        """
        return f"{self.header}\nUNION ALL\n{self._found(self.queries['Endpoints'], types, id_type)}"

    def compose(
        self,
        kinds: Collection[str],
        types: Map[str, KeyType] = NOTHING_KNOWN,
        id_type: KeyType = TEXT,
    ) -> str:
        """Return the statement that reads what keys of these kinds affect; each kind's keys are a parameter
        (`key_types.parameter`). Types are those of `full`.

        Each wanted id comes once, also where no endpoint has it any more. Keys of `key_columns` are a
        condition on the mapping, which a plan's ripple is through with in half the time, and of which the
        first rows are there at once. Other kinds ask for ids first, which are joined to the
        mapping before missing ones are added: an outer join would be resolved last, and compute the
        mapping's expressions for every endpoint there is (in `grove_jwt`, three times slower). Those that are
        found come as they are joined, those that are gone behind them: an outer join of the two would first
        sort both.

        Raises:
            KeyError: no query has the name of the kind.
            ValueError: no kinds.

        """
        if not kinds:
            raise ValueError("nothing is wanted")
        by_id = sorted(kind for kind in kinds if query_of(kind) not in self.key_columns)
        by_column = sorted(kind for kind in kinds if query_of(kind) in self.key_columns)
        collations = {id_type.collation, *map(collation_of, by_id)} - {None}
        if not id_type.exact or not all(map(is_exact, by_id)):
            id_type = replace(id_type, exact=False, collation=next(iter(collations), None))
        parts = [self.header]
        if by_id:
            parts += [self._found("SELECT * FROM endpoint", types, id_type), self._gone(id_type)]
        # A part each, as no index helps with an OR over the columns of two tables. Later ones leave out what
        # earlier ones bring.
        brought = [_NOT_IN.format("wanted", "mapping")] if by_id else []
        for kind in by_column:
            having = f"mapping.{self.key_columns[query_of(kind)]} = ANY({keys_of(kind)})"
            conditions = "\nAND ".join([having, *brought])
            having_keys = f"SELECT * FROM (\n{self.queries['Endpoints']}\n) AS mapping\nWHERE {conditions}"
            parts.append(self._found(having_keys, types, id_type))
            brought.append(f"({having}) IS NOT TRUE")
        return (self._wanted(by_id, id_type) if by_id else "") + "\nUNION ALL\n".join(parts)

    def _wanted(self, kinds: Sequence[str], id_type: KeyType) -> str:
        """Return the ids that queries find, and what the mapping has of them, as tables of a statement."""
        if not id_type.exact:
            return self._wanted_as_spelled(kinds, id_type)
        wanted = "\nUNION\n".join(
            f"SELECT wants.endpoint_id{id_type.cast} AS endpoint_id FROM (\n{self._ids(kind)}\n) AS wants"
            for kind in kinds
        )
        # A UNION leaves out duplicates, and so must this. Keys that are ids are a set already, of which the
        # planner knows how many there are: with DISTINCT it would look up 300,000 one by one.
        if len(kinds) == 1 and kinds[0] != self.endpoint_keys:
            wanted = wanted.replace("SELECT", "SELECT DISTINCT", 1)
        return f"""\
WITH wanted AS MATERIALIZED (
{wanted}
),
endpoint AS MATERIALIZED (
SELECT {self._columns("mapping")}
FROM wanted
INNER JOIN (
{self.queries["Endpoints"]}
) AS mapping ON mapping.endpoint_id = wanted.endpoint_id
)
"""

    def _wanted_as_spelled(self, kinds: Sequence[str], id_type: KeyType) -> str:
        """Return the same where ids or keys are equal that are not spelled alike. Each spelling that is
        wanted counts, once: of two that are equal an endpoint has one, and the other one is gone.
        """
        of_ids = id_type.kind(self.endpoint_keys) if self.endpoint_keys else None
        found = (
            # The query of the mapping casts its keys to text, and a bpchar would lose its blanks by that.
            f"SELECT key AS endpoint_id FROM unnest(%({parameter(kind)})s::TEXT[]) AS key"
            if kind == of_ids
            else self._ids(kind)
            for kind in kinds
        )
        wants = "\nUNION ALL\n".join(
            f"SELECT wants.endpoint_id{id_type.cast} AS endpoint_id FROM (\n{query}\n) AS wants"
            for query in found
        )
        return f"""\
WITH wanted AS MATERIALIZED (
SELECT spelt.spelling, spelt.spelling{id_type.cast} AS endpoint_id
FROM (
SELECT DISTINCT {id_type.printed("wants.endpoint_id")} AS spelling
FROM (
{wants}
) AS wants
WHERE wants.endpoint_id IS NOT NULL
) AS spelt
),
endpoint AS MATERIALIZED (
SELECT {self._columns("mapping")}
FROM (
{self.queries["Endpoints"]}
) AS mapping
WHERE mapping.endpoint_id IN (SELECT wanted.endpoint_id FROM wanted)
)
"""

    def _ids(self, kind: str) -> str:
        """Return the query that turns keys of a kind into ids."""
        return _KEYS.sub(
            lambda found: keys_of(kind) if found["text"] else f"%({parameter(kind)})s",
            self.queries[query_of(kind)],
        )

    def _found(self, endpoints: str, types: Map[str, KeyType], id_type: KeyType) -> str:
        """Return the part of a statement that yields the endpoints of a query."""
        name = id_type.printed("found.endpoint_id")
        columns = ", ".join(
            types.get(column, TEXT).sent(f"found.{column}", as_text=column not in _AS_THEY_ARE)
            for column in self.columns
        )
        return f"SELECT NULL, NULL, {name}, true, {columns}\nFROM (\n{endpoints}\n) AS found"

    def _gone(self, id_type: KeyType) -> str:
        """Return the part of a statement that yields the requested ids which no endpoint has."""
        nothing = ", NULL" * len(self.columns)
        name, missing = id_type.printed("wanted.endpoint_id"), _NOT_IN.format("endpoint", "wanted")
        if not id_type.exact:
            name, spelling = "wanted.spelling", id_type.printed("endpoint.endpoint_id")
            missing = f"NOT EXISTS (SELECT 1 FROM endpoint WHERE {spelling} = {name})"
        return f"SELECT NULL, NULL, {name}, false{nothing}\nFROM wanted\nWHERE {missing}"

    def _columns(self, table: str) -> str:
        return ", ".join(f"{table}.{column}" for column in self.columns)

    def setup_statements(self, schema: str, role: str | None) -> list[str]:
        """Return what makes a database ready, one statement each, for the owner of the tables.

        They are to be executed one by one, in one session and in autocommit (an index is built CONCURRENTLY),
        as often as one likes. Without a role those that grant it something are left out.
        """
        names = {"schema": schema, "role": role or ""}

        def named(found: re.Match[str]) -> str:
            return _quoted(names[found["what"]], found["quote"])

        return [
            _PLACEHOLDER.sub(named, statement)
            for statement in sql_text.statements(self.setup)
            if role is not None or not any(one["what"] == "role" for one in _PLACEHOLDER.finditer(statement))
        ]


def load(name_or_path: str) -> Mapping:
    """Read a bundled mapping by its name, or any mapping by the path of its folder. Reads files.

    Raises:
        ConfigurationError: there is none, or something in it is wrong: the file, and what.

    """
    folder = folder_of(name_or_path)
    schema, setup = read_sql(folder / "schema.sql"), read_sql(folder / "setup.sql")
    queries = named_queries(folder / "queries.sql")
    if "Endpoints" not in queries or sql_text.parameters(queries["Endpoints"]):
        raise ConfigurationError(f"{folder / 'queries.sql'}: needs a query Endpoints without parameters")
    has = sql_text.columns(queries["Endpoints"])
    optional = tuple(column for column in OPTIONAL_COLUMNS if column in has)
    path, columns = folder / "affects.toml", sql_text.tables(schema)
    affects = AffectsFile(path, read_text(path), columns, queries)
    for index, table, of_index in sql_text.indexes(setup):
        for column in of_index:
            if column not in columns.get(table, ()):
                where = f"{folder / 'setup.sql'}: the index {index}"
                raise ConfigurationError(f"{where}: {table} has no column {column} in schema.sql")
    for name, query in queries.items():
        try:
            qualify(query, affects.reads, "")
        except ValueError as error:
            raise ConfigurationError(f"{folder / 'queries.sql'}: the query {name}: {error}") from error
    rules = affects.rules()
    used = {"Endpoints", *(name for of_table in rules.values() for one in of_table for name in one.queries)}
    for name in sorted(used):
        for table in sorted(columns.keys() - affects.reads):
            if names_table(queries[name], table):
                text = f'leaves out {table}, which the query {name} reads: add "{table}"'
                raise ConfigurationError(f"{path}: reads: {text}")
    return Mapping(
        name=folder.name,
        folder=folder,
        schema=schema,
        setup=setup,
        reads=affects.reads,
        signals=affects.signals,
        honours_deleted=affects.honours_deleted,
        endpoint_keys=affects.endpoint_keys,
        key_columns=affects.key_columns(COLUMNS + optional),
        rules=rules,
        columns=COLUMNS + optional,
        queries={name: sql_text.bind(queries[name], name) for name in queries if name in used},
        header=_header(optional),
        outside_types=reading_query("OutsideTypes"),
        types=reading_query("Types"),
    )


def placed(query: str, tables: Collection[str], schema: str) -> str:
    """Return a query, in psycopg2's form, that finds tables in a schema, and ``:"schema"`` as well.

    Raises:
        ValueError: a WITH gives the name of a table to something else.

    """
    named = schema.replace("%", "%%")
    return qualify(_PLACEHOLDER.sub(lambda found: _quoted(named, found["quote"]), query), tables, named)


def names_table(query: str, table: str) -> bool:
    """Tell whether a query reads a table, by its text."""
    try:
        return qualify(query, {table}, "") != query
    except ValueError:  # a WITH gives the name to something else
        return False


def _quoted(text: str, quote: str) -> str:
    """Quote a name or a text for SQL. Backslashes mean nothing: standard_conforming_strings is on."""
    return quote + text.replace(quote, quote * 2) + quote


def _header(optional: Sequence[str]) -> str:
    """Return the part that every statement begins with, with a NULL for each further column."""
    header = reading_query("Header")
    last = f"NULL AS {COLUMNS[-1]}"
    return header.replace(last, ",\n    ".join((last, *(f"NULL AS {column}" for column in optional))))
