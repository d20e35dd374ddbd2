"""The mapping's tables as the catalog describes them, and the replica identities, unique keys and indexes
that they need.

The mapping defines these needs. Its rules say which column an update or delete has to contain, ``schema.sql``
says which keys are unique, and ``setup.sql`` says which indexes make ripples fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdc.mapping import sql_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cdc.mapping.mapping import Mapping

    Ask = Callable[..., list[tuple[Any, ...]]]
    """Runs a query of sql/server.sql by its name, with its parameters as keywords."""

_SCHEMA = re.compile(r'("(?:[^"]|"")*"|[^".]+)\.')


@dataclass(frozen=True)
class Index:
    """An index, which is in the schema of its table."""

    raw_name: str
    name: str
    """The quoted name, without a schema, as ALTER TABLE needs it."""
    full_name: str
    """The quoted name, with its schema."""
    columns: tuple[str, ...]
    primary: bool
    unique: bool
    valid: bool
    identity: bool
    """Whether REPLICA IDENTITY USING INDEX names this index."""
    plain: bool
    """Whether it is neither partial nor over expressions."""
    may_identify: bool
    """Whether the index can be the replica identity: it is unique, immediate and `plain`, and its columns are
    all NOT NULL.
    """
    comment: str | None


@dataclass(frozen=True)
class Table:
    """A table of the mapping, or a partition of one; its name is qualified and quoted."""

    oid: int
    mapped: str
    top: bool
    """Whether the queries name this table. If False, it is a partition of a table that they name."""
    name: str
    kind: str
    """``r`` is a table, ``p`` a partitioned table; ``v``, ``m`` and ``f`` are relations whose changes are not
    in the WAL.
    """
    logged: bool
    identity_kind: str
    """``d``efault (the primary key), ``i``ndex, ``f``ull or ``n``othing."""
    columns: tuple[str, ...]
    virtual: tuple[str, ...]
    """The generated columns whose values are not stored, so that they are not in the WAL."""
    unpublished: tuple[str, ...]
    """The generated columns that pgoutput cannot send: the `virtual` ones, and before PostgreSQL 18 all of
    them.
    """
    refuses_if_published: bool
    """Whether Postgres refuses UPDATEs of the table if it is in a publication. This is so since PostgreSQL
    18, if its identity is FULL and it has a generated column that is not published.
    """
    row_security: bool
    hides_rows: bool
    """Whether row-level security hides rows from us."""
    readable: bool
    writable: bool
    indexes: tuple[Index, ...]

    @property
    def schema(self) -> str:
        """The quoted schema of the table and its indexes."""
        found = _SCHEMA.match(self.name)
        return found[1] if found else ""

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns of the old row that an update or delete contains. If there are none, such changes are
        lost.
        """
        if self.identity_kind == "f":
            return self.columns
        index = self.identity_index
        return index.columns if index else ()

    @property
    def identity_index(self) -> Index | None:
        """The index that is the replica identity; None if the identity is FULL or NOTHING, or has lost its
        index.
        """
        for index in self.indexes:
            chosen = index.primary if self.identity_kind == "d" else index.identity
            if self.identity_kind in "di" and chosen and index.may_identify and index.valid:
                return index
        return None

    def identifier(self, column: str | None = None) -> Index | None:
        """Return the index with the fewest columns that could be the identity, or None. If a column is given,
        the index must have it.
        """
        for index in self.indexes:
            if index.may_identify and index.valid and (column is None or column in index.columns):
                return index
        return None


@dataclass(frozen=True)
class WantedIndex:
    """An index of ``setup.sql``."""

    name: str
    table: str
    columns: tuple[str, ...]

    def lacked_by(self, tables: Iterable[Table]) -> Iterator[Table]:
        """Yield the tables that lack such an index: the table itself, or its partitions. Tables that lack the
        index's columns are left out.
        """
        for table in tables:
            ours = table.mapped == self.table and table.kind == "r"
            if ours and {*self.columns} <= {*table.columns} and self.answered_by(table) is None:
                yield table

    def name_on(self, table: Table) -> str:
        """Return the name of the index on a table. The indexes of partitions need different names within a
        schema.
        """
        return self.name if table.top else f"{self.name}_{table.oid}"

    def create_on(self, table: Table) -> str:
        """Return the statement that creates the index on a table without blocking writers."""
        return f"CREATE INDEX CONCURRENTLY {self.name_on(table)} ON {table.name} ({', '.join(self.columns)});"

    def answered_by(self, table: Table) -> Index | None:
        """Return an index of the table that serves the same purpose; None if there is none."""
        for index in table.indexes:
            if index.valid and index.plain and index.columns[: len(self.columns)] == self.columns:
                return index
        return None


def look(ask: Ask, mapping: Mapping, schema: str) -> tuple[Table, ...]:
    """Read the mapping's tables and their partitions, with all indexes, in two queries."""
    rows = ask("MappedTables", schema=schema, tables=list(mapping.tables), signals=list(mapping.signals))
    of_table: dict[int, list[Index]] = {}
    for table, *index in ask("MappedIndexes", tables=[row[0] for row in rows]):
        of_table.setdefault(table, []).append(Index(*_fields(index)))
    return tuple(Table(*_fields([*row, of_table.get(row[0], [])])) for row in rows)


def followed(tables: Iterable[Table], mapping: Mapping) -> Iterator[Table]:
    """Yield the tables whose updates and deletes matter. Signal tables are left out, since only their inserts
    matter. A partitioned table is replaced by its partitions.
    """
    return (table for table in tables if table.mapped in mapping.reads and table.kind == "r")


def column_to_name(mapping: Mapping, table: str) -> str | None:
    """Return the column of a table that has the parents, if parents may have to be remembered. They need not
    be if the replica identity includes this column.
    """
    for rule in mapping.rules[table]:
        if rule.parents is not None:
            return rule.column
    return None


def keys(mapping: Mapping) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield (table, columns) for each primary key and UNIQUE constraint in ``schema.sql``, for the tables
    that the mapping reads.
    """
    return ((table, columns) for table, columns in sql_text.keys(mapping.schema) if table in mapping.reads)


def wanted_indexes(mapping: Mapping) -> Iterator[WantedIndex]:
    """Yield the indexes that ``setup.sql`` creates."""
    return (WantedIndex(*index) for index in sql_text.indexes(mapping.setup))


def _fields(row: Iterable[Any]) -> list[Any]:
    """Return a row's values in the form that the fields of a frozen class need. The fields are in the order
    of the query's columns.
    """
    return [tuple(value) if isinstance(value, list) else value for value in row]
