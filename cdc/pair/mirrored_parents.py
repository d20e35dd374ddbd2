"""The peer's memory of parents, as a standby holds it: as it was where the slot will be read on from.

The peer's own memory is further: it follows a transaction when that comes, not when that is done. Whoever
takes over is delivered what was not done once more, and has to find the rows where they were before.
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
    """What `Parents.load` takes."""

_Column = tuple[str, str]
"""A table and its column."""
_COMING = 100_000
"""Moves that are kept until their transactions are done. More are only there while the peer's reads fail."""


@dataclass(frozen=True, slots=True)
class ParentsPart:
    """What the peer tells of its memory; see ``MirrorParents`` in the protocol."""

    anew: bool
    column: _Column
    at: Lsn
    rows: list[tuple[str, str | None]]
    """Rows and their parents, None where a row is gone."""


class MirroredParents:
    """Owned by the applier's thread."""

    def __init__(self) -> None:
        self._memory: dict[_Column, dict[str, str]] = {}
        self._loaded_at: Lsn | None = None
        """Until this is followed the memory is of no use; None while there is none."""
        self._coming: deque[ParentsPart] = deque()
        """Moves by transactions that are not done yet."""
        self._moves = 0
        """Rows in these."""

    def take(self, part: ParentsPart) -> None:
        """Note what the peer tells."""
        if part.anew:
            self._memory, self._loaded_at = {}, part.at
            self._coming.clear()
            self._moves = 0
        if part.at == self._loaded_at:
            self._put(part)
        elif self._loaded_at is not None:
            self._coming.append(part)
            self._moves += len(part.rows)
            if (
                self._moves > _COMING
            ):  # without a memory a takeover reads everything; the next load brings one
                self._memory, self._loaded_at = {}, None
                self._coming.clear()

    def followed(self, up_to: Lsn) -> None:
        """Apply what has been done."""
        while self._coming and self._coming[0].at <= up_to:
            part = self._coming.popleft()
            self._moves -= len(part.rows)
            self._put(part)

    def memory(self, rules: Iterable[Rule], followed: Lsn) -> Memory | None:
        """Return the memory; None where it is not one of that moment."""
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
