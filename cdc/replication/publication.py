"""The publication: which changes pgoutput sends, and whether it sends all that we need.

For each table the publication lists only the columns that the mapping's rules need, so that API keys never
enter the replication stream. Such a column list is dangerous: while it lacks a column of the table's replica
identity, or the table has no replica identity, **every UPDATE and DELETE of that table fails, for everybody**
(invariant 10). Neither this module nor `setup` causes such a state, and checks report it.

pgoutput uses the catalog as it was when a row was *written*. So a publication that is complete now may still
leave out rows of transactions that began before its last change. These transactions must end before
everything is read once more (`Publication.suspects`).
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
    """A published table."""

    oid: int
    name: str
    """The table's name, qualified and quoted."""
    columns: tuple[str, ...]
    filtered: bool
    """Whether a row filter (WHERE) leaves out rows."""
    refuses: bool
    """Whether Postgres refuses every UPDATE and DELETE of the table."""


@dataclass(frozen=True)
class Publication:
    """A publication at one moment. Two values are equal if the publication has not changed in between."""

    name: str
    actions: frozenset[str]
    by_itself: bool
    """Whether the publication is FOR ALL TABLES or IN SCHEMA, so that it has no column lists, and has tables
    that it does not name.
    """
    via_root: bool
    """Whether rows of partitions are sent under the partitioned table's name. If so, TRUNCATEs of partitions
    are not sent.
    """
    version: str
    comment: str | None
    tables: tuple[PublishedTable, ...]
    """The published tables. A partitioned table stands for its partitions, unless `via_root`."""
    members: frozenset[int]
    """The oids of the tables that the publication itself names."""
    settled: bool = field(compare=False)
    """Whether every transaction that the slot still has to send began after the publication's newest change.
    """
    next_xid: Xid8 = field(compare=False)
    """A transaction id (64 bits) that had not been assigned when the publication was read."""

    @classmethod
    def of(cls, name: str, rows: Iterable[Sequence[Any]]) -> Publication | None:
        """Read the row of the query ``Publication``; return None if there is no such publication."""
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
        """Return a published table by its oid; None if it is not published."""
        for one in self.tables:
            if one.oid == oid:
                return one
        return None

    @property
    def suspects(self) -> Xid8:
        """Transactions below this id may have changed rows that are not sent; 0 if all rows are sent."""
        return Xid8(0) if self.settled else self.next_xid

    @property
    def unsent(self) -> list[str]:
        """The actions that the publication leaves out."""
        return [action for action in _ACTIONS if action not in self.actions]


@dataclass(frozen=True)
class Restriction:
    """The demands of a publication on a table's replica identity. While the identity does not meet them,
    Postgres refuses every UPDATE of the table, even if nobody reads the publication.
    """

    oid: int
    publication: str
    columns: tuple[str, ...] | None
    """The column list, which must contain the whole replica identity; None if there is no list."""
    filtered: bool
    """Whether there is a row filter. Its columns, which are not known here, must be in the replica identity.
    """

    def refuses(self, identity: Collection[str] | None) -> bool:
        """Return whether Postgres would, or might, refuse updates with a replica identity of these columns.
        None stands for REPLICA IDENTITY FULL, with which no column list is allowed.
        """
        if identity is None:
            return self.columns is not None
        listed = self.columns is None or set(identity) <= set(self.columns)
        return not identity or self.filtered or not listed


def fault(
    name: str, publication: Publication | None, tables: Iterable[tuple[int, str, frozenset[str]]]
) -> str | None:
    """Return why a publication does not send everything that is needed; None if it does.

    ``tables`` are the oids, the names and the `needed` columns of the tables that have rows of their own.
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
    """Return the columns that every row of a table must have in the stream, whatever its replica identity
    is.
    """
    return frozenset(name for rule in rules for name in (rule.column, rule.row) if name is not None)
