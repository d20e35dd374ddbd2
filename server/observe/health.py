"""Decides whether the server is ready and whether it is healthy, which are two different questions.

*Ready* means that the server has a complete map that gateways may use. A database outage must not become a
gateway outage, so a server stays ready while the database is unreachable, unless ``MAX_STALENESS`` sets a
limit. *Healthy* means that there is nothing that a person has to look at.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from authz.health import Reason
from cdc import lsn
from cdc.pair.pair import Pair
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from cdc.freshness import Freshness
    from cdc.observer import Mode, SlotSeen
    from cdc.store.store import Store

STALE_SECONDS: Final = 30.0
"""Staleness beyond which the server reports itself unhealthy, in seconds, independently of ``MAX_STALENESS``.
"""


_LOSING: Final = {
    "unreserved": "the slot's wal_status is unreserved: the slot is lost at the next checkpoint;"
    " end the oldest transaction, or raise max_slot_wal_keep_size",
    "lost": "the slot's wal_status is lost: a new slot is created, and the whole map is read again",
}
"""By wal_status, the messages about a slot that Postgres is about to invalidate or has invalidated."""


class Health(Listener):
    """Remembers the applier's last reports about the source.

    Any thread may read the result, without waiting.
    """

    def __init__(
        self,
        store: Store,
        freshness: Freshness,
        max_staleness: float | None = None,
        pair: Pair | None = None,
    ) -> None:
        """If the staleness exceeds ``max_staleness`` (in seconds), the server is not ready.

        None means no limit.
        """
        self._pair = pair or Pair()
        self._store = store
        self._freshness = freshness
        self._max_staleness = max_staleness
        self._lock = threading.Lock()
        self._mode: Mode = "waiting"
        self._connected = False
        self._last_loss = ""
        self._slot: SlotSeen | None = None
        self._troubles: dict[str, str] = {}

    def unready(self) -> tuple[Reason, ...]:
        """The reasons why gateways should not use this server. Empty if it is ready."""
        if self._pair.standing_by:
            return (Reason("standing_by", "the peer reads the slot; this server takes over when it is gone"),)
        if not self._store.ready:
            return (Reason("not_ready", "no complete map has been loaded yet"),)
        staleness = self._freshness.staleness()
        if self._max_staleness is not None and staleness > self._max_staleness:
            return (
                Reason(
                    "stale",
                    f"{_exact_ago(staleness)}; MAX_STALENESS is {self._max_staleness:g} s{self._behind()}",
                ),
            )
        return ()

    def reasons(self) -> tuple[Reason, ...]:
        """Everything that a person should look at. Empty if the server is healthy."""
        standing_by = self._pair.standing_by
        reasons = [] if standing_by else list(self.unready())
        with self._lock:
            mode, connected, last_loss = self._mode, self._connected, self._last_loss
            slot, troubles = self._slot, dict(self._troubles)
        if standing_by:  # it is healthy as long as it can mirror the peer
            if not self._pair.mirroring:
                reasons.append(Reason("peer", "the peer reads the slot and cannot be mirrored"))
        elif not connected:
            reasons.append(Reason("disconnected", last_loss or "the replication connection is not up"))
        if mode == "polling":
            reasons.append(
                Reason("polling", "the stream alone is not enough: the mapping is re-read every few seconds")
            )
        staleness = self._freshness.staleness()
        if staleness > STALE_SECONDS and not any(reason.code == "stale" for reason in reasons):
            reasons.append(Reason("stale", _exact_ago(staleness) + self._behind()))
        if slot is not None and slot.wal_status in _LOSING:
            reasons.append(Reason("slot_lost", _LOSING[slot.wal_status]))
        reasons.extend(Reason(key, message) for key, message in sorted(troubles.items()))
        return tuple(reasons)

    def _behind(self) -> str:
        """Return a text if the query server is a standby that lags behind the slot's server."""
        positions = self._freshness.positions()
        if positions.replayed is None or positions.replayed >= positions.server_end:
            return ""
        behind = positions.server_end - positions.replayed
        return (
            f"; the query server has replayed up to {lsn.show(positions.replayed)}, {behind} bytes less than"
            " the slot's server has: see pg_is_wal_replay_paused(), recovery_min_apply_delay and"
            " pg_stat_wal_receiver there"
        )

    def mode(self, mode: Mode) -> None:
        """Remember the mode in which the source is read."""
        with self._lock:
            self._mode = mode

    def connected(self, connected: bool) -> None:
        """Remember whether the replication connection is up."""
        with self._lock:
            self._connected = connected
            if connected:
                self._last_loss = ""

    def reconnecting(self, reason: str, message: str) -> None:  # noqa: ARG002 (the reason is a label)
        """Remember why the source was lost, to report it until the connection is back."""
        with self._lock:
            self._last_loss = message

    def slot(self, slot: SlotSeen) -> None:
        """Remember the slot's state."""
        with self._lock:
            self._slot = slot

    def trouble(self, key: str, message: str | None) -> None:
        """Remember a lasting condition, or forget it if ``message`` is None."""
        with self._lock:
            if message is None:
                self._troubles.pop(key, None)
            else:
                self._troubles[key] = message


def _exact_ago(staleness: float) -> str:
    return f"the map was last known to be exact {staleness:.0f} s ago"
