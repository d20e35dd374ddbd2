"""Reads the definitions of the mapping's tables from the catalog: partitions, replica identities, columns.

The stream does not contain DDL. So the definitions are compared from time to time, and when they have changed
the stream is started again.
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
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from psycopg2.extras import ReplicationCursor

    from cdc.mapping.mapping import Mapping as EndpointMapping
    from cdc.mapping.mapping import Rule
    from cdc.postgres.database import Database


@dataclass(frozen=True)
class Relation:
    """A table as the plugin names it: a mapped table, or a partition of one."""

    oid: int
    mapped: str
    schema: str
    table: str
    partitioned: bool
    """Whether the table is partitioned, so that it has no rows of its own."""
    logged: bool
    """Whether the table's changes are in the WAL. Those of unlogged and of foreign tables are not."""
    identity: tuple[str, ...]
    """The columns of the old row that an update or delete contains."""
    virtual: tuple[str, ...]
    """The generated columns whose values are not in the WAL. The plugin sends null for them, or leaves them
    out.
    """
    shape: str
    """A value that differs after every change of the table's definition."""


@dataclass(frozen=True)
class Relations:
    """All tables and their publication at one moment."""

    all: tuple[Relation, ...]
    published_as: str | None = None
    """A value that differs after every change of the publication; None if there is no publication or none is
    needed.
    """
    next_xid: Xid = field(default=Xid(0), compare=False)
    """The next transaction id to be assigned."""
    types: Mapping[tuple[str, str], KeyType] = field(default_factory=dict)
    """The key types of the columns in the rules, by table and column."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]], columns: Iterable[Sequence[Any]] = ()) -> Relations:
        """Make a value from the rows of the queries ``Relations`` and ``KeyColumns``."""
        relations = []
        of_all: tuple[str | None, Xid] = (None, Xid(0))
        for oid, mapped, schema, table, partitioned, logged, identity, virtual, shape, *shared in rows:
            columns_of = tuple(identity), tuple(virtual)
            relations.append(Relation(oid, mapped, schema, table, partitioned, logged, *columns_of, shape))
            of_all = tuple(shared)
        return cls(tuple(relations), *of_all, of_columns(columns))

    def names(self) -> dict[tuple[str, str], str]:
        """Return the mapping's table for each (schema, table) that the plugin names."""
        return {(one.schema, one.table): one.mapped for one in self.all}

    def nameless(self, rules: Mapping[str, Sequence[Rule]]) -> list[Rule]:
        """Return the rules whose parents are not in the WAL, given the current replica identities."""
        return [
            rule
            for table, of_table in self._typed(rules).items()
            for rule in of_table
            if rule.parents is not None
            and any(one.mapped == table and rule.column not in one.identity for one in self.all)
        ]

    def rules(self, rules: Mapping[str, Sequence[Rule]]) -> dict[str, tuple[Rule, ...]]:
        """Return the rules for a stream of these tables. Tables whose parents are in the WAL need no memory
        of parents.

        A row that was written with an older replica identity, without the parent, causes a reconcile.
        """
        nameless = self.nameless(rules)
        return {
            table: tuple(
                rule if rule in nameless else replace(rule, row=None, parents=None) for rule in of_table
            )
            for table, of_table in self._typed(rules).items()
        }

    def _typed(self, rules: Mapping[str, Sequence[Rule]]) -> dict[str, tuple[Rule, ...]]:
        """Return the rules with the types in which their keys are compared."""
        return {table: tuple(map(self._with_type, of_table)) for table, of_table in rules.items()}

    def _with_type(self, rule: Rule) -> Rule:
        of_column = self.types.get((rule.table, rule.column), TEXT)
        return replace(rule, kind=of_column.kind(rule.query), sent_as_null=of_column.sent_as_null)

    def keyless(self, rules: Mapping[str, Sequence[Rule]]) -> list[str]:
        """Return the tables whose updates or deletes matter, but which wal2json silently leaves out."""
        return [
            f"{one.schema}.{one.table}"
            for one in self.all
            if one.logged
            and not one.identity
            and not one.partitioned
            and any(rule.actions & {"update", "delete"} for rule in rules[one.mapped])
        ]

    def unlogged(self, tables: Collection[str]) -> list[str]:
        """Return the tables of ``tables``, and their partitions, whose changes are not in the WAL."""
        return [f"{one.schema}.{one.table}" for one in self.all if not one.logged and one.mapped in tables]

    def virtual_keys(self, keys: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
        """Return (table, column) for each key whose value is not in the WAL. ``keys`` are the `needed`
        columns of the mapping's tables.
        """
        return [
            (f"{one.schema}.{one.table}", column)
            for one in self.all
            for column in one.virtual
            if column in keys.get(one.mapped, ())
        ]


class Catalog:
    """Reads the tables' definitions: for the slot's reader, which begins a stream with them, and for the
    applier, which watches for changes.
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
        """``publication`` is used with pgoutput only. ``slot`` is the name of our slot."""
        self._queries = queries
        self._mapping = mapping
        self._schema = schema
        self._slot = slot
        self._publication = publication
        self._published = False
        """Whether the stream depends on the publication."""
        self._streamed = Relations(())

    def assemble(self, cursor: ReplicationCursor, plugin: str) -> SlotStream:
        """Return the options, the decoder and the assembler for a new stream.

        Raises:
            Refusal: a table of the mapping does not exist.
            SourceError: with the current publication, pgoutput would leave out something that is needed.

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
                    f"the mapping {self._mapping.name} needs the table {self._schema}.{table}, which does not"
                    " exist (a view or a foreign table is not enough, since the WAL has no rows of it):"
                    " create it, or correct MAPPING and DB_SCHEMA"
                )
        names, rules = relations.names(), relations.rules(self._mapping.rules)
        if self._published:  # pgoutput sends NaN and infinity as text, not as null
            rules = {
                table: tuple(replace(rule, sent_as_null=()) for rule in of_table)
                for table, of_table in rules.items()
            }
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
        """Return the publication if it sends everything that is needed; raise otherwise."""
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
            raise SourceError(
                "publication", f"{wrong}; run pads-cdc setup, or run pads-cdc check for the remedy"
            )
        return publication

    def look(self, database: Database) -> Relations:
        """Return the current definitions, and adopt them for the stream if it can continue with them. The
        caller must reconcile: even then a change of a definition may have changed endpoints.
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
        """Return the tables whose changes the stream silently leaves out, each with the reason.

        If a publication leaves out updates, that is an error and the stream is not read at all.
        """
        reads, rules = self._mapping.reads, self._mapping.rules
        unlogged = relations.unlogged(reads)
        virtual = relations.virtual_keys({table: needed(rules[table]) for table in reads})
        keyless = [] if self._published else relations.keyless(rules)
        return [
            *(f"changes of {table}, which are not in the WAL" for table in unlogged),
            *(f"{column} of {table}, a virtual generated column" for table, column in virtual),
            *(f"updates and deletes of {table}, which has no replica identity" for table in keyless),
        ]

    def refusing(self, database: Database, relations: Relations) -> list[str]:
        """Return the tables whose UPDATEs and DELETEs Postgres refuses, for every session, because of the
        publication.
        """
        if not self._published:
            return []
        tables = [one.oid for one in relations.all]
        parameters = {"publication": self._publication, "slot": self._slot, "tables": tables}
        publication = Publication.of(
            self._publication, database.query(self._queries["Publication"], parameters)
        )
        return [] if publication is None else [one.name for one in publication.tables if one.refuses]

    def changed(self, relations: Relations) -> bool:
        """Return whether the definitions differ from those that the stream was started with."""
        return relations != self._streamed

    def ask(self, database: Database) -> Relations:
        """Return the current definitions."""
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
