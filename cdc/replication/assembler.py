"""From messages to committed transactions.

A plugin sends a transaction only once it is committed, between a begin and a commit. Rows are reduced to the
keys that they name as they arrive, so a transaction of a million rows costs no more memory than
`affected.LIMIT` keys.
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
"""Memory that a transaction takes, without its keys."""


class Transaction(msgspec.Struct, gc=False):
    """A committed transaction, reduced to what it may have changed for us."""

    xid: Xid
    """32 bits, as the plugin gives it; 0, which is no transaction's, where it could not be read."""
    end: Lsn
    """End of its commit record: confirming it lets the slot forget the transaction."""
    committed_at: float
    """Unix seconds by the database's clock."""
    rows: dict[tuple[str, Action], int] = msgspec.field(default_factory=dict)
    """How many rows of which mapped table; empty for a transaction that touched none (DDL, other tables)."""
    affected: Affected = msgspec.field(default_factory=Affected)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""
        return _BYTES + self.affected.size


class Assembler:
    """Owned by the thread that reads the slot; a new one for each connection, since the server starts over.

    Args:
        relations: (schema, table) as the plugin names them, partitions by their leaves, to the mapping's
            table.
        rules: what each of the mapping's tables affects.

    """

    def __init__(self, relations: Mapping[tuple[str, str], str], rules: Mapping[str, Sequence[Rule]]) -> None:
        self._relations = relations
        self._rules = rules
        self._open: Transaction | None = None

    @property
    def between(self) -> bool:
        """True when no transaction is half read: only then is everything before the stream's position
        whole.
        """
        return self._open is None

    def feed(self, message: Message) -> Transaction | None:
        """Take the next message; return the transaction that it completes, if it does.

        Raises:
            MessageError: it cannot be handled. `spoil` then makes a reconcile of the transaction that it
                belongs to, and the stream goes on: confirmed, never a reconnect loop.

        """
        if isinstance(message, (Update, Insert, Delete, Truncate)):  # first: nearly all of a backlog
            self._row(message)
            return None
        match message:
            case Begin():
                cut_short, self._open = (
                    self._open,
                    Transaction(message.xid, message.end, message.committed_at),
                )
                if cut_short is not None:  # its commit was lost
                    cut_short.affected.give_up("out_of_order")
                return cut_short
            case Commit():
                return self._commit(message)
            case _:
                return None

    def spoil(self, reason: str, place: MessagePlace) -> Transaction | None:
        """Answer a message that could not be handled: its transaction becomes a reconcile, whatever else it
        says.

        ``place`` is where such messages stand. Returns the transaction if the message was its end, or stood
        outside of any.
        """
        inside = self._open is not None
        done = self._open = self._open or Transaction(xid=Xid(0), end=Lsn(0), committed_at=0.0)
        done.affected.give_up(reason)
        # Outside of a transaction, a row or a broken begin means that one is open: its commit will say which.
        if place is MessagePlace.END if inside else place is not MessagePlace.WITHIN:
            self._open = None
            return done
        return None

    def _commit(self, message: Commit) -> Transaction:
        done, self._open = self._open, None
        if done is None:
            done = Transaction(Xid(0), Lsn(0), 0.0)
            done.affected.give_up("out_of_order")
        done.xid, done.end = message.xid or done.xid, message.end
        done.committed_at = done.committed_at or message.committed_at
        return done

    def _row(self, row: Row) -> None:
        if self._open is None:
            raise MessageError("out_of_order", f"a row of {row.table} came outside of a transaction")
        table = self._relations.get((row.schema, row.table))
        if table is None:  # not ours, though the stream was started with our tables only: the filter leaks
            return
        rows, kind = self._open.rows, (table, _ACTIONS[type(row)])
        rows[kind] = rows.get(kind, 0) + 1
        self._open.affected.add(row, self._rules.get(table, ()))
