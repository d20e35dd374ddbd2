"""What the map holds too early: whether that shows, or whether the map is one that existed.

A read brings the newest state of its endpoints, so also parts of transactions that have not been taken yet.
Two transactions that share an endpoint, read for the first one, show half of the second: the map is torn. It
is whole again once the second one is applied as well, but by then a third may have been read early; while
transactions follow each other without a pause that never ends.

It need not show, though. Once the slot has been followed to where the newest read was made, everything that
the reads can have brought too early is known. If none of it names an endpoint that they brought, then nothing
of it is in the map, which is the one that was there before the first of them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cdc.requery.task import Task

_MANY = 10_000
"""Endpoints that are remembered one by one; more of them, and who tears so much waits for the end. While a
backlog is read each read is ahead of the slot, so that there would be no end to them.
"""


class Consistency:
    """Remembers what was brought by reads that are ahead of the slot."""

    def __init__(self, are_ids: Callable[[str], bool]) -> None:
        """``are_ids`` tells whether keys of a kind are endpoint ids, spelled as those are."""
        self._are_ids = are_ids
        self._ahead: deque[tuple[Lsn, set[str] | None]] = deque()
        """How new each read was, and the endpoints that it brought; None for too many of them."""
        self._held = 0
        """Endpoints in all of these."""
        self._up_to: Lsn = Lsn(0)
        self._done: Lsn = Lsn(0)

    def read(self, flushed: Lsn, ids: Iterable[str] | None = None) -> None:
        """Note that a read, made when WAL was flushed up to there, brings these ids; None for too many."""
        self._up_to = max(self._up_to, flushed)
        if not self._ahead or self._ahead[-1][0] != flushed:
            self._ahead.append((flushed, set()))
        known = self._ahead[-1][1]
        if known is None:
            return
        before = len(known)
        if ids is not None:
            known.update(ids)
        self._held += len(known) - before
        if ids is None or self._held > _MANY or len(self._ahead) > _MANY:
            self._ahead.clear()
            self._ahead.append((self._up_to, None))
            self._held = 0

    def done(self, end: Lsn) -> None:
        """Note that a task is applied whose last transaction ended there."""
        self._done = max(self._done, end)

    def mend(self) -> None:
        """Forget it all: the map is what one snapshot saw."""
        self._up_to = self._done = Lsn(0)
        self._ahead.clear()
        self._held = 0

    def shows(self, reached: Lsn, waiting: Sequence[Task]) -> bool:
        """Tell whether the map may hold a part of a transaction, with all but ``waiting`` applied up to
        ``reached``.
        """
        applied = min((task.since for task in waiting), default=reached)
        while self._ahead and self._ahead[0][0] <= applied:
            self._held -= len(self._ahead.popleft()[1] or ())
        if reached < self._up_to:
            return True  # what was brought too early is not known yet
        if any(task.reason is not None for task in waiting):
            return True  # what is missing may never have been named
        if self._done > applied:
            return True  # a later one was applied before one that waits
        return any(self._meets(task) for task in waiting) if self._ahead else False

    def _meets(self, task: Task) -> bool:
        keys = task.affected.keys
        if not all(map(self._are_ids, keys)):
            return True  # which endpoints these are only a read can tell
        return any(
            ahead is None or any(not ahead.isdisjoint(ids) for ids in keys.values())
            for _, ahead in self._ahead
        )
