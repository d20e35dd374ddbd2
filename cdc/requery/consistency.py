"""Finds out whether the map is consistent, which means that the database had exactly this map at some moment.

A read returns the newest state of its endpoints, which may include changes of later transactions. Example:
transaction 1 changes endpoint A, and transaction 2 changes A and B. A read of A for transaction 1 may already
show transaction 2, while the map has the old state of B. The database never had such a map. The map becomes
consistent when transaction 2 is applied as well. By then a read may have shown a part of transaction 3, and
so on, as long as transactions follow each other without a pause.

Most reads show no later transaction, however. Once the slot has been followed to the position of the newest
read, all transactions that the reads may have shown too early are known. If none of them names an endpoint
that was read, the map contains no part of them, and is consistent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cdc.requery.task import Task

_MANY = 10_000
"""Maximum number of endpoints that are listed one by one. With more of them, the map counts as inconsistent
until the slot has passed the newest read. While a backlog is read, every read is ahead of the slot, so the
list would only grow.
"""


class Consistency:
    """Keeps the ids that were returned by reads that are ahead of the slot."""

    def __init__(self, are_ids: Callable[[str], bool]) -> None:
        """``are_ids`` returns whether the keys of a kind are endpoint ids, spelled as in the map."""
        self._are_ids = are_ids
        self._ahead: deque[tuple[Lsn, set[str] | None]] = deque()
        """For each read, its `Evidence.shown` and the ids that it returned. The ids are None if they are not
        listed.
        """
        self._held = 0
        """Number of endpoints in `_ahead`."""
        self._up_to: Lsn = Lsn(0)
        """The newest `Evidence.shown` of all reads."""
        self._done: Lsn = Lsn(0)
        """The newest end of a task that has been applied."""

    def read(self, shown: Lsn, ids: Iterable[str] | None = None) -> None:
        """Record the ids that a read returned, and its `Evidence.shown`. If ``ids`` is None, any endpoint may
        have changed.
        """
        self._up_to = max(self._up_to, shown)
        if not self._ahead or self._ahead[-1][0] != shown:
            self._ahead.append((shown, set()))
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

    def waits(self, reached: Lsn) -> bool:
        """Return whether the newest read is ahead of the slot, which has been followed up to ``reached``."""
        return reached < self._up_to

    def flushed(self, up_to: Lsn) -> None:
        """Record that no read so far has shown anything beyond ``up_to``."""
        self._up_to = min(self._up_to, up_to)
        self._ahead = deque((min(shown, up_to), ids) for shown, ids in self._ahead)

    def done(self, end: Lsn) -> None:
        """Record that a task has been applied. Its last transaction ends at ``end``."""
        self._done = max(self._done, end)

    def mend(self) -> None:
        """Forget all reads, because the map is now the result of a single snapshot."""
        self._up_to = self._done = Lsn(0)
        self._ahead.clear()
        self._held = 0

    def shows(self, reached: Lsn, waiting: Sequence[Task]) -> bool:
        """Return whether the map may show only a part of some transaction.

        All transactions up to ``reached`` have been applied, except those of the tasks in ``waiting``.
        """
        applied = min((task.since for task in waiting), default=reached)
        while self._ahead and self._ahead[0][0] <= applied:
            self._held -= len(self._ahead.popleft()[1] or ())
        if reached < self._up_to:
            return True  # the transactions that were shown too early are not all known yet
        if any(task.reason is not None for task in waiting):
            return True  # a reconcile does not name its endpoints, so a change of any endpoint may be missing
        if self._done > applied:
            return True  # a later transaction has been applied before a waiting one
        return any(self._meets(task) for task in waiting) if self._ahead else False

    def _meets(self, task: Task) -> bool:
        keys = task.affected.keys
        if not all(map(self._are_ids, keys)):
            return True  # only a read can find the endpoints that these keys stand for
        return any(
            ahead is None or any(not ahead.isdisjoint(ids) for ids in keys.values())
            for _, ahead in self._ahead
        )
