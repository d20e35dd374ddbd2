"""The log lines that an operator would act on: the source comes and goes, the map is re-read, trouble.

Ordinary batches are debug lines: counts and positions, never an endpoint's content.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from cdc import lsn
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.observer import BatchSeen, Mode, ReconcileSeen, SlotSeen

_log = structlog.get_logger("pads_cdc")

_AGAIN: Final = 60.0
"""Seconds between two lines that say the same of a source that stays away."""
_CREATING: Final = "slot_creation"
_LASTS: Final = 3.0
"""Seconds after which a slot's creation is worth a word."""


class LogObserver(Listener):
    """Writes one line a change of state, not one a report; called from any of the applier's threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._mode: Mode | None = None
        self._connected: bool | None = None
        self._wal_status: str | None = None
        self._troubles: dict[str, str] = {}
        self._creating_since: float | None = None
        self._lost: tuple[tuple[str, str], float] | None = None
        """Why the source was lost, as it was last said, and when."""

    def mode(self, mode: Mode) -> None:
        """Log another way of reading the source."""
        with self._lock:
            changed, self._mode = self._mode != mode, mode
        if changed:
            (_log.warning if mode == "polling" else _log.info)("source mode", mode=mode)

    def connected(self, connected: bool) -> None:
        """Log that the replication connection came or went."""
        with self._lock:
            changed, self._connected = self._connected != connected, connected
            self._lost = None if connected else self._lost
        if changed:
            (_log.info if connected else _log.warning)(
                "source connected" if connected else "source disconnected"
            )

    def reconnecting(self, reason: str, message: str) -> None:
        """Log why the source was lost; the same again and again once a minute."""
        now = self._clock()
        with self._lock:
            again = (
                self._lost is not None and self._lost[0] == (reason, message) and now - self._lost[1] < _AGAIN
            )
            if not again:
                self._lost = (reason, message), now
        (_log.debug if again else _log.warning)("source lost, reconnecting", reason=reason, message=message)

    def batch(self, batch: BatchSeen) -> None:
        """Log a batch and each of its transactions, for those who follow one from its commit to here."""
        if not _log.isEnabledFor(logging.DEBUG):  # a backlog has thousands in a batch
            return
        for one in batch.transactions:
            _log.debug(
                "transaction published",
                xid=one.xid,
                end=lsn.show(one.end),
                committed_at=datetime.fromtimestamp(one.committed_at, UTC).isoformat(),
                rows={f"{table} {action}": number for (table, action), number in one.rows.items()},
                affected=one.affected,
                visible_after_seconds=round(batch.visibility_seconds, 6),
                requery_seconds=round(batch.requery_seconds, 6),
                published_after_seconds=round(one.published_at - one.committed_at, 6),
                revision=batch.revision,
            )
        _log.debug(
            "batch published",
            transactions=len(batch.transactions),
            end=lsn.show(batch.transactions[-1].end) if batch.transactions else None,
            affected=batch.affected,
            upserts=batch.upserts,
            deletes=batch.deletes,
            suppressed=batch.suppressed,
            revision=batch.revision,
        )

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Log a full comparison; a quiet audit is routine, one that had to repair something is a bug.

        Polling compares every two seconds: those that find nothing are routine too.
        """
        changed = reconcile.upserts + reconcile.deletes
        level = _log.info if changed or reconcile.reason != "polling" else _log.debug
        if reconcile.reason == "audit":
            level = _log.error if changed else _log.debug
        level(
            "map reconciled",
            reason=reconcile.reason,
            endpoints=reconcile.endpoints,
            upserts=reconcile.upserts,
            deletes=reconcile.deletes,
            seconds=round(reconcile.seconds, 3),
        )

    def decode_error(self, reason: str, message: str) -> None:
        """Log a message of the slot that could not be handled."""
        _log.error("message not understood, map will be re-read", reason=reason, message=message)

    def state_file_error(self, message: str) -> None:
        """Log that restarts will not be seamless."""
        _log.error("state file failed, clients cannot resume across a restart", message=message)

    def slot(self, slot: SlotSeen) -> None:
        """Log when the server starts, or stops, threatening to drop the slot's WAL."""
        with self._lock:
            before, self._wal_status = self._wal_status, slot.wal_status
        if before != slot.wal_status and slot.wal_status in ("unreserved", "lost"):
            _log.error("slot's WAL is going", wal_status=slot.wal_status, retained_bytes=slot.retained_bytes)

    def trouble(self, key: str, message: str | None) -> None:
        """Log a lasting condition once when it comes, changes or ends.

        That the slot is being made is one only when it lasts: on an idle server it takes a moment too.
        """
        with self._lock:
            if key == _CREATING:
                now = self._clock()
                if message is None:
                    self._creating_since = None
                elif self._creating_since is None:
                    self._creating_since = now
                if message is not None and now - (self._creating_since or now) < _LASTS:
                    return
            before = self._troubles.pop(key, None)
            if message is not None:
                self._troubles[key] = message
        if message is not None and message != before:
            _log.warning("trouble", reason=key, message=message)
        elif message is None and before is not None:
            _log.info("trouble is over", reason=key)
