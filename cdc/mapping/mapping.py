r"""Reads a mapping: the tables and the query that make endpoints, and the rules that say which endpoints a
changed row affects.

A mapping is a folder, either bundled under ``sql/`` or the user's own:

``schema.sql``
    the tables that it expects, each as a ``CREATE TABLE``, with all columns that are used;
``queries.sql``
    `Endpoints` with the columns of `COLUMNS` and any of `OPTIONAL_COLUMNS`, named one by one,
    ``EndpointsOf...(@keys)`` and ``ParentsOf...``, each with a line ``-- name: X :many`` as in sqlc.
    Unqualified names are found only in ``pg_catalog`` and in ``reads``. Any other function, operator or type
    must be named with its schema; ``:"schema"`` stands for the schema of the tables;
``affects.toml``
    the tables that it ``reads``, beginning with those that others refer to; the signal tables (``signals``);
    the tables whose rows it leaves out if ``deleted`` is set (``honours_deleted``); the query whose keys are
    endpoint ids (``endpoint_keys``, if any); the queries whose keys are in a column of `Endpoints`
    (``key_columns``); and an ``[[affects]]`` entry for each `Rule`;
``setup.sql``
    grants, indexes and replica identities. As in psql, ``:"role"`` and ``:"schema"`` stand for names and
    ``:'schema'`` for text, so ``psql -v role=... -v schema=...`` can run it too. Table names are qualified.

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
    UNKNOWN,
    KeyType,
    collation_of,
    is_exact,
    keys_of,
    parameter,
    query_of,
)
from cdc.mapping.table_names import qualify

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
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
"""More columns that `Endpoints` may have, all text. The first one is ``day``, ``week``, ``month`` or
``year``; NULL stands for ``month``. The others are the fields of the contract's ``Metadata``, except the
account and the plan.
"""

_AS_THEY_ARE = frozenset({"secret_key_required", "throughput_limit", "capacity_limit"})
"""Columns whose integers and booleans are sent as such; everything else is sent as text, or as a list of
text.
"""

_NOT_IN = "NOT EXISTS (SELECT 1 FROM {0} WHERE {0}.endpoint_id = {1}.endpoint_id)"
_PLACEHOLDER = re.compile(r""":(?P<quote>["'])(?P<what>role|schema)(?P=quote)""")
_KEYS = re.compile(r"%\(\w+\)s(?P<text>\s*::\s*TEXT\s*\[\](?!\s*::))?", re.IGNORECASE)
"""Matches the parameter of a query, with its cast to text. If the query then casts it to another type, that
cast stays.
"""

_NULL = r"\bNULL\s*(?:::\s*[\w\[\]]+\s+)?AS\s+{}\b"
"""A column of a query that is always NULL."""


@dataclass(frozen=True)
class Mapping:
    """The checked content of one folder, with the queries in psycopg2's form.

    The first row that a read returns is a header: the snapshot, `seen` (the end of WAL after the snapshot was
    taken), the value of the session's setting ``pads_cdc.before``, then NULLs. Each further row contains
    NULL, NULL, the requested id, whether an endpoint has that id, and the endpoint's `columns`, which are
    NULL if there is no endpoint.
    """

    name: str
    folder: Path
    schema: str = field(repr=False)
    setup: str = field(repr=False)
    reads: tuple[str, ...]
    """The tables that the queries read. They must exist and be readable. Their locks are taken in this order.
    """
    signals: tuple[str, ...]
    """Tables whose new rows only say which endpoints to read again. The server never reads these
    tables, so they need no grant.
    """
    honours_deleted: frozenset[str]
    """Tables whose rows the mapping leaves out if ``deleted`` is set."""
    endpoint_keys: str | None
    """The query whose keys are endpoint ids; None if there is none."""
    key_columns: Map[str, str]
    """Queries whose keys are in a column of `COLUMNS`, each with that column. Such keys find the endpoints
    that have one of them in the column, but no endpoint that is gone.
    """
    rules: Map[str, tuple[Rule, ...]] = field(repr=False)
    columns: tuple[str, ...]
    """`COLUMNS`, followed by the `OPTIONAL_COLUMNS` that `Endpoints` has."""
    queries: Map[str, str] = field(repr=False)
    """The queries that are used, by name. The parameter of ``EndpointsOfX`` is ``%(EndpointsOfX)s``, so that
    several queries can be in one statement.
    """
    header: str = field(repr=False)
    wait_for_locks: str = field(repr=False)
    """The query that waits for the lock of each table, partition and index. Its parameters are ``schema`` and
    ``tables``.
    """
    outside_types: str = field(repr=False)
    """The query that finds the columns whose types have their operators outside of ``pg_catalog``. Its
    parameters are ``schema``, ``tables`` and ``columns``.
    """
    types: str = field(repr=False)
    """The query that describes types. Its parameters are ``types``, ``length`` and ``collation``."""
    db_schema: str | None = None
    """The schema of the tables; None before `within`, so that the statements cannot be executed yet."""

    def within(self, schema: str) -> Mapping:
        """Return this mapping for tables in a schema. Its statements qualify the tables' names, so the search
        path does not matter.
        """
        queries = {name: placed(query, self.reads, schema) for name, query in self.queries.items()}
        return replace(self, queries=queries, db_schema=schema)

    def over_copies(self, schema: str) -> Mapping:
        """Return this mapping for tables of the same names in another schema. All other objects that it names
        stay the same. This mapping must be one that `within` has returned.
        """
        tables = "|".join(f'"{re.escape(table)}"|{re.escape(table)}\\b' for table in self.reads)
        ours = (self.db_schema or "").replace("%", "%%")
        # The query itself may name the schema, with or without quotes.
        before = rf"{re.escape(sql_text.quote_name(ours))}|\b{re.escape(ours)}"
        name = re.compile(rf"(?:{before})\s*\.\s*({tables})")
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
        """Return a hash of 32 bits of the mapping and its ``place`` (database, schema).

        It depends on the queries and the rules of affects.toml, which decide what endpoints exist, what they
        contain, and which changes affect them. It does not depend on comments and file names.
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

        Partitions are locked too. Otherwise they would be locked only when a statement is planned, which is
        after it has taken its snapshot, and a partition that is emptied and filled again in between would
        look empty. LIMIT 0 locks them; a WHERE that is never true would not, since the planner would leave
        them out. LOCK TABLE would need a grant on the whole table.
        """
        tables = [sql_text.quote_name(table) for table in self.reads]
        if self.db_schema is not None:
            schema = sql_text.quote_name(self.db_schema.replace("%", "%%"))
            tables = [f"{schema}.{table}" for table in tables]
        return "\nUNION ALL\n".join(f"SELECT FROM {table}" for table in tables) + "\nLIMIT 0"

    def full(self, types: Map[str, KeyType] = NOTHING_KNOWN, id_type: KeyType = TEXT) -> str:
        """Return the statement that reads the whole mapping.

        ``types`` are the types of the columns of `Endpoints`. ``id_type`` is the type of its ids, with the
        length and the collation that decide how they compare.
        """
        endpoints = self._computed_once(self.queries["Endpoints"], types)
        return f"{self.header}\nUNION ALL\n{self._found(endpoints, types, id_type)}"

    def compose(
        self,
        kinds: Collection[str],
        types: Map[str, KeyType] = NOTHING_KNOWN,
        id_type: KeyType = TEXT,
    ) -> str:
        """Return the statement that reads the endpoints that keys of these kinds affect. The keys of each
        kind are one parameter (`key_types.parameter`). ``types`` and ``id_type`` are as in `full`.

        Each id is returned once, even if no endpoint has it any more. Keys of `key_columns` become a
        condition on the mapping: a plan's ripple then takes half the time, and its first rows arrive at once.
        Keys of other kinds are turned into ids first. These ids are joined to the mapping by an inner join,
        whose rows come first; the ids without an endpoint follow. An outer join would be evaluated last, and
        would compute the mapping's expressions for all endpoints (in `grove_jwt`, this takes three times as
        long).

        Raises:
            KeyError: there is no query for a kind.
            ValueError: ``kinds`` is empty.

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
        # One part for each kind, since no index helps with an OR over the columns of two tables. Each part
        # leaves out the rows of the parts before it.
        brought = [_NOT_IN.format("wanted", "mapping")] if by_id else []
        for kind in by_column:
            having = f"mapping.{self.key_columns[query_of(kind)]} = ANY({keys_of(kind)})"
            conditions = "\nAND ".join([having, *brought])
            having_keys = f"SELECT * FROM (\n{self.queries['Endpoints']}\n) AS mapping\nWHERE {conditions}"
            parts.append(self._found(self._computed_once(having_keys, types), types, id_type))
            brought.append(f"({having}) IS NOT TRUE")
        return (self._wanted(by_id, id_type) if by_id else "") + "\nUNION ALL\n".join(parts)

    def _wanted(self, kinds: Sequence[str], id_type: KeyType) -> str:
        """Return the WITH clause of a statement: the ids that queries find, and the endpoints that have
        them.
        """
        if not id_type.exact:
            return self._wanted_as_spelled(kinds, id_type)
        wanted = "\nUNION\n".join(
            f"SELECT wants.endpoint_id{id_type.cast} AS endpoint_id FROM (\n{self._ids(kind)}\n) AS wants"
            for kind in kinds
        )
        # A UNION removes duplicates; a single query needs a DISTINCT for that. Keys that are ids have no
        # duplicates. With a DISTINCT the planner would not know their number, and would look up 300,000 ids
        # one by one.
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
        """Return the same clause for a type whose values can be equal although they are spelled differently.

        Each spelling is looked up once. If the database considers two spellings equal, the endpoint has one
        of them, and the other one counts as deleted.
        """
        of_ids = id_type.kind(self.endpoint_keys) if self.endpoint_keys else None
        found = (
            # The mapping's own query is not used: it casts the keys to text, and a bpchar would lose its
            # blanks.
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

    def typed_queries(self, kinds: Iterable[str]) -> dict[str, str]:
        """Return the queries by name. The keys of each query are cast to the type of its first kind in
        ``kinds``.
        """
        found: dict[str, str] = {}
        for kind in kinds:
            name = query_of(kind)
            found.setdefault(name, self._ids(kind).replace(f"%({parameter(kind)})s", f"%({name})s"))
        return {**self.queries, **found}

    def _found(self, endpoints: str, types: Map[str, KeyType], id_type: KeyType) -> str:
        """Return the part of a statement that yields the endpoints of a query."""
        name = id_type.named("found.endpoint_id")
        columns = ", ".join(
            types.get(column, UNKNOWN).sent(f"found.{column}", as_text=column not in _AS_THEY_ARE)
            for column in self.columns
        )
        return f"SELECT NULL, NULL, {name}, true, {columns}\nFROM (\n{endpoints}\n) AS found"

    def _computed_once(self, endpoints: str, types: Map[str, KeyType]) -> str:
        """Return a query of endpoints such that the server computes each column once for each row, though
        `_found` names a column twice if it can be long. A constant NULL costs nothing.
        """
        query = self.queries["Endpoints"]
        for column in self.columns:
            known = types.get(column, UNKNOWN)
            if (
                known.computed
                and known.can_be_long
                and not re.search(_NULL.format(column), query, re.IGNORECASE)
            ):
                return f"SELECT * FROM (\n{endpoints}\n) AS computed OFFSET 0"
        return endpoints

    def _gone(self, id_type: KeyType) -> str:
        """Return the part of a statement that yields the requested ids that no endpoint has."""
        nothing = ", NULL" * len(self.columns)
        name, missing = id_type.printed("wanted.endpoint_id"), _NOT_IN.format("endpoint", "wanted")
        if not id_type.exact:
            name, spelling = "wanted.spelling", id_type.printed("endpoint.endpoint_id")
            missing = f"NOT EXISTS (SELECT 1 FROM endpoint WHERE {spelling} = {name})"
        # Keys come from the slot, so their length does not depend on the type of ids.
        return f"SELECT NULL, NULL, {TEXT.named(name)}, false{nothing}\nFROM wanted\nWHERE {missing}"

    def _columns(self, table: str) -> str:
        return ", ".join(f"{table}.{column}" for column in self.columns)

    def setup_statements(self, schema: str, role: str | None) -> list[str]:
        """Return the statements with which the owner of the tables prepares a database.

        Execute them one by one, in one session and in autocommit (an index is built CONCURRENTLY). They may
        be executed again. Without a role, the statements that name one are left out.
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
        ConfigurationError: there is no such mapping, or it has a fault; the text names the file.

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
        wait_for_locks=reading_query("WaitForLocks"),
        outside_types=reading_query("OutsideTypes"),
        types=reading_query("Types"),
    )


def placed(query: str, tables: Collection[str], schema: str) -> str:
    """Return a query, in psycopg2's form, with the schema before these tables' names and in place of
    ``:"schema"``.

    Raises:
        ValueError: a WITH gives the name of a table to something else.

    """
    named = schema.replace("%", "%%")
    return qualify(_PLACEHOLDER.sub(lambda found: _quoted(named, found["quote"]), query), tables, named)


def names_table(query: str, table: str) -> bool:
    """Return whether the text of a query names a table."""
    try:
        return qualify(query, {table}, "") != query
    except ValueError:  # a WITH gives the name to something else
        return False


def _quoted(text: str, quote: str) -> str:
    """Quote a name or a text for SQL. A backslash is an ordinary character, since standard_conforming_strings
    is on.
    """
    return quote + text.replace(quote, quote * 2) + quote


def _header(optional: Sequence[str]) -> str:
    """Return the first part of every statement that reads, with a NULL for each optional column."""
    header = reading_query("Header")
    last = f"NULL AS {COLUMNS[-1]}"
    return header.replace(last, ",\n    ".join((last, *(f"NULL AS {column}" for column in optional))))
