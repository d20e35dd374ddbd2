"""The rows that are no endpoints as they stand (`cdc.mapping.row_rule`): which there are now, for people.

Each read says what it found odd, and takes back what was odd before and is not any more. A whole read, an
audit too, takes back what it has not met.
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
    from cdc.postgres.database import Row

_MOST: Final = 10_000
"""Rows that are remembered one by one. Of more only the number is known, from the newest whole read."""
_PACE: Final = 1.0
"""Seconds between reports: a ripple over odd rows comes in many parts."""
_NAMED: Final = 5
"""Rows that a report names of each kind."""
_NAMELESS: Final = shown(None)
_TROUBLE: Final = "odd_rows"


class OddRows:
    """Owned by the applier's thread."""

    def __init__(self, observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._clock = clock
        self._known: dict[str, tuple[Oddity, int]] = {}
        """By id: what is odd, and the newest reading that has said so."""
        self._more: Counter[OddReason] = Counter()
        """Reasons of the rows beyond `_MOST`, as counted by the newest whole read."""
        self._counted = 0
        """The whole read that has counted them."""
        self._counting: dict[int, Counter[OddReason]] = {}
        """The same, for the whole reads that run."""
        self.doubtful: set[str] = set()
        """Ids that have come more than once in a read. A read by another key than the id may find one of the
        rows only, so that a short read by id has to judge them.
        """
        self._changed = False
        self._reported_at = -_PACE

    def __len__(self) -> int:
        return len(self._known) + self._more.total()

    def doubt(self, ids: Iterable[str]) -> None:
        """Note that these ids have come more than once."""
        for endpoint_id in ids:
            if len(self.doubtful) < _MOST:
                self.doubtful.add(endpoint_id)

    def judge(self, rows: Iterable[Row], again: Collection[str]) -> None:
        """Note what a read by id has brought: of these ids all rows that there are."""
        if self.doubtful:
            self.doubtful.difference_update(name for name, _ in rows if name not in again)

    def passed_over(self, ids: Iterable[str], reading: int) -> None:
        """Note that a whole read has met these ids, and not judged them."""
        for endpoint_id in ids:
            if endpoint_id in self._known:
                self._known[endpoint_id] = self._known[endpoint_id][0], reading

    @property
    def nameless(self) -> bool:
        """Whether there are rows without an id: only a whole read can tell that they are mended."""
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
        """Note a part of a read.

        ``odd`` is `Read.odd`, ``reading`` the store's newest number of a reading, or that of a ``whole``
        read. What has been ``overtaken`` is known from a younger read.
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
        """Forget what was odd before this whole read, which has not met it."""
        gone = [name for name, (_, newest) in self._known.items() if newest < reading]
        for name in gone:
            del self._known[name]
        more = self._counting.pop(reading, Counter())
        self._changed = self._changed or bool(gone)
        if reading > self._counted:  # an older one, which younger ones have overtaken, has not met all
            self._changed = self._changed or more != self._more
            self._more, self._counted = more, reading
        self._counting = {other: counted for other, counted in self._counting.items() if other > reading}

    def report(self) -> None:
        """Report what has changed, if it is time."""
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
        return f"rows that are no endpoints as they stand: {'. '.join(parts)}"
