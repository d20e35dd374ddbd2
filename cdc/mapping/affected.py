"""From rows to keys: which endpoints may a committed transaction change?

The answer comes from data (`Rule`s of the mapping: table, key column, statement), never from the code. A row
names keys of some *kind*; the kind is the named query that turns such keys into endpoint ids at the time of
the re-query. Both the new row and the old identity count, so that a row that moves affects the parent that it
left too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cdc.changes import Delete, Insert, Truncate, Update
from cdc.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdc.changes import Column, Row
    from cdc.mapping.mapping import Rule

LIMIT = 400_000
"""Keys and moves that one transaction may name; beyond, memory matters more than precision and it is a
reconcile.
"""
_MOST = 4
"""Keys and moves that a row can add for one rule."""
KEY_BYTES = 110
"""Memory that a key takes in its set, or a move in its list."""


class Move(msgspec.Struct, frozen=True, gc=False):
    """A row whose old parent the WAL does not name: the memory of parents has to (invariant 7).

    There is one for almost each row of some tables, and a Struct is made in a tenth of a data class' time.
    """

    rule: Rule
    row: str
    parent: str | None
    """Where the row is now; None when it is gone."""
    known: bool
    """The parent that it left, if any, has been named: memory need only follow. Otherwise memory must name
    it.
    """


class Affected(msgspec.Struct):
    """Keys by kind, the moves that only the memory of parents can resolve, and whether only a reconcile will
    do.
    """

    keys: dict[str, set[str]] = msgspec.field(default_factory=dict)
    moves: list[Move] = msgspec.field(default_factory=list)
    reconcile: str | None = None
    """The reason why keys do not suffice (a truncate, too many rows, ...); they are not collected any more
    then.
    """
    _room: int = msgspec.field(default_factory=lambda: LIMIT // _MOST)
    """Rows that may surely be added before there can be more than `LIMIT`."""

    def __len__(self) -> int:
        return sum(map(len, self.keys.values())) + len(self.moves)

    @property
    def size(self) -> int:
        """Bytes of memory that the keys and moves take, about."""
        return KEY_BYTES * len(self)

    def name(self, kind: str, key: str) -> None:
        """Add one key."""
        keys = self.keys.get(kind)
        if keys is None:
            keys = self.keys[kind] = set()
        keys.add(key)

    def give_up(self, reason: str) -> None:
        """Let a reconcile answer in place of the keys, and free them; the first reason stands."""
        self.reconcile = self.reconcile or reason
        self.keys.clear()
        self.moves.clear()

    def merge(self, other: Affected) -> None:
        """Add what a later transaction affects."""
        if other.reconcile:
            self.give_up(other.reconcile)
        if self.reconcile:
            return
        for kind, keys in other.keys.items():
            self.keys.setdefault(kind, set()).update(keys)
        self.moves.extend(other.moves)

    def add(self, row: Row, rules: Sequence[Rule]) -> None:
        """Add what one row affects.

        Raises:
            MessageError: the row does not carry the key columns that the mapping names.

        """
        if self.reconcile:
            return
        if isinstance(row, Truncate):
            # A signal table, where only inserts count, may be emptied at will.
            if any("delete" in rule.actions for rule in rules):
                self.give_up("truncate")
            return
        for rule in rules:
            if isinstance(row, Update) and "update" in rule.actions:
                self._updated(row, rule)
            elif isinstance(row, Insert) and "insert" in rule.actions:
                self._inserted(row, rule)
            elif isinstance(row, Delete) and "delete" in rule.actions:
                self._left(_find(row.identity, rule.column), row.identity, rule, parent=None)
        self._room -= len(rules)
        if self._room < 0:
            self._count()

    def _count(self) -> None:
        """Give up above `LIMIT`, or note how many rows need not be counted: that takes longer than a row."""
        held = len(self)
        self._room = (LIMIT - held) // _MOST
        if held > LIMIT:
            self.give_up("large")

    def _inserted(self, row: Insert, rule: Rule) -> None:
        parent = _key(_find(row.columns, rule.column), rule)
        if parent is not None:
            self.name(rule.kind, parent)
        if rule.parents is not None:
            self.moves.append(Move(rule, _row(row.columns, rule), parent, known=True))

    def _updated(self, row: Update, rule: Rule) -> None:
        now = _find(row.columns, rule.column)
        before = now if row.identity is row.columns else _find(row.identity, rule.column)
        # An unchanged TOASTed value is left out of the new row; the identity always has its columns in full.
        parent = _key(now or before, rule)
        if parent is not None:
            self.name(rule.kind, parent)
        if now is None or now is not before or rule.parents is not None:
            self._left(before, row.identity, rule, parent, row.columns)

    def _left(
        self,
        before: Column | None,
        identity: Sequence[Column],
        rule: Rule,
        parent: str | None,
        now: Sequence[Column] = (),
    ) -> None:
        """Name the parent that the row had ``before``, or else let memory name it."""
        if before is not None:
            left = _key(before, rule)
            if left is not None and left != parent:
                self.name(rule.kind, left)
        if rule.parents is not None:
            self._remember(identity, rule, parent, now, known=before is not None)
        elif before is None:
            self.give_up("identity")

    def _remember(
        self,
        identity: Sequence[Column],
        rule: Rule,
        parent: str | None,
        now: Sequence[Column],
        *,
        known: bool,
    ) -> None:
        """Let memory follow the row, by its own key before and now."""
        if _has(identity, rule.row):
            before_row = _row(identity, rule)
            now_row = _row(now, rule) if _has(now, rule.row) else before_row
            if now_row != before_row:  # the row's own key changed: memory follows it
                self.moves.append(Move(rule, before_row, None, known=known))
                self.moves.append(Move(rule, now_row, parent, known=True))
            else:
                self.moves.append(Move(rule, before_row, parent, known=known))
        elif not known:
            self.give_up("identity")
        elif parent is not None and _has(now, rule.row):
            self.moves.append(Move(rule, _row(now, rule), parent, known=True))


def _find(columns: Iterable[Column], name: str | None) -> Column | None:
    for column in columns:  # a generator in any() or next() takes twice as long, for each row of a backlog
        if column.name == name:
            return column
    return None


def _has(columns: Iterable[Column], name: str | None) -> bool:
    return _find(columns, name) is not None


def _row(columns: Iterable[Column], rule: Rule) -> str:
    name = rule.row or ""
    row = _text(_find(columns, name), rule.table, name)
    if row is None:
        raise MessageError("key_shape", f"a row of {rule.table} came with NULL in {rule.row}")
    return row


def _key(column: Column | None, rule: Rule) -> str | None:
    key = _text(column, rule.table, rule.column)
    if key is None and rule.hides_nan:
        raise MessageError("key_shape", f"a row of {rule.table} came without a number in {rule.column}")
    return key


def _text(column: Column | None, table: str, name: str) -> str | None:
    if column is None:
        raise MessageError("missing_column", f"a row of {table} came without its column {name}")
    value = column.value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise MessageError("key_shape", f"column {name} of {table} is neither text nor an integer")
