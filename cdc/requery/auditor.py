"""Decides when to audit, repairs the drift that an audit finds, and tries again after a failed audit.

`cdc.requery.audit` decides which differences are drift.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from cdc.errors import PadsCdcError, gives_way
from cdc.lsn import Lsn
from cdc.observer import ReconcileSeen
from cdc.requery.audit import Audit

if TYPE_CHECKING:
    from cdc.observer import Observer
    from cdc.postgres.database import Database
    from cdc.requery.requery import Requery
    from cdc.state.ledger import Ledger
    from cdc.store.store import Store

_AGAIN = 10.0
"""Seconds until the next audit if the last one failed, or if an odd row may have been corrected."""
_TROUBLE = "audit"


class Auditor:
    """Runs one audit after another. Owned by the applier's thread."""

    def __init__(
        self,
        *,
        requery: Requery,
        database: Database,
        store: Store,
        ledger: Ledger,
        observer: Observer,
        interval: float,
    ) -> None:
        """``interval`` is in seconds."""
        self._requery = requery
        self._database = database
        self._store = store
        self._ledger = ledger
        self._observer = observer
        self._interval = interval
        self._failing = False
        self._due_at = 0.0
        self._seen_at = 0.0
        """When the newest audit began (monotonic time)."""
        self._seen: Lsn = Lsn(0)
        """`Requery.done_up_to` when the newest audit began."""
        self.postpone()

    def postpone(self) -> None:
        """Record that the whole mapping was compared just now: the next audit is due after the interval."""
        self._due_at = time.monotonic() + self._interval

    def hurry(self) -> None:
        """Make an audit due now. It begins as soon as there is no more urgent work."""
        self._due_at = 0.0

    def patience(self, idle: float) -> float:
        """Return the number of seconds until `step` has work again, or ``idle`` if it is unknown."""
        audit = self._requery.audit
        return 0.0 if audit is not None and audit.reading and not audit.waiting else idle

    def step(self, *, may_start: bool) -> None:
        """Start an audit if one is due and may start. If rows of an audit have arrived, do a step of it.

        Raises:
            SourceError, Refusal: the database could not be read. The audit is tried again later.

        """
        if (
            may_start
            and (time.monotonic() >= self._due_at or self._nameless_may_be_mended())
            and self.start()
        ):
            self.postpone()
        audit = self._requery.audit
        if audit is not None and not audit.waiting:
            self._compare_some(audit)

    def start(self) -> bool:
        """Begin an audit. Return False if it has to wait for more urgent work."""
        requery = self._requery
        if requery.audit is not None or requery.busy:
            return False
        self._seen_at, self._seen = time.monotonic(), requery.done_up_to
        check_evidence = partial(requery.checked, read_up_to=requery.read_up_to)
        opening = self._database.open()
        requery.begin_audit(Audit(opening, self._store, requery.odd_rows, check_evidence, requery.doubtful()))
        return True

    def _nameless_may_be_mended(self) -> bool:
        """Return whether a row without an id may have got an id. Changes of such a row do not name an
        endpoint, so only an audit can detect this.
        """
        if not self._requery.odd_rows.nameless or time.monotonic() < self._seen_at + _AGAIN:
            return False
        return self._requery.done_up_to > self._seen

    def _compare_some(self, audit: Audit) -> None:
        """Do a step of the audit. At its end, publish the differences that remain, which are drift."""
        requery = self._requery
        try:
            differing = audit.step(requery.done_up_to, requery.read_up_to)
        except PadsCdcError as error:
            requery.end_audit()
            self._due_at = time.monotonic() + _AGAIN
            if gives_way(error):
                return
            self._failing = True
            self._observer.trouble(_TROUBLE, f"audits fail: {error}")
            raise
        if self._failing:
            self._failing = False
            self._observer.trouble(_TROUBLE, None)
        if differing is None:
            return
        requery.end_audit()
        requery.settle_doubts(requery.done_up_to)
        batch = self._store.prepare(differing, audit.shown, named=False)
        if batch.changed:
            self._ledger.append(batch, position=self._store.position, seen=audit.seen)
            consistent = requery.consistent
            position = requery.done_up_to if consistent else Lsn(0)
            self._store.publish(batch, consistent=consistent, position=position, seen=audit.shown)
        seen = ReconcileSeen("audit", len(self._store), batch.upserts, batch.deletes, audit.seconds)
        self._observer.reconciled(seen)
