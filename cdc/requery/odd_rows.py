"""Keeps the list of odd rows: rows that are not valid endpoints (`cdc.mapping.row_rule`).

Each read adds the odd rows that it finds, and removes those that it finds to be valid. A read of the whole
mapping (including an audit's) also removes the odd rows that it does not find.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from cdc.mapping.row_rule import in_short, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from cdc.mapping.row_rule import Oddity, OddReason
    from cdc.observer import Observer
    from cdc.postgres.read import Row

_MOST: Final = 10_000
"""Maximum number of rows that are listed one by one. Further rows are only counted, by the newest read of the
whole mapping.
"""
_PACE: Final = 1.0
"""Minimum time between two reports, in seconds, since a ripple over odd rows arrives in many parts."""
_NAMED: Final = 5
"""Maximum number of rows of each kind that a report names."""
_NAMELESS: Final = shown(None)
_TROUBLE: Final = "odd_rows"


class OddRows:
    """The list of odd rows. Owned by the applier's thread."""

    def __init__(self, observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._clock = clock
        self._known: dict[str, tuple[Oddity, int]] = {}
        """For each id, its oddity and the number of the newest reading that found it."""
        self._more: Counter[OddReason] = Counter()
        """The number of rows beyond `_MOST` by reason, as counted by the newest read of the whole mapping."""
        self._counted = 0
        """The number of the reading that `_more` comes from."""
        self._counting: dict[int, Counter[OddReason]] = {}
        """The same counts for readings of the whole mapping that are still open, by their numbers."""
        self.doubtful: set[str] = set()
        """Ids that a read has returned more than once. A read by another key than the id may find only one of
        the rows, so only a short read by id can determine these endpoints.
        """
        self._changed = False
        self._reported_at = -_PACE

    def __len__(self) -> int:
        return len(self._known) + self._more.total()

    def doubt(self, ids: Iterable[str]) -> None:
        """Record that a read has returned these ids more than once."""
        for endpoint_id in ids:
            if len(self.doubtful) < _MOST:
                self.doubtful.add(endpoint_id)

    def judge(self, rows: Iterable[Row], again: Collection[str]) -> None:
        """Record the rows of a read by id, which has returned every row with these ids. It returned the ids
        in ``again`` more than once.
        """
        if self.doubtful:
            self.doubtful.difference_update(name for name, _ in rows if name not in again)

    def passed_over(self, ids: Iterable[str], reading: int) -> None:
        """Record that a read of the whole mapping has found these ids and skipped them."""
        for endpoint_id in ids:
            if endpoint_id in self._known:
                self._known[endpoint_id] = self._known[endpoint_id][0], reading

    @property
    def nameless(self) -> bool:
        """Whether there are rows without an id. Only a read of the whole mapping can show that they were
        corrected.
        """
        return _NAMELESS in self._known

    def take(
        self,
        rows: Iterable[Row],
        odd: Mapping[str, Oddity | None],
        reading: int,
        *,
        overtaken: Collection[str] = (),
        whole: bool = False,
    ) -> None:
        """Record one chunk of a read.

        ``odd`` is `Read.odd`. ``reading`` is the number of the reading, or the store's newest number for a
        read without one. ``whole`` says that the whole mapping is read. The ``overtaken`` ids are skipped,
        because a younger read has returned them.
        """
        known = self._known
        if known:
            for endpoint_id, _ in rows:
                if endpoint_id in known and endpoint_id not in odd and endpoint_id not in overtaken:
                    del known[endpoint_id]
                    self._changed = True
        for name, oddity in odd.items():
            if name in overtaken:
                continue
            if oddity is None:
                self._changed |= known.pop(name, None) is not None
            elif name in known or len(known) < _MOST:
                self._changed |= name not in known or known[name][0] != oddity
                known[name] = oddity, reading
            elif whole:
                self._counting.setdefault(reading, Counter())[oddity.reason] += 1

    def end(self, reading: int) -> None:
        """Record the end of a read of the whole mapping, and remove the odd rows that it did not find."""
        gone = [name for name, (_, newest) in self._known.items() if newest < reading]
        for name in gone:
            del self._known[name]
        more = self._counting.pop(reading, Counter())
        self._changed = self._changed or bool(gone)
        if reading > self._counted:  # an older reading has skipped the ids that younger ones returned
            self._changed = self._changed or more != self._more
            self._more, self._counted = more, reading
        self._counting = {other: counted for other, counted in self._counting.items() if other > reading}

    def report(self) -> None:
        """Report the odd rows if they have changed and the last report is at least a second old."""
        now = self._clock()
        if not self._changed or now - self._reported_at < _PACE:
            return
        self._changed, self._reported_at = False, now
        counts = Counter(oddity.reason for oddity, _ in self._known.values())
        self._observer.odd_rows(dict(counts + self._more))
        self._observer.trouble(_TROUBLE, self._text() if self._known else None)

    def _text(self) -> str:
        parts = []
        for served, what in ((False, "left out"), (True, "served with another limit")):
            found = [item for item in self._known.items() if item[1][0].served == served]
            if found:
                named = "; ".join(f"{in_short(name)} ({oddity.text})" for name, (oddity, _) in found[:_NAMED])
                more = f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
                parts.append(f"{what}: {named}{more}")
        if self._more:
            parts.append(f"{self._more.total():,} rows beyond these")
        return f"rows that are not valid endpoints: {'. '.join(parts)}"
