"""Finds the endpoints that a committed transaction may have changed, as keys.

The rules are data of the mapping (`Rule`: a table, its key column, a query), not code. A row yields keys
of some *kind*. The kind is the name of the query that later turns such keys into endpoint ids.
Both the new row and the replica identity of the old row count: a row that moves from one parent to another
affects both parents.
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
"""Maximum number of keys and moves of one transaction. A transaction with more becomes a reconcile, to save
memory.
"""
LARGE = "large"
"""The reason of a reconcile that replaces keys that take too much memory."""
_MOST = 4
"""Maximum number of keys and moves that one row can add for one rule."""
KEY_BYTES = 110
"""Approximate bytes of memory of a key in its set, or of a move in its list. A longer key counts as more than
one.
"""


class Move(msgspec.Struct, frozen=True, gc=False):
    """A change of a row whose parent `cdc.mapping.parents` remembers, because the WAL may not name the row's
    old parent.

    Some tables yield a move for almost every row, and creating a Struct takes a tenth of a dataclass's time.
    """

    rule: Rule
    row: str
    parent: str | None
    """The row's new parent; None if the row is gone."""
    known: bool
    """Whether the WAL has named the row's old parent, or there was none. If False, the memory of parents has
    to find it.
    """


class Affected(msgspec.Struct, gc=False):
    """The keys of the affected endpoints by kind, moves for the memory of parents, or the need for a
    reconcile.
    """

    keys: dict[str, set[str]] = msgspec.field(default_factory=dict)
    moves: list[Move] = msgspec.field(default_factory=list)
    reconcile: str | None = None
    """Why everything must be read (for example a truncate, or too many rows); None if the keys are enough.
    With a reason, no keys are kept.
    """
    asked: set[str] = msgspec.field(default_factory=set)
    """The keys that come only from signal tables. No other changed row has such a key."""
    _room: int = msgspec.field(default_factory=lambda: LIMIT // _MOST)
    """Number of rows that can be added before `LIMIT` has to be checked again."""
    _more: int = 0
    """Number of keys that the long keys count as, beyond one each."""

    def __len__(self) -> int:
        count = len(self.moves)
        for keys in self.keys.values():  # takes half the time of sum(), and runs often
            count += len(keys)
        return count

    @property
    def size(self) -> int:
        """Approximate memory of the keys and moves, in bytes."""
        return KEY_BYTES * (len(self) + len(self.asked) + self._more)

    def name(self, kind: str, key: str) -> None:
        """Add one key of a changed row."""
        keys = self.keys.get(kind)
        if keys is None:
            keys = self.keys[kind] = set()
        if len(key) > KEY_BYTES and key not in keys:
            self._count_long(key)
        keys.add(key)
        if self.asked:
            self.asked.discard(key)

    def ask(self, kind: str, key: str) -> None:
        """Add one key of a signal table's row."""
        if not self._has(key):
            self.asked.add(key)
        keys = self.keys.setdefault(kind, set())
        if len(key) > KEY_BYTES and key not in keys:
            self._count_long(key)
        keys.add(key)

    def _has(self, key: str) -> bool:
        return any(key in keys for keys in self.keys.values())

    def take(self, kinds: Iterable[str]) -> Affected:
        """Remove and return the keys of some kinds, together with all ``asked`` keys."""
        taken = Affected({kind: self.keys.pop(kind) for kind in kinds}, asked=self.asked)
        self.asked = set()
        if self._more:
            taken._more = sum(map(_more, taken.keys.values()))
            self._more -= taken._more
        return taken

    def named(self) -> Affected:
        """Return a copy with the keys alone."""
        keys = {kind: set(keys) for kind, keys in self.keys.items()}
        return Affected(keys, asked=set(self.asked), _more=self._more)

    def give_up(self, reason: str) -> None:
        """Replace the keys by a reconcile. If there is a reason already, keep it."""
        self.reconcile = self.reconcile or reason
        self.keys.clear()
        self.moves.clear()
        self.asked.clear()
        self._more = 0

    def merge(self, other: Affected) -> None:
        """Add the keys and moves of a later transaction."""
        if other.reconcile:
            self.give_up(other.reconcile)
        if self.reconcile:
            return
        if self.asked:
            for keys in other.keys.values():
                self.asked.difference_update(keys - other.asked)
        self.asked.update(key for key in other.asked if key in self.asked or not self._has(key))
        for kind, keys in other.keys.items():
            held = self.keys.setdefault(kind, set())
            if other._more:
                self._more += _more(keys - held)
            held.update(keys)
        self.moves.extend(other.moves)

    def add(self, row: Row, rules: Sequence[Rule]) -> None:
        """Add the keys and moves of one row.

        Raises:
            MessageError: the row lacks a key column that the mapping names.

        """
        if self.reconcile:
            return
        if isinstance(row, Truncate):
            # If only inserts count, as in a signal table, a truncate changes no endpoint.
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
        """Give up if `LIMIT` is exceeded; otherwise compute `_room` again. Counting is not done for each row,
        since it takes longer than adding a row.
        """
        held = len(self) + self._more
        self._room = (LIMIT - held) // _MOST
        if held > LIMIT:
            self.give_up(LARGE)

    def _count_long(self, key: str) -> None:
        self._more += len(key) // KEY_BYTES
        self._room = 0  # so that `add` counts again

    def _inserted(self, row: Insert, rule: Rule) -> None:
        parent = _key(_find(row.columns, rule.column), rule)
        if parent is not None:
            (self.ask if rule.only_asks else self.name)(rule.kind, parent)
        elif rule.sent_as_null:
            self._name_hidden(rule)
        if rule.parents is not None:
            self.moves.append(Move(rule, _row(row.columns, rule), parent, known=True))

    def _updated(self, row: Update, rule: Rule) -> None:
        now = _find(row.columns, rule.column)
        before = now if row.identity is row.columns else _find(row.identity, rule.column)
        # The new row leaves out an unchanged TOASTed value; the identity always has all of its columns.
        parent = _key(now or before, rule)
        if parent is not None:
            self.name(rule.kind, parent)
        elif rule.sent_as_null:
            self._name_hidden(rule)
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
        """Add the key of the row's old parent, which ``before`` contains. If ``before`` is None, add a move,
        with which the memory of parents finds the old parent.
        """
        if before is not None:
            left = _key(before, rule)
            if left is not None and left != parent:
                self.name(rule.kind, left)
            elif left is None and rule.sent_as_null:
                self._name_hidden(rule)
        if rule.parents is not None:
            self._remember(identity, rule, parent, now, known=before is not None)
        elif before is None:
            self.give_up("identity")

    def _name_hidden(self, rule: Rule) -> None:
        """Add every key that wal2json may have sent as null. If the rule uses the memory of parents,
        reconcile instead, since that memory needs to know which key it was.
        """
        if rule.parents is not None:
            self.give_up("identity")
            return
        for key in rule.sent_as_null:
            (self.ask if rule.only_asks else self.name)(rule.kind, key)

    def _remember(
        self,
        identity: Sequence[Column],
        rule: Rule,
        parent: str | None,
        now: Sequence[Column],
        *,
        known: bool,
    ) -> None:
        """Add moves, so that the memory of parents has the row under its current key."""
        if _has(identity, rule.row):
            before_row = _row(identity, rule)
            now_row = _row(now, rule) if _has(now, rule.row) else before_row
            if now_row != before_row:  # the row's own key has changed
                self.moves.append(Move(rule, before_row, None, known=known))
                self.moves.append(Move(rule, now_row, parent, known=True))
            else:
                self.moves.append(Move(rule, before_row, parent, known=known))
        elif not known:
            self.give_up("identity")
        elif parent is not None and _has(now, rule.row):
            self.moves.append(Move(rule, _row(now, rule), parent, known=True))


def _more(keys: Iterable[str]) -> int:
    """Return how many keys the long ones among these count as, beyond one each."""
    return sum(len(key) // KEY_BYTES for key in keys if len(key) > KEY_BYTES)


def _find(columns: Iterable[Column], name: str | None) -> Column | None:
    for column in columns:  # any() or next() with a generator takes twice as long, and this runs for each row
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
    return _text(column, rule.table, rule.column)


def _text(column: Column | None, table: str, name: str) -> str | None:
    if column is None:
        raise MessageError("missing_column", f"a row of {table} came without its column {name}")
    value = column.value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise MessageError("key_shape", f"column {name} of {table} is neither text nor an integer")
