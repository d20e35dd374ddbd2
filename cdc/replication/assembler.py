"""Assembles messages into committed transactions.

A plugin sends a transaction only after its commit, between a begin and a commit message. Each row is reduced
to its keys as it arrives, so a transaction of a million rows takes no more memory than `affected.LIMIT` keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cdc.changes import Begin, Commit, Delete, Insert, MessagePlace, Truncate, Update
from cdc.errors import MessageError
from cdc.lsn import Lsn
from cdc.mapping.affected import Affected
from cdc.units import Xid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cdc.changes import Action, Message, Row
    from cdc.mapping.mapping import Rule

_ACTIONS: dict[type[Row], Action] = {
    Insert: "insert",
    Update: "update",
    Delete: "delete",
    Truncate: "truncate",
}

_BYTES = 900
"""Approximate memory of a transaction without its keys, in bytes."""


class Transaction(msgspec.Struct, gc=False):
    """A committed transaction, reduced to the endpoints that it may have changed."""

    xid: Xid
    """The transaction id; 0, which no transaction has, if it could not be read."""
    end: Lsn
    """The end of its commit record. Once it is confirmed, the slot no longer delivers the transaction."""
    committed_at: float
    """Unix seconds by the database's clock."""
    rows: dict[tuple[str, Action], int] = msgspec.field(default_factory=dict)
    """Number of rows by mapped table and action. Empty if the transaction has no such rows, for example only
    DDL or rows of other tables.
    """
    affected: Affected = msgspec.field(default_factory=Affected)

    @property
    def size(self) -> int:
        """Approximate memory of the transaction, in bytes."""
        return _BYTES + self.affected.size


class Assembler:
    """Takes messages and returns transactions. Owned by the thread that reads the slot.

    Each connection needs a new assembler, since the server sends unconfirmed transactions again from their
    start.

    Args:
        relations: the mapping's table for each (schema, table) that the plugin names, including partitions.
        rules: the rules of each of the mapping's tables.

    """

    def __init__(self, relations: Mapping[tuple[str, str], str], rules: Mapping[str, Sequence[Rule]]) -> None:
        self._relations = relations
        self._rules = rules
        self._open: Transaction | None = None

    @property
    def between(self) -> bool:
        """Whether the stream is between two transactions, so everything before its position is complete."""
        return self._open is None

    def feed(self, message: Message) -> Transaction | None:
        """Take the next message. Return the transaction that it completes, or None.

        Raises:
            MessageError: the message cannot be handled. The caller must then call `spoil` and continue with
            the stream: a new connection would only receive the same message again.

        """
        if isinstance(message, (Update, Insert, Delete, Truncate)):  # first, since most messages are rows
            self._row(message)
            return None
        if isinstance(message, Begin):
            return self._begin(message)
        return self._commit(message) if isinstance(message, Commit) else None

    def spoil(self, reason: str, place: MessagePlace) -> Transaction | None:
        """Turn the transaction of a message that could not be handled into a reconcile.

        ``place`` is the place of the message in the stream. If the message ended the transaction, returns the
        transaction. If the message was outside of any transaction, returns a transaction without an end.
        """
        inside = self._open is not None
        done = self._open = self._open or Transaction(xid=Xid(0), end=Lsn(0), committed_at=0.0)
        done.affected.give_up(reason)
        # A row or a broken begin outside of a transaction shows that one has begun. Its commit has the xid.
        if place is MessagePlace.END if inside else place is not MessagePlace.WITHIN:
            self._open = None
            return done
        return None

    def _begin(self, message: Begin) -> Transaction | None:
        cut_short = self._open
        self._open = Transaction(message.xid, message.end, message.committed_at)
        if cut_short is not None:  # its commit was lost
            cut_short.affected.give_up("out_of_order")
        return cut_short

    def _commit(self, message: Commit) -> Transaction:
        done, self._open = self._open, None
        if done is None:  # its begin was lost
            done = Transaction(message.xid, message.end, message.committed_at)
            done.affected.give_up("out_of_order")
            return done
        done.xid, done.end = message.xid or done.xid, message.end
        done.committed_at = done.committed_at or message.committed_at
        return done

    def _row(self, row: Row) -> None:
        if self._open is None:
            raise MessageError("out_of_order", f"a row of {row.table} came outside of a transaction")
        table = self._relations.get((row.schema, row.table))
        if table is None:  # wal2json's filter `add-tables` lets some rows of other tables through
            return
        rows, kind = self._open.rows, (table, _ACTIONS[type(row)])
        rows[kind] = rows.get(kind, 0) + 1
        self._open.affected.add(row, self._rules.get(table, ()))
