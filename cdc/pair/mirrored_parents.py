"""The standby server's copy of the peer's memory of parents, as of the position from which this server would
read the slot after a takeover.

The peer's memory includes a transaction as soon as the transaction arrives, before its endpoints are read.
After a takeover the slot delivers unfinished transactions again, and they need the parents as they were
before. So the copy applies the changes of a transaction only when the peer has finished the transaction.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cdc.lsn import Lsn
    from cdc.mapping.affects_file import Rule

    Memory = dict[Rule, Iterable[tuple[str, str]]]
    """The argument of `Parents.load`."""

_Column = tuple[str, str]
"""A table and its column."""
_COMING = 100_000
"""Maximum number of changes that are kept until their transactions are done. Only while the peer's reads fail
can there be more.
"""


@dataclass(frozen=True, slots=True)
class ParentsPart:
    """A part of the peer's memory, or changes to it; see ``MirrorParents`` in the protocol."""

    anew: bool
    column: _Column
    at: Lsn
    rows: list[tuple[str, str | None]]
    """Pairs of row and parent. The parent is None if the row is gone."""


class MirroredParents:
    """The copy of the peer's memory, and changes that are not applied to it yet. Owned by the applier's
    thread.
    """

    def __init__(self) -> None:
        self._memory: dict[_Column, dict[str, str]] = {}
        self._loaded_at: Lsn | None = None
        """The position from which on the memory can be used; None while there is no memory."""
        self._coming: deque[ParentsPart] = deque()
        """Changes by transactions that are not done yet."""
        self._moves = 0
        """Number of rows in `_coming`."""

    def take(self, part: ParentsPart) -> None:
        """Add a part that the peer has sent."""
        if part.anew:
            self._memory, self._loaded_at = {}, part.at
            self._coming.clear()
            self._moves = 0
        if part.at == self._loaded_at:
            self._put(part)
        elif self._loaded_at is not None:
            self._coming.append(part)
            self._moves += len(part.rows)
            if self._moves > _COMING:  # without a memory, a takeover needs a reconcile
                self._memory, self._loaded_at = {}, None
                self._coming.clear()

    def followed(self, up_to: Lsn) -> None:
        """Apply the changes of all transactions up to ``up_to``, because the peer has finished them."""
        while self._coming and self._coming[0].at <= up_to:
            part = self._coming.popleft()
            self._moves -= len(part.rows)
            self._put(part)

    def memory(self, rules: Iterable[Rule], followed: Lsn) -> Memory | None:
        """Return the memory as of ``followed``; None if there is none for that position."""
        if self._loaded_at is None or self._loaded_at > followed:
            return None
        found = ((rule, self._memory.get((rule.table, rule.column))) for rule in rules)
        return {rule: rows.items() for rule, rows in found if rows is not None}

    def _put(self, part: ParentsPart) -> None:
        rows = self._memory.setdefault(part.column, {})
        for row, parent in part.rows:
            if parent is None:
                rows.pop(row, None)
            else:
                rows[row] = parent
