"""The memory of parents: which key did a row belong to, where the WAL only says the row's own id?

With the default replica identity a delete of a settings row carries the serial id and nothing else. For those
tables we remember ``row id -> parent key``, filled by the mapping's ``ParentsOf...`` queries and followed
from then on by the rows that come. Where a table's identity names the parent, nothing is remembered.

Order makes it right. The memory is loaded *before* the mapping is read, so a change older than the load is
covered by that read, and a change younger than the load finds the row as it was before. A transaction whose
rows were given up could not be followed: until the reconcile that answers it loads anew, nothing is known.
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
"""Moves that are kept for a mirror that takes none; it gets everything again instead of more."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The memory at a moment; of use to who has followed the slot up to ``at``, and not before."""

    at: Lsn
    memory: Mapping[Rule, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Followed:
    """A transaction that ended at ``at`` has put a row under a parent, or away (None)."""

    at: Lsn
    rule: Rule
    row: str
    parent: str | None


@dataclass(eq=False, slots=True)
class Untold:
    """What a mirror has not been told yet; to be taken with `Parents.news`."""

    wake: Callable[[], object]
    everything: bool = True
    """Also what the memory is now."""
    items: list[Loaded | Followed] = field(default_factory=list)
    overflowed: bool = False
    """There were more than are kept."""


class Parents:
    """Owned by the applier's thread, which applies transactions in the order of their commits."""

    def __init__(self) -> None:
        self._memory: dict[Rule, dict[str, str]] = {}
        self._covered: Lsn = Lsn(0)
        self._end: Lsn = Lsn(0)
        """End of the newest transaction that was followed."""
        self._lock = threading.Lock()
        self._mirrors: tuple[Untold, ...] = ()
        self._incomplete = False
        """A transaction was not followed since the last load, or was followed and not in it."""

    def load(
        self, memory: Mapping[Rule, Iterable[tuple[str, str]]], covered: Lsn, *, complete: bool = True
    ) -> None:
        """Replace everything.

        ``covered`` is an end of WAL that was read after the rows: what a transaction up to there did to a row
        that is not in the memory was already done when the memory was read, and so in the mapping that is
        read next. Without ``complete`` something that was followed already was not visible to whoever read
        the rows (a commit that waits for a standby): then nothing is known until they are loaded again.
        """
        self._memory = {rule: dict(rows) for rule, rows in memory.items()}
        self._covered = covered
        self._incomplete = not complete
        for untold in self._mirrors:
            untold.everything = True

    def mirror(self, wake: Callable[[], object]) -> Untold:
        """Remember what is to be told from now on, beginning with everything; for any thread.

        ``wake`` is called once that is there, from the applier's thread.
        """
        untold = Untold(wake)
        with self._lock:
            self._mirrors = (*self._mirrors, untold)
        return untold

    def unmirror(self, untold: Untold) -> None:
        """End `mirror`; for any thread."""
        with self._lock:
            self._mirrors = tuple(one for one in self._mirrors if one is not untold)

    def news(self, untold: Untold) -> list[Loaded | Followed]:
        """Take what has not been told yet; for any thread. If that was too much, everything comes later."""
        with self._lock:
            items, untold.items = untold.items, []
            untold.everything = untold.everything or untold.overflowed
            untold.overflowed = False
            return items

    def tell(self) -> None:
        """Tell those of everything who have not been told of it yet."""
        for untold in self._mirrors:
            if untold.everything:
                at = _NEVER if self._incomplete else max(self._covered, self._end)
                loaded = Loaded(Lsn(at), {rule: dict(rows) for rule, rows in self._memory.items()})
                with self._lock:
                    untold.items, untold.everything = [loaded], False  # what is older is in it
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

    def resolve(self, affected: Affected, end: Lsn) -> None:
        """Follow a transaction's moves and add the parents that rows have left to what is affected.

        A row that should be known and is not means that something was missed: the transaction becomes a
        reconcile.
        """
        self.tell()
        self._end = end
        self._follow(affected, end)
        self._incomplete = self._incomplete or affected.reconcile is not None

    def _follow(self, affected: Affected, end: Lsn) -> None:
        for move in affected.moves:
            rows = self._memory.get(move.rule)
            if rows is None or self._incomplete:
                if not move.known:
                    affected.give_up("unknown_row")
                    return
                continue
            before = rows.pop(move.row, None) if move.parent is None else rows.get(move.row)
            if move.parent is not None:
                rows[move.row] = move.parent
            if self._mirrors:
                self._note(Followed(end, move.rule, move.row, move.parent))
            if move.known:
                continue
            if before is not None:
                affected.name(move.rule.kind, before)
            elif end > self._covered:
                affected.give_up("unknown_row")
                return
        affected.moves.clear()
