"""The file affects.toml of a mapping: the rules that say which rows affect which endpoints. It is checked at
the start.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from cdc.errors import ConfigurationError
from cdc.mapping import sql_text
from cdc.mapping.query_shape import takes_away, uses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from collections.abc import Mapping as Map
    from pathlib import Path

DELETED = ("deleted", "deleted_at")
"""Columns by which portals mark rows as deleted."""
ACTIONS = frozenset({"insert", "update", "delete"})

_FILE_KEYS = frozenset({"reads", "signals", "honours_deleted", "endpoint_keys", "key_columns", "affects"})
_RULE_KEYS = frozenset({"table", "column", "query", "row", "parents", "actions"})


@dataclass(frozen=True)
class Rule:
    """A changed row of ``table`` affects the endpoints that ``query`` finds for the new value of its
    ``column``, and for the old one.
    """

    table: str
    column: str
    query: str
    """The query that turns keys into endpoint ids."""
    row: str | None = None
    """The column with the row's own id. A delete contains it, even if the delete does not contain ``column``.
    """
    parents: str | None = None
    """The query that lists (row id, key). It loads the memory of parents (`cdc.mapping.parents`)."""
    actions: frozenset[str] = ACTIONS
    kind: str = field(default="", compare=False)
    """The kind of the keys: the query, followed by the type in which keys are compared unless it is text
    (`cdc.mapping.key_types`). The type is known once a stream begins. Comparisons of rules ignore the kind.
    """
    sent_as_null: tuple[str, ...] = field(default=(), compare=False)
    """The keys that wal2json sends as null: NaN and infinity."""
    only_asks: bool = field(default=False, compare=False)
    """Whether the table is a signal table: its rows ask for endpoints, which need not exist."""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.query)

    @property
    def queries(self) -> tuple[str, ...]:
        """The names of the queries that the rule uses."""
        return (self.query,) if self.parents is None else (self.query, self.parents)


class AffectsFile:
    """One affects.toml, checked against schema.sql and queries.sql beside it. Errors name the file and the
    key.
    """

    def __init__(
        self, path: Path, text: str, columns: Map[str, frozenset[str]], queries: Map[str, str]
    ) -> None:
        """``columns`` has the columns of each table in schema.sql; ``queries`` are by name, with
        ``@parameters``.

        Raises:
            ConfigurationError: something in the file is wrong. `rules` and `key_columns` raise it too.

        """
        self._path, self._columns, self._queries = path, columns, queries
        try:
            self._toml = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path}: not TOML: {error}") from error
        self._no_other_keys("the file", self._toml, _FILE_KEYS)
        self.reads = self._tables("reads")
        self.signals = self._tables("signals")
        self.honours_deleted = frozenset(self._tables("honours_deleted")) | self._marked()
        for table in sorted(self.honours_deleted):
            if not self._columns[table].intersection(DELETED):
                raise self._wrong(f"honours_deleted: {table}", f"it has no column {' or '.join(DELETED)}")
        if not self.reads:
            raise self._wrong("reads", "names no table: list those that the queries read")
        self.endpoint_keys: str | None = None
        if "endpoint_keys" in self._toml:
            self.endpoint_keys = self._text("the file", self._toml, "endpoint_keys")
            self._query("endpoint_keys", self.endpoint_keys, {"keys"})

    def _marked(self) -> frozenset[str]:
        """Return the tables whose column ``deleted`` or ``deleted_at`` the query Endpoints uses."""
        query = self._queries.get("Endpoints", "")
        return frozenset(
            table
            for table, columns in self._columns.items()
            if any(mark in columns and uses(query, table, mark, self._columns) for mark in DELETED)
        )

    def key_columns(self, columns: Collection[str]) -> dict[str, str]:
        """Return the queries in ``key_columns``, each with the column of Endpoints that contains its keys.

        ``columns`` are the columns of Endpoints.
        """
        where, given = "key_columns", self._toml.get("key_columns", {})
        if not isinstance(given, dict):
            raise self._wrong(where, 'must be a table, { query = "column" }')
        # If rows of a table also contain their endpoints' ids, these ids find the endpoints that are gone.
        named = {rule.table for rule in self._rules() if rule.query == self.endpoint_keys}
        removing = takes_away(self._queries["Endpoints"], self._columns) - named
        found = {query: self._text(where, given, query) for query in given}
        for query, column in found.items():
            self._query(where, query, {"keys"})
            if query == self.endpoint_keys:
                raise self._wrong(where, f"{query} is in endpoint_keys: its keys may be deleted ids")
            if column not in columns:
                raise self._wrong(f"{where} {query}", f"Endpoints has no column {column}")
            for rule in self._rules():
                if rule.query == query and rule.table in removing:
                    text = (
                        f"rows of {rule.table} can take endpoints away (by a WHERE or an inner join of"
                        " Endpoints), and only their ids lead to such endpoints: leave this query out of"
                        " key_columns"
                    )
                    raise self._wrong(f"{where} {query}", text)
        return found

    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """Return the rules by table; each table has at least one."""
        rules = self._rules()
        by_table = {
            table: tuple(rule for rule in rules if rule.table == table) for table in self.reads + self.signals
        }
        for table, of_table in by_table.items():
            if not of_table:
                raise self._wrong(
                    table,
                    "no [[affects]] says what its rows affect: add one with this table, the column that names"
                    " the endpoints or their parent, and the query that finds them",
                )
            left_out = ACTIONS.difference(*(rule.actions for rule in of_table))
            if table in self.reads and left_out:
                raise self._wrong(
                    table,
                    f"its [[affects]] entries leave out {', '.join(sorted(left_out))}: such changes would be"
                    " missed, so take `actions` out of them",
                )
        return by_table

    def _rules(self) -> list[Rule]:
        entries = self._toml.get("affects", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._wrong("affects", "must be [[affects]] tables")
        return [self._rule(f"[[affects]] {number}", entry) for number, entry in enumerate(entries, 1)]

    def _rule(self, where: str, entry: dict[str, Any]) -> Rule:
        self._no_other_keys(where, entry, _RULE_KEYS)
        table, column, query = (self._text(where, entry, key) for key in ("table", "column", "query"))
        row, parents = (self._text(where, entry, key) if key in entry else None for key in ("row", "parents"))
        if table not in self.reads + self.signals:
            raise self._wrong(
                f"{where} table", f'{table} is neither in reads nor in signals: add "{table}" to reads'
            )
        self._column(f"{where} column", table, column)
        self._query(f"{where} query", query, {"keys"})
        if (row is None) != (parents is None):
            raise self._wrong(where, "row and parents only make sense together")
        if row is not None and parents is not None:
            self._column(f"{where} row", table, row)
            self._query(f"{where} parents", parents, set())
        actions = self._texts(where, entry, "actions") if "actions" in entry else ACTIONS
        if not actions or not ACTIONS.issuperset(actions):
            raise self._wrong(f"{where} actions", f"must be some of {', '.join(sorted(ACTIONS))}")
        return Rule(table, column, query, row, parents, frozenset(actions), only_asks=table in self.signals)

    def _tables(self, key: str) -> tuple[str, ...]:
        tables = self._texts("the file", self._toml, key) if key in self._toml else []
        for table in tables:
            if table not in self._columns:
                raise self._wrong(key, f"schema.sql creates no table {table}")
        return tuple(tables)

    def _column(self, where: str, table: str, column: str) -> None:
        if column not in self._columns[table]:
            raise self._wrong(where, f"{table} has no column {column} in schema.sql")

    def _query(self, where: str, name: str, parameters: set[str]) -> None:
        if name not in self._queries:
            raise self._wrong(where, f"queries.sql has no query {name}")
        if sql_text.parameters(self._queries[name]) != parameters:
            takes = ", ".join(f"@{one}" for one in parameters) or "no parameters"
            raise self._wrong(where, f"the query {name} must take {takes}")

    def _text(self, where: str, entry: Map[str, Any], key: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(f"{where} {key}", "is missing" if value is None else "must be a name")
        return value

    def _texts(self, where: str, entry: Map[str, Any], key: str) -> list[str]:
        value = entry[key]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(f"{where} {key}", "must be a list of names")
        return cast("list[str]", value)

    def _no_other_keys(self, where: str, entry: Iterable[str], known: frozenset[str]) -> None:
        for key in entry:
            if key not in known:
                raise self._wrong(where, f"unknown key {key}; known are {', '.join(sorted(known))}")

    def _wrong(self, where: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path}: {where}: {what}")
