"""The audit: compares the map with the whole mapping, to find differences that no transaction explains.

It reads the mapping in small chunks, while other reads go on. A difference is drift only if it is still there
when every transaction that the audit's snapshot saw has been applied, and no younger read has returned the
endpoint. Drift is caused by a bug of ours, or by lost changes of a table. It is repaired, published and
counted.

A difference is checked several times. Example: a plan changes, then one of its accounts moves to another
plan. The read for the first transaction may already see the second one. It then does not find the account's
endpoints on the plan; they are read only for the second transaction. So each check waits until the map has
reached the position of the newest read, and there is one check for every table between an endpoint and the
changed row.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cdc.mapping.row_rule import TWICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from cdc.lsn import Lsn
    from cdc.postgres.read import Read, Row
    from cdc.requery.odd_rows import OddRows
    from cdc.store.store import Store

_CHUNK = 500
"""Number of rows in one step. A step takes some milliseconds, so that a revocation hardly waits for an audit.
"""
_LOOKS = 5
"""Number of further checks of a difference: one for each table of the longest join, and one more."""


_PATIENCE = 10.0
"""Maximum time that a check waits for WAL that a standby has received and may already show, in seconds. While
replay is paused, the slot does not deliver that WAL.
"""


class Audit:
    """One audit, which is done step by step."""

    def __init__(
        self,
        opening: Future[Read],
        store: Store,
        odd_rows: OddRows,
        check_evidence: Callable[[Read], Read],
        doubtful: frozenset[str] = frozenset(),
    ) -> None:
        """``opening`` is a read of the whole mapping that is being opened. ``check_evidence`` raises an error
        if the read must not be used. The audit skips the ``doubtful`` ids.

        Until the read is open, it is unknown whether other reads are older or newer.
        """
        self._opening = opening
        self._check_evidence = check_evidence
        self._store = store
        self._odd_rows = odd_rows
        self._doubtful = doubtful
        self._read: Read | None = None
        self._chunks: Iterator[list[Row]]
        self._began = time.monotonic()
        self._reading = store.begin_reading()
        self._overtaken: set[str] = set()
        """Ids that other reads have returned since this audit began."""
        self._differing: dict[str, bytes | None] = {}
        self._looks = _LOOKS
        self.reading = True
        """Whether rows are still to come."""
        self.seen: Lsn
        """`Evidence.seen` of the read, which is known after the first `step`. When the audit ends, every
        transaction up to this position has been applied.
        """
        self.shown: Lsn
        """`Evidence.shown` of the read: no difference is newer."""
        self._until: Lsn
        self._bound: Lsn
        self._patient_until: float

    @property
    def waiting(self) -> bool:
        """Whether the next `step` would have to wait for the server."""
        return not self._opening.done() or (self._read is not None and self._read.waiting)

    @property
    def seconds(self) -> float:
        """How long the audit has been running."""
        return time.monotonic() - self._began

    def overtake(self, rows: Iterable[Row]) -> None:
        """Skip these ids, because another read has returned them."""
        if self.reading:
            self._overtaken.update(row[0] for row in rows)
        else:  # no more rows come, so only known differences matter
            for row in rows:
                self._differing.pop(row[0], None)

    def step(self, applied: Lsn, read_up_to: Lsn) -> list[Row] | None:
        """Compare the next chunk. Returns None until the audit has ended, and then the rows that still
        differ.

        The store includes every transaction up to ``applied``; ``read_up_to`` is the newest position that any
        read saw. May block as `Read.chunks` does.

        Raises:
            SourceError, Refusal: the read failed, so this audit has ended.

        """
        if self._read is None:
            self._read = self._check_evidence(self._opening.result())
            self._read.pass_over(self._doubtful)
            self._chunks = self._read.chunks(_CHUNK)
            self.seen = self._until = self._read.evidence.seen
            self.shown, self._bound = self._read.evidence.shown, self._read.evidence.bound
        if self.reading:
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._compare(chunk, self._read)
                return None
            self._find_missing()
            self._odd_rows.passed_over(self._doubtful, self._reading)
            self._odd_rows.end(self._reading)
            for name in self._overtaken:
                self._differing.pop(name, None)
            self._overtaken.clear()
            self.reading = False
            self._patient_until = time.monotonic() + _PATIENCE
        if applied < self._bound and time.monotonic() < self._patient_until:
            return None
        while applied >= self._until:
            if not self._differing or self._looks == 0:
                return list(self._differing.items())
            self._looks -= 1
            self._until = max(self._until, read_up_to)
        return None

    def close(self) -> None:
        """Abandon the audit."""
        self._opening.add_done_callback(_close)

    def _compare(self, rows: list[Row], read: Read) -> None:
        odd, again = dict(read.odd), set(read.again)
        for endpoint_id, payload in rows:
            entry = self._store.entries.get(endpoint_id)
            held = entry.payload if entry is not None else None
            if endpoint_id in self._differing or (entry is not None and entry.reading == self._reading):
                again.add(endpoint_id)
                if payload == self._differing.get(endpoint_id, held):
                    continue
                odd[endpoint_id], payload = TWICE, None  # noqa: PLW2901 - if two rows differ, neither is served
            if entry is not None:
                entry.reading = max(entry.reading, self._reading)
            if held != payload:
                self._differing[endpoint_id] = payload
            else:
                self._differing.pop(endpoint_id, None)
        read.pass_over(again)
        self._odd_rows.doubt(again)
        self._odd_rows.take(rows, odd, self._reading, overtaken=self._overtaken, whole=True)

    def _find_missing(self) -> None:
        missing = self._store.not_read(self._reading)
        self._differing.update(dict.fromkeys(name for name in missing if name not in self._doubtful))


def _close(opening: Future[Read]) -> None:
    if opening.exception() is None:
        opening.result().close()
