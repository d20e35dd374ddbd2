"""Logs the applier's reports that matter to an operator: a lost source, a reconcile, a lasting trouble.

Ordinary batches are logged at debug level, with counts and positions, but never with an endpoint's content.
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
"""Minimum time between two equal lines about an unreachable source, in seconds."""
_CREATING: Final = "slot_creation"
_LASTS: Final = 3.0
"""Seconds after which a slot's creation is logged if it has not ended."""


class LogObserver(Listener):
    """Writes one line for each change of a state, and not for each report. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._mode: Mode | None = None
        self._connected: bool | None = None
        self._wal_status: str | None = None
        self._troubles: dict[str, str] = {}
        self._creating_since: float | None = None
        self._lost: tuple[tuple[str, str], float] | None = None
        """The last line about a lost source, and the time at which it was written."""

    def mode(self, mode: Mode) -> None:
        """Log a change of the mode in which the source is read."""
        with self._lock:
            changed, self._mode = self._mode != mode, mode
        if changed:
            (_log.warning if mode == "polling" else _log.info)("source mode", mode=mode)

    def connected(self, connected: bool) -> None:
        """Log that the replication connection was opened or lost."""
        with self._lock:
            changed, self._connected = self._connected != connected, connected
            self._lost = None if connected else self._lost
        if changed:
            (_log.info if connected else _log.warning)(
                "source connected" if connected else "source disconnected"
            )

    def reconnecting(self, reason: str, message: str) -> None:
        """Log why the source was lost. The same reason is logged at most once a minute."""
        now = self._clock()
        with self._lock:
            again = (
                self._lost is not None and self._lost[0] == (reason, message) and now - self._lost[1] < _AGAIN
            )
            if not again:
                self._lost = (reason, message), now
        (_log.debug if again else _log.warning)("source lost, reconnecting", reason=reason, message=message)

    def batch(self, batch: BatchSeen) -> None:
        """Log a batch and each of its transactions, so that one can be followed from its commit."""
        if not _log.isEnabledFor(logging.DEBUG):  # a batch can have thousands of transactions
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
        """Log a comparison of the whole map. If an audit repaired something, it is logged as an error.

        An audit or a poll that found no difference is routine, and is logged at debug level.
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
        """Log that the state file failed, so that clients cannot resume after a restart."""
        _log.error("state file failed, clients cannot resume across a restart", message=message)

    def slot(self, slot: SlotSeen) -> None:
        """Log once that Postgres is about to remove WAL that the slot needs, or has removed it."""
        with self._lock:
            before, self._wal_status = self._wal_status, slot.wal_status
        if before != slot.wal_status and slot.wal_status in ("unreserved", "lost"):
            _log.error("slot loses its WAL", wal_status=slot.wal_status, retained_bytes=slot.retained_bytes)

    def trouble(self, key: str, message: str | None) -> None:
        """Log a lasting condition once when it begins, changes or ends.

        The creation of the slot is logged only if it lasts: even on an idle server it takes a moment.
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
