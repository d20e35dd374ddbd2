"""What the database's catalog says of the mapping's tables: their partitions, identities and shapes.

DDL sends no rows. So the shape of the tables is compared now and then, and the stream starts over with a new
list of tables when it has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cdc.errors import Refusal, SourceError
from cdc.mapping.key_types import TEXT, KeyType, of_columns
from cdc.postgres.encoding import Encoding
from cdc.replication import pgoutput, wal2json
from cdc.replication.assembler import Assembler
from cdc.replication.publication import Publication, fault, needed
from cdc.replication.stream import SlotStream
from cdc.units import Xid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg2.extras import ReplicationCursor

    from cdc.mapping.mapping import Mapping as EndpointMapping
    from cdc.mapping.mapping import Rule
    from cdc.postgres.database import Database


@dataclass(frozen=True)
class Relation:
    """A table as the plugin names it: a mapped one, or a partition of it."""

    oid: int
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
    published_as: str | None = None
    """Changes with everything about the publication; None where there is none, or it is not asked for."""
    next_xid: Xid = field(default=Xid(0), compare=False)
    """32 bits: no transaction had it yet."""
    types: Mapping[tuple[str, str], KeyType] = field(default_factory=dict)
    """Of the columns that rules name, by table and column."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]], columns: Iterable[Sequence[Any]] = ()) -> Relations:
        """Read the rows of the queries ``Relations`` and ``KeyColumns``."""
        relations = []
        of_all: tuple[str | None, Xid] = (None, Xid(0))
        for oid, mapped, schema, table, partitioned, identity, shape, published_as, next_xid in rows:
            relations.append(Relation(oid, mapped, schema, table, partitioned, tuple(identity), shape))
            of_all = published_as, next_xid
        return cls(tuple(relations), *of_all, of_columns(columns))

    def names(self) -> dict[tuple[str, str], str]:
        """Return (schema, table) as the plugin says it, to the mapping's table."""
        return {(one.schema, one.table): one.mapped for one in self.all}

    def nameless(self, rules: Mapping[str, Sequence[Rule]]) -> list[Rule]:
        """Return the rules whose parent the WAL does not name, by the replica identities that the tables have
        now.
        """
        return [
            rule
            for table, of_table in self._typed(rules).items()
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
            for table, of_table in self._typed(rules).items()
        }

    def _typed(self, rules: Mapping[str, Sequence[Rule]]) -> dict[str, tuple[Rule, ...]]:
        """Return the rules with what their keys are compared as."""
        return {table: tuple(map(self._with_type, of_table)) for table, of_table in rules.items()}

    def _with_type(self, rule: Rule) -> Rule:
        of_column = self.types.get((rule.table, rule.column), TEXT)
        return replace(rule, kind=of_column.kind(rule.query), hides_nan=of_column.hides_nan)

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

    def __init__(
        self,
        queries: Mapping[str, str],
        mapping: EndpointMapping,
        schema: str,
        *,
        slot: str = "",
        publication: str = "",
    ) -> None:
        """``publication`` is looked at where the plugin is pgoutput; ``slot`` is read by it."""
        self._queries = queries
        self._mapping = mapping
        self._schema = schema
        self._slot = slot
        self._publication = publication
        self._published = False
        """The stream depends on the publication."""
        self._streamed = Relations(())

    def assemble(self, cursor: ReplicationCursor, plugin: str) -> SlotStream:
        """Return what a new stream is begun and read with.

        Raises:
            Refusal: a table of the mapping is not there.
            SourceError: pgoutput would leave something out, as the publication stands.

        """
        self._published = plugin == pgoutput.NAME
        cursor.execute(self._queries["KeyColumns"], self._parameters())
        columns = cursor.fetchall()
        cursor.execute(self._queries["Relations"], self._parameters())
        relations = Relations.of(cursor.fetchall(), columns)
        found = {one.mapped for one in relations.all}
        for table in self._mapping.reads:  # a signal table may be missing
            if table not in found:
                raise Refusal(
                    f"the mapping {self._mapping.name} needs the table {self._schema}.{table},"
                    " which is not there: create it, or correct MAPPING and DB_SCHEMA"
                )
        names, rules = relations.names(), relations.rules(self._mapping.rules)
        encoding = Encoding.of(cursor.connection)
        stream = SlotStream(
            Assembler(names, rules), wal2json.Wal2JsonDecoder(encoding), wal2json.options(names)
        )
        if self._published:
            publication = self._sound(cursor, relations)
            wanted = {name: needed(rules[table]) for name, table in names.items()}
            stream = SlotStream(
                stream.assembler,
                pgoutput.PgoutputDecoder(wanted, encoding),
                pgoutput.options(self._publication),
                encoding,
                publication.version,
                publication.suspects,
            )
        self._streamed = relations
        return stream

    def _sound(self, cursor: ReplicationCursor, relations: Relations) -> Publication:
        """Return the publication, if it lets through everything that we need."""
        name = self._publication
        tables = [one.oid for one in relations.all]
        parameters = {"publication": name, "slot": self._slot, "tables": tables}
        cursor.execute(self._queries["Publication"], parameters)
        publication = Publication.of(name, cursor.fetchall())
        rules = self._mapping.rules
        wanted = [
            (one.oid, f"{one.schema}.{one.table}", needed(rules[one.mapped]))
            for one in relations.all
            if not one.partitioned
        ]
        wrong = fault(name, publication, wanted)
        if wrong is not None or publication is None:
            raise SourceError("publication", f"{wrong}; run pads-cdc setup, or see what pads-cdc check says")
        return publication

    def look(self, database: Database) -> Relations:
        """Return how the tables are now; a read that follows covers whatever has changed in their shape,
        unless the stream needs other tables or rules, or goes by another publication.
        """
        relations, rules, streamed = self.ask(database), self._mapping.rules, self._streamed
        database.forget_types()
        if (relations.names(), relations.rules(rules), relations.published_as, relations.types) == (
            streamed.names(),
            streamed.rules(rules),
            streamed.published_as,
            streamed.types,
        ):
            self._streamed = relations
        return relations

    def lossy(self, relations: Relations) -> list[str]:
        """Return the tables whose updates or deletes the plugin loses without a word."""
        return [] if self._published else relations.lossy(self._mapping.rules)

    def refusing(self, database: Database, relations: Relations) -> list[str]:
        """Return the tables whose UPDATEs and DELETEs fail, for everybody, because of the publication."""
        if not self._published:
            return []
        tables = [one.oid for one in relations.all]
        parameters = {"publication": self._publication, "slot": self._slot, "tables": tables}
        publication = Publication.of(
            self._publication, database.query(self._queries["Publication"], parameters)
        )
        return [] if publication is None else [one.name for one in publication.tables if one.refuses]

    def changed(self, relations: Relations) -> bool:
        """Tell whether the tables are other ones than those that the stream was started with."""
        return relations != self._streamed

    def ask(self, database: Database) -> Relations:
        """Return how the tables are now."""
        rows, columns = (
            database.query(self._queries[name], self._parameters()) for name in ("Relations", "KeyColumns")
        )
        return Relations.of(rows, columns)

    def _parameters(self) -> dict[str, Any]:
        columns = {rule.column for of_table in self._mapping.rules.values() for rule in of_table}
        return {
            "schema": self._schema,
            "tables": list(self._mapping.tables),
            "signals": list(self._mapping.signals),
            "columns": sorted(columns),
            "publication": self._publication if self._published else None,
        }
