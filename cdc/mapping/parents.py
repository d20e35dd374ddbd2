"""The memory of parents: finds a row's parent if the WAL contains only the row's own id.

With the default replica identity, the delete of a settings row contains the serial id and nothing else. For
such tables the memory maps row ids to parent keys. It is loaded by the mapping's ``ParentsOf...`` queries,
and then updated with the rows of the stream. Tables whose replica identity includes the parent need no
memory.

The memory is correct because it is loaded *before* the mapping is read. A change before the load is visible
to that read, and a change after the load finds the row's former parent in the memory. If a transaction became
a reconcile, its rows are unknown and the memory cannot follow it. So the memory counts as unknown until that
reconcile loads it again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cdc.mapping.affected import Affected
    from cdc.mapping.affects_file import Rule


_NEVER: Final = (1 << 64) - 1
_UNTOLD: Final = 50_000
"""Maximum number of changes that are kept for a mirror. If it takes them too slowly, it gets the whole memory
again. Also the maximum number of changes that are kept while the memory is being read: after more, it counts
as unknown.
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The memory at one moment. A mirror may use it once it has followed the slot up to ``at``."""

    at: Lsn
    memory: Mapping[Rule, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Followed:
    """A change of one row by the transaction that ended at ``at``. ``parent`` is the row's new parent; None
    if the row is gone.
    """

    at: Lsn
    rule: Rule
    row: str
    parent: str | None


@dataclass(eq=False, slots=True)
class Untold:
    """The changes that a mirror has not received yet. `Parents.news` takes them."""

    wake: Callable[[], object]
    everything: bool = True
    """Whether the mirror needs the whole memory."""
    items: list[Loaded | Followed] = field(default_factory=list)
    overflowed: bool = False
    """Whether changes were dropped, because there were more than `_UNTOLD`."""


class Parents:
    """The memory of parents. Owned by the applier's thread, which applies transactions in commit order."""

    def __init__(self) -> None:
        self._memory: dict[Rule, dict[str, str | None]] = {}
        """The parent of each row, by rule and row; None for a row whose parent is NULL."""
        self._covered: Lsn = Lsn(0)
        self._end: Lsn = Lsn(0)
        """End of the newest transaction that `resolve` has applied."""
        self._lock = threading.Lock()
        self._mirrors: tuple[Untold, ...] = ()
        self._incomplete = False
        """Whether the memory lacks a transaction, so that it counts as unknown until the next load."""
        self._since: dict[tuple[Rule, str], str | None] | None = None
        """The newest parent of each row that has moved since `expect`; None if no load is expected."""
        self._lacks = False
        """Whether `_since` lacks a move."""

    def expect(self) -> None:
        """Record that the rows for the next `load` are being read. Moves that are followed from now on may be
        missing in these rows, so `load` applies them again.

        The rows may also be newer than such a move: then the memory has an older parent until the slot
        delivers the newer move, as it would without the load.
        """
        self._since, self._lacks = {}, False

    def expect_nothing(self) -> None:
        """Record that those rows are not wanted any more: the next `load` may be of a newer memory, such as a
        peer's.
        """
        self._since, self._lacks = None, False

    def load(
        self, memory: Mapping[Rule, Iterable[tuple[str, str | None]]], covered: Lsn, *, complete: bool = True
    ) -> None:
        """Replace the whole memory.

        ``covered`` is an end of WAL that was determined after the rows were read. If a transaction up to this
        position names a row that is not in the memory, its change was visible when the rows were read, and
        will be visible to the read of the mapping that follows.

        Without ``complete``, the rows lack a transaction that the slot has delivered already, such as one
        whose commit waits for a standby. The memory then counts as unknown.
        """
        self._memory = {rule: dict(rows) for rule, rows in memory.items()}
        for (rule, row), parent in (self._since or {}).items():
            if rule in self._memory:
                _place(self._memory[rule], row, parent)
        self._covered = covered
        self._incomplete = not complete or self._lacks
        self._since, self._lacks = None, False
        for untold in self._mirrors:
            untold.everything = True

    def mirror(self, wake: Callable[[], object]) -> Untold:
        """Start to collect changes for a mirror, beginning with the whole memory. Any thread may call this.

        ``wake`` is called from the applier's thread once the memory can be taken.
        """
        untold = Untold(wake)
        with self._lock:
            self._mirrors = (*self._mirrors, untold)
        return untold

    def unmirror(self, untold: Untold) -> None:
        """Stop collecting changes for a mirror. Any thread may call this."""
        with self._lock:
            self._mirrors = tuple(one for one in self._mirrors if one is not untold)

    def news(self, untold: Untold) -> list[Loaded | Followed]:
        """Return the collected changes and forget them. If there were too many, they have been dropped, and
        the whole memory follows later. Any thread may call this.
        """
        with self._lock:
            items, untold.items = untold.items, []
            untold.everything = untold.everything or untold.overflowed
            untold.overflowed = False
            return items

    def tell(self) -> None:
        """Give the whole memory to the mirrors that need it."""
        for untold in self._mirrors:
            if untold.everything:
                at = _NEVER if self._incomplete else max(self._covered, self._end)
                loaded = Loaded(Lsn(at), {rule: _with_parent(rows) for rule, rows in self._memory.items()})
                with self._lock:
                    untold.items, untold.everything = [loaded], False  # it includes all earlier changes
                untold.wake()

    def _note(self, followed: Followed) -> None:
        with self._lock:
            for untold in self._mirrors:
                if not untold.overflowed:
                    untold.items.append(followed)
                if len(untold.items) > _UNTOLD:
                    untold.items, untold.overflowed = [], True

    def __len__(self) -> int:
        return sum(map(len, self._memory.values()))

    def resolve(self, affected: Affected, end: Lsn) -> Affected | None:
        """Apply a transaction's moves to the memory, and add the old parents of its rows to ``affected``.

        If the memory lacks a row that it should have, the transaction becomes a reconcile. Then the keys that
        it names are returned, since they need not wait for the reconcile.
        """
        self.tell()
        self._end = end
        if self._since is not None:
            self._collect(affected, self._since)
        named = self._follow(affected, end)
        self._incomplete = self._incomplete or affected.reconcile is not None
        return named

    def _collect(self, affected: Affected, since: dict[tuple[Rule, str], str | None]) -> None:
        self._lacks = self._lacks or affected.reconcile is not None
        self._lacks = self._lacks or len(since) + len(affected.moves) > _UNTOLD
        if self._lacks:
            since.clear()
        else:
            since.update({(move.rule, move.row): move.parent for move in affected.moves})

    def _follow(self, affected: Affected, end: Lsn) -> Affected | None:
        for move in affected.moves:
            rows = self._memory.get(move.rule)
            if rows is None or self._incomplete:
                if not move.known:
                    return _give_up(affected)
                continue
            found = move.row in rows
            before = rows.get(move.row)
            _place(rows, move.row, move.parent)
            if self._mirrors:
                self._note(Followed(end, move.rule, move.row, move.parent))
            if move.known:
                continue
            if before is not None:
                affected.name(move.rule.kind, before)
            elif not found and end > self._covered:
                return _give_up(affected)
        affected.moves.clear()
        return None


def _give_up(affected: Affected) -> Affected:
    """Make it a reconcile, because an old parent is unknown. Return the keys that it named."""
    named = affected.named()
    affected.give_up("unknown_row")
    return named


def _place(rows: dict[str, str | None], row: str, parent: str | None) -> None:
    """Put a row under its new parent, or remove it."""
    if parent is None:
        rows.pop(row, None)
    else:
        rows[row] = parent


def _with_parent(rows: Mapping[str, str | None]) -> dict[str, str]:
    """Return the rows that have a parent. The mirror does not know the other rows, so after a takeover a
    change of such a row costs a reconcile.
    """
    return {row: parent for row, parent in rows.items() if parent is not None}
