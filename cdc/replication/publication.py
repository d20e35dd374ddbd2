"""The publication: what pgoutput may send, and whether that is all that we need.

It names, for each table, only the columns that the mapping's rules need, so that API keys never enter the
replication stream. Postgres takes such a list seriously: while it lacks a column of the table's replica
identity, or the table has none, **every UPDATE and DELETE of that table fails, for everybody** (invariant
10). Nothing here or in `setup` makes such a state, and whatever finds one says so.

pgoutput decides by the catalog as it was when a row was *written*. So a publication that is sound now may
still leave out rows of transactions that began before it was: those have to be over before everything is read
once more (`Publication.suspects`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cdc.postgres.gate import Snapshot
from cdc.units import Xid8

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cdc.mapping.mapping import Rule

_ACTIONS: Final = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True)
class PublishedTable:
    """A table that is published."""

    oid: int
    name: str
    """Qualified and quoted."""
    columns: tuple[str, ...]
    filtered: bool
    """Only rows that fulfil a condition."""
    refuses: bool
    """Postgres refuses UPDATEs and DELETEs of it, for everybody."""


@dataclass(frozen=True)
class Publication:
    """A publication at one moment. Two are equal if nothing has changed it in between."""

    name: str
    actions: frozenset[str]
    by_itself: bool
    """FOR ALL TABLES, or IN SCHEMA: without lists of columns, and with tables that nobody named."""
    via_root: bool
    """Partitions are called by their table's name, and a TRUNCATE of one of them is not sent."""
    version: str
    comment: str | None
    tables: tuple[PublishedTable, ...]
    """Of a partitioned table its partitions, unless `via_root`."""
    members: frozenset[int]
    """The oids of the tables that it names itself."""
    settled: bool = field(compare=False)
    """The slot sends no transaction any more that began before the newest change."""
    next_xid: Xid8 = field(compare=False)
    """64 bits: no transaction had it when this was read."""

    @classmethod
    def of(cls, name: str, rows: Iterable[Sequence[Any]]) -> Publication | None:
        """Read the row of the query ``Publication``; None where there is no such publication."""
        for (
            actions,
            by_itself,
            via_root,
            version,
            comment,
            settled,
            snapshot,
            next_xid,
            tables,
            members,
        ) in rows:
            published = (
                PublishedTable(oid, table, tuple(columns), *flags) for oid, table, columns, *flags in tables
            )
            return cls(
                name=name,
                actions=frozenset(actions),
                by_itself=by_itself,
                via_root=via_root,
                version=version,
                comment=comment,
                tables=tuple(published),
                members=frozenset(members),
                settled=settled,
                next_xid=Snapshot.parse(snapshot).widen(next_xid),
            )
        return None

    def table(self, oid: int) -> PublishedTable | None:
        """Return a table, if it is published."""
        for one in self.tables:
            if one.oid == oid:
                return one
        return None

    @property
    def suspects(self) -> Xid8:
        """Transactions below this id (64 bits) may have changed rows that are not sent; 0 if there are none
        such.
        """
        return Xid8(0) if self.settled else self.next_xid

    @property
    def unsent(self) -> list[str]:
        """The actions that are left out."""
        return [action for action in _ACTIONS if action not in self.actions]


@dataclass(frozen=True)
class Restriction:
    """What a publication, anybody's, asks of a table's replica identity. While the identity does not comply,
    Postgres refuses every UPDATE of the table, whoever reads the publication.
    """

    oid: int
    publication: str
    columns: tuple[str, ...] | None
    """The list that all of the identity has to be in; None without one."""
    filtered: bool
    """It has a condition, whose columns have to be in the identity. They are not looked for."""

    def refuses(self, identity: Collection[str] | None) -> bool:
        """Tell whether updates would be refused, or might be, with an identity of these columns; None is
        REPLICA IDENTITY FULL, which goes with no list.
        """
        if identity is None:
            return self.columns is not None
        listed = self.columns is None or set(identity) <= set(self.columns)
        return not identity or self.filtered or not listed


def fault(
    name: str, publication: Publication | None, tables: Iterable[tuple[int, str, frozenset[str]]]
) -> str | None:
    """Say what keeps a publication from letting through all that is needed; None if nothing does.

    ``tables`` are those with rows of their own: oid, name, and the columns that are `needed`.
    """
    if publication is None:
        return f"there is no publication {name}"
    if publication.unsent:
        return f"the publication {name} leaves out every {', '.join(publication.unsent).upper()}"
    for oid, table, columns in tables:
        published = publication.table(oid)
        if published is None:
            why = " (it has publish_via_partition_root)" if publication.via_root else ""
            return f"the publication {name} leaves out {table}{why}"
        if published.filtered:
            return f"the publication {name} leaves out rows of {table}, by a WHERE"
        if missing := sorted(columns - set(published.columns)):
            return f"the publication {name} leaves out {missing[0]} of {table}"
    return None


def needed(rules: Iterable[Rule]) -> frozenset[str]:
    """Return the columns that rows of a table have to come with, whatever its identity is."""
    return frozenset(name for rule in rules for name in (rule.column, rule.row) if name is not None)
