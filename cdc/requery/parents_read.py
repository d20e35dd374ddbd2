"""Reads the memory of parents in a thread of its own, before the whole mapping is read.

The read returns a pair for each row of its tables, so it may take seconds. Revocations must not wait for
it. Changes that the slot delivers during the read are followed in the present memory, and are then applied to
the new one as well (`Parents.expect`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from cdc.mapping.affects_file import Rule
    from cdc.mapping.parents import Parents
    from cdc.postgres.database import Database, ParentRows
    from cdc.postgres.gate import Evidence, Gate

_PATIENCE = 5.0
"""Maximum number of seconds to wait until the database shows what the slot had delivered before the read. A
commit usually becomes visible within microseconds, and on a standby once it is replayed. A commit that waits
for a synchronous standby may stay invisible for hours.
"""
_TICK = 0.02
"""Seconds between two checks whether it does."""


class ParentsRead:
    """One such read at a time. Owned by the applier's thread."""

    def __init__(self, database: Database, parents: Parents) -> None:
        self._database = database
        self._parents = parents
        self._read: Future[Mapping[Rule, ParentRows]] | None = None
        self._gates: Sequence[Gate] = ()
        self._use: Callable[[ParentRows], object]
        self._counts = False
        """Whether the rows are still wanted."""

    @property
    def running(self) -> bool:
        """Whether a read is running. When it ends, the database's `wake` is called."""
        return self._read is not None and not self._read.done()

    @property
    def waiting(self) -> bool:
        """Whether a read was begun that neither `finish` nor `abandon` has ended."""
        return self._read is not None and self._counts

    def begin(
        self, rules: Sequence[Rule], gates: Iterable[Gate], use: Callable[[ParentRows], object]
    ) -> None:
        """Begin to read. ``gates`` are the gates of all delivered transactions whose tasks still wait.

        ``use`` is called by `finish` for each list of rows, and raises an error if they must not be used.
        """
        self._parents.expect()
        self._gates, self._use, self._counts = tuple(gates), use, True
        self._read = self._database.in_thread("parents", partial(self._rows, rules, self._gates))

    def finish(self) -> bool:
        """Load the memory with the rows of the read. Return False if there was no read, or it was abandoned.

        Raises:
            SourceError, Refusal: the read failed, or its rows must not be used.

        """
        read, self._read = self._read, None
        if read is None or not self._counts:
            return False
        found = read.result()
        for one in found.values():
            self._use(one)
        self._parents.load(
            {rule: one.rows for rule, one in found.items()},
            max((one.after.seen for one in found.values()), default=Lsn(0)),
            # If a transaction that was delivered before is not visible yet, these rows lack it.
            complete=all(_all_open(self._gates, one.before) for one in found.values()),
        )
        return True

    def abandon(self) -> None:
        """Ignore the rows of the present read. The next read begins only after this one has ended."""
        self._counts = False
        self._parents.expect_nothing()
        if not self.running:
            self._read = None  # its rows may take as much memory as the map

    def _rows(self, rules: Sequence[Rule], gates: Sequence[Gate]) -> Mapping[Rule, ParentRows]:
        give_up_at = time.monotonic() + _PATIENCE
        while self._counts and time.monotonic() < give_up_at:
            if _all_open(gates, self._database.evidence()):
                break
            time.sleep(_TICK)
        found = self._database.parents(rules) if self._counts else {}
        return found if self._counts else {}


def _all_open(gates: Iterable[Gate], evidence: Evidence) -> bool:
    return all(gate.opens(evidence) for gate in gates)
