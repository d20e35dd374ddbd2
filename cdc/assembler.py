"""From messages to committed transactions.

wal2json sends a transaction only once it is committed, between a begin and a commit. Rows are reduced to the
keys that they name as they arrive, so a transaction of a million rows costs no more memory than
`affected.LIMIT` keys.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdc import wal2json
from cdc.affected import Affected
from cdc.errors import MessageError
from cdc.wal2json import Begin, Commit, Delete, Insert, Note, Truncate, Update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cdc.lsn import Lsn
    from cdc.mapping import Rule
    from cdc.wal2json import Action, Message, Row

_ACTIONS: dict[type[Row], Action] = {
    Insert: "insert",
    Update: "update",
    Delete: "delete",
    Truncate: "truncate",
}


@dataclass(slots=True)
class Transaction:
    """A committed transaction, reduced to what it may have changed for us."""

    xid: int
    """32 bits, as the plugin gives it."""
    end: Lsn
    """End of its commit record: confirming it lets the slot forget the transaction."""
    committed_at: float
    """Unix seconds by the database's clock."""
    rows: Counter[tuple[str, Action]] = field(default_factory=Counter)
    """How many rows of which mapped table; empty for a transaction that touched none (DDL, other tables)."""
    affected: Affected = field(default_factory=Affected)


class Assembler:
    """Owned by the thread that reads the slot; a new one for each connection, since the server starts over.

    Args:
        relations: (schema, table) as the plugin names them, partitions by their leaves, to the mapping's
        table. rules: what each of the mapping's tables affects.

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
            belongs to, and
                the stream goes on: confirmed, never a reconnect loop.

        """
        match message:
            case Begin():
                cut_short, self._open = (
                    self._open,
                    Transaction(message.xid, wal2json.end_of(message), wal2json.commit_time(message)),
                )
                if cut_short is not None:  # its commit was lost
                    cut_short.affected.give_up("out_of_order")
                return cut_short
            case Commit():
                return self._commit(message)
            case Note():
                return None
            case _:
                self._row(message)
                return None

    def spoil(self, reason: str, raw: bytes) -> Transaction | None:
        """Answer a message that could not be handled: its transaction becomes a reconcile, whatever else it
        says.

        Returns the transaction if the message was its end.
        """
        if self._open is None:  # its begin was lost; the commit will say which one it was
            self._open = Transaction(xid=0, end=0, committed_at=0.0)
        self._open.affected.give_up(reason)
        if raw.startswith(b'{"action":"C"'):
            done, self._open = self._open, None
            return done
        return None

    def _commit(self, message: Commit) -> Transaction:
        done = self._open
        if done is None:
            done = Transaction(0, 0, 0.0)
            done.affected.give_up("out_of_order")
        self._open = None
        done.xid, done.end = message.xid, wal2json.end_of(message)
        done.committed_at = done.committed_at or wal2json.commit_time(message)
        return done

    def _row(self, row: Row) -> None:
        if self._open is None:
            raise MessageError("out_of_order", f"a row of {row.table} came outside of a transaction")
        table = self._relations.get((row.schema, row.table))
        if (
            table is None
        ):  # not ours: the stream was started with our tables only, so this is a filter that leaks
            return
        self._open.rows[table, _ACTIONS[type(row)]] += 1
        self._open.affected.add(row, self._rules.get(table, ()))
