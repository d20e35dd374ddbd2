# ruff: noqa: D102 (the Observer protocol describes each report)
"""Passes the applier's reports on to several listeners: metrics, health, the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cdc.mapping.row_rule import OddReason
    from cdc.observer import BatchSeen, Mode, Observer, ReconcileSeen, SlotSeen

_log = structlog.get_logger(__name__)


class Listener:
    """An observer that ignores every report. Derive from it and override the reports of interest."""

    def mode(self, mode: Mode) -> None: ...

    def connected(self, connected: bool) -> None: ...

    def reconnecting(self, reason: str, message: str) -> None: ...

    def batch(self, batch: BatchSeen) -> None: ...

    def reconciled(self, reconcile: ReconcileSeen) -> None: ...

    def decode_error(self, reason: str, message: str) -> None: ...

    def state_file_error(self, message: str) -> None: ...

    def slot(self, slot: SlotSeen) -> None: ...

    def odd_rows(self, numbers: Mapping[OddReason, int]) -> None: ...

    def trouble(self, key: str, message: str | None) -> None: ...


class FanOut:
    """An observer that passes each report on to others, in the given order.

    The applier relies on observers that do not raise. So errors are caught and logged here: a fault in a
    metric must not stop the replication of revoked keys.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def mode(self, mode: Mode) -> None:
        self._each(lambda observer: observer.mode(mode))

    def connected(self, connected: bool) -> None:
        self._each(lambda observer: observer.connected(connected))

    def reconnecting(self, reason: str, message: str) -> None:
        self._each(lambda observer: observer.reconnecting(reason, message))

    def batch(self, batch: BatchSeen) -> None:
        self._each(lambda observer: observer.batch(batch))

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        self._each(lambda observer: observer.reconciled(reconcile))

    def decode_error(self, reason: str, message: str) -> None:
        self._each(lambda observer: observer.decode_error(reason, message))

    def state_file_error(self, message: str) -> None:
        self._each(lambda observer: observer.state_file_error(message))

    def slot(self, slot: SlotSeen) -> None:
        self._each(lambda observer: observer.slot(slot))

    def odd_rows(self, numbers: Mapping[OddReason, int]) -> None:
        self._each(lambda observer: observer.odd_rows(numbers))

    def trouble(self, key: str, message: str | None) -> None:
        self._each(lambda observer: observer.trouble(key, message))

    def _each(self, report: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                report(observer)
            except Exception:  # noqa: BLE001 (the boundary that the class describes)
                _log.exception("observer failed", observer=type(observer).__name__)
