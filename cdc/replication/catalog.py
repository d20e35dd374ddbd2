"""What the database's catalog says of the mapping's tables: their partitions, identities and shapes.

DDL sends no rows. So the shape of the tables is compared now and then, and the stream starts over with a new
list of tables when it has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdc.errors import Refusal
from cdc.replication import wal2json
from cdc.replication.assembler import Assembler

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg2.extras import ReplicationCursor

    from cdc.mapping.mapping import Mapping as EndpointMapping
    from cdc.mapping.mapping import Rule
    from cdc.postgres.database import Database


@dataclass(frozen=True)
class Relation:
    """A table as the plugin names it: a mapped one, or a partition of it."""

    mapped: str
    schema: str
    table: str
    partitioned: bool
    """It has no rows of its own."""
    identity: tuple[str, ...]
    """The columns that an update or delete carries of the old row."""
    shape: str
    """Changes with everything about the table that sends no rows."""


@dataclass(frozen=True)
class Relations:
    """All of them at one moment."""

    all: tuple[Relation, ...]

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> Relations:
        """Read the rows of the query ``Relations``."""
        return cls(
            tuple(
                Relation(mapped, schema, table, partitioned, tuple(identity), shape)
                for mapped, schema, table, partitioned, identity, shape in rows
            )
        )

    def names(self) -> dict[tuple[str, str], str]:
        """Return (schema, table) as the plugin says it, to the mapping's table."""
        return {(one.schema, one.table): one.mapped for one in self.all}

    def nameless(self, rules: Mapping[str, Sequence[Rule]]) -> list[Rule]:
        """Return the rules whose parent the WAL does not name, by the replica identities that the tables have
        now.
        """
        return [
            rule
            for table, of_table in rules.items()
            for rule in of_table
            if rule.parents is not None
            and any(one.mapped == table and rule.column not in one.identity for one in self.all)
        ]

    def rules(self, rules: Mapping[str, Sequence[Rule]]) -> dict[str, tuple[Rule, ...]]:
        """Return the rules for a stream of these tables: without memory where the WAL names the parent.

        A row that does not name it after all, since the identity was another one when it was written, then
        asks for a reconcile.
        """
        nameless = self.nameless(rules)
        return {
            table: tuple(
                rule if rule in nameless else replace(rule, row=None, parents=None) for rule in of_table
            )
            for table, of_table in rules.items()
        }

    def lossy(self, rules: Mapping[str, Sequence[Rule]]) -> list[str]:
        """Return the tables whose updates or deletes matter, and which the plugin loses without a word."""
        return [
            f"{one.schema}.{one.table}"
            for one in self.all
            if not one.identity
            and not one.partitioned
            and any(rule.actions & {"update", "delete"} for rule in rules[one.mapped])
        ]


class Catalog:
    """Looks at the tables for the reader (with which the stream starts) and for the applier (what has
    changed since).
    """

    def __init__(self, query: str, mapping: EndpointMapping, schema: str) -> None:
        self._query = query
        self._mapping = mapping
        self._schema = schema
        self._streamed = Relations(())

    def assemble(self, cursor: ReplicationCursor) -> tuple[Assembler, list[str]]:
        """Return an assembler for a new stream, and the list of tables that the stream is to be started with.

        Raises:
            Refusal: a table of the mapping is not there.

        """
        cursor.execute(self._query, self._parameters())
        relations = Relations.of(cursor.fetchall())
        found = {one.mapped for one in relations.all}
        for table in self._mapping.reads:  # a signal table may be missing
            if table not in found:
                raise Refusal(
                    f"the mapping {self._mapping.name} needs the table {self._schema}.{table},"
                    " which is not there: create it, or correct MAPPING and DB_SCHEMA"
                )
        self._streamed = relations
        names = relations.names()
        return Assembler(names, relations.rules(self._mapping.rules)), [
            wal2json.escape_table(*name) for name in names
        ]

    def look(self, database: Database) -> Relations:
        """Return how the tables are now; a read that follows covers whatever has changed in their shape,
        unless the stream needs other tables or rules.
        """
        relations, rules = self._ask(database), self._mapping.rules
        if (relations.names(), relations.rules(rules)) == (
            self._streamed.names(),
            self._streamed.rules(rules),
        ):
            self._streamed = relations
        return relations

    def changed(self, database: Database) -> bool:
        """Tell whether the tables are other ones than those that the stream was started with."""
        return self._ask(database) != self._streamed

    def _ask(self, database: Database) -> Relations:
        return Relations.of(database.query(self._query, self._parameters()))

    def _parameters(self) -> dict[str, Any]:
        return {"schema": self._schema, "tables": list(self._mapping.tables)}
