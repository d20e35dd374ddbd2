"""Probes: threads that ask a server once a second for its position.

`Probe` asks the slot's server for the end of its WAL and the state of the slot. The stream cannot show these,
since it looks the same while nothing happens and while the server is frozen. Staleness is computed from the
answers. Before each confirmation of the slot, `Probe` also asks whether the server would take us for a
synchronous standby (`cdc.replication.synchronous_standby`).

`ReplayProbe` asks the query server how far it has replayed, if that is another server. It is a separate
thread, so that a frozen query server does not look like a frozen slot's server.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from cdc import lsn
from cdc.observer import SlotSeen
from cdc.postgres.asking import Asking
from cdc.postgres.connection import identify
from cdc.postgres.errors import is_shutdown
from cdc.postgres.session import ask
from cdc.postgres.slot_state import SlotState
from cdc.replication.synchronous_standby import Sender
from cdc.units import Xid8

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.freshness import Freshness
    from cdc.lsn import Lsn
    from cdc.observer import Observer
    from cdc.postgres.connection import Address
    from cdc.replication.slot import SlotReader
    from cdc.replication.standby_snapshot import StandbySnapshotRequest

_INTERVAL = 1.0
_TICK = 0.1
"""Seconds between queries while a position waits to be confirmed."""
_HISTORY = 5.0
"""Seconds between queries for the timeline that a standby replays, each on a new replication connection.
Nothing else shows that the standby follows another primary.
"""
_UNHEARD = 10.0
"""Seconds without an answer from the wal sender after which the probe looks at its state."""
_TROUBLE = "slot_creation"


class ReplayProbe(Asking):
    """Reports the query server's replay position; None for a primary or a server that does not answer."""

    def __init__(self, address: Address, query: str, freshness: Freshness, observer: Observer) -> None:
        """``query`` is the text of the query `WalEnd`."""
        super().__init__("replay-probe", address, observer, _INTERVAL)
        self._query = query
        self._freshness = freshness

    def _ask(self, connection: Connection) -> None:
        [(end, timeline, _)] = ask(connection, self._query)
        replayed: Lsn | None = lsn.parse(end) if timeline is None and end is not None else None
        self._freshness.replayed(replayed)

    def _failed(self, error: Exception) -> None:  # noqa: ARG002 - whatever it is
        self._freshness.replayed(None)


class Probe(Asking):
    """Reports the end of WAL of the slot's server. While the server is away nothing is reported, so that
    staleness grows.
    """

    def __init__(
        self,
        address: Address,
        slot_name: str,
        queries: dict[str, str],
        reader: SlotReader,
        freshness: Freshness,
        observer: Observer,
        snapshot_request: StandbySnapshotRequest | None,
    ) -> None:
        """``snapshot_request`` asks the primary to log its running transactions while a slot is created on a
        standby; None if the primary is unknown.
        """
        super().__init__("probe", address, observer, _TICK)
        self._observer = observer
        self._slot_name = slot_name
        self._queries = queries
        self._reader = reader
        self._freshness = freshness
        self._snapshot_request = snapshot_request
        self._said_creating = False
        self._history_at = 0.0
        self._look_at = 0.0
        self._looking = False
        """Whether all queries are due, and not only the one before a confirmation."""

    def _is_due(self) -> bool:
        """Return whether the interval has passed, or a connection is open and has a position to confirm."""
        now = time.monotonic()
        self._looking = now >= self._look_at
        if self._looking:
            self._look_at = now + _INTERVAL
        return self._looking or (self._connection is not None and self._reader.to_judge)

    def _failed(self, error: Exception) -> None:
        if is_shutdown(error):
            self._reader.drop("shutdown")  # a fast shutdown waits for readers of slots

    def _ask(self, connection: Connection) -> None:
        self._reader.judge(lambda: Sender.of(ask(connection, self._queries["Sender"])))
        if self._looking:
            self._look(connection)

    def _look(self, connection: Connection) -> None:
        asked_at = time.monotonic()
        [(end, timeline, next_xid)] = ask(connection, self._queries["WalEnd"])
        self._reader.note_next_xid(Xid8(int(next_xid)))
        if end is not None:
            self._freshness.reported(lsn.parse(end), asked_at)
        self._look_at_history(None if timeline is None else int(timeline, 16))
        self._look_at_sender(connection)
        slot = SlotState.of(ask(connection, self._queries["Slot"], {"slot": self._slot_name}))
        if slot is None:
            self._observer.slot(SlotSeen(None, None, None, None, None))
        else:
            self._observer.slot(
                SlotSeen(
                    slot.retained_bytes,
                    slot.safe_wal_bytes,
                    slot.wal_status,
                    slot.catalog_xmin_age,
                    slot.active_pid,
                )
            )
        if self._reader.creating or self._said_creating:
            self._report_creation(connection)

    def _look_at_sender(self, connection: Connection) -> None:
        """If the wal sender does not answer, find out whether it is busy decoding changes of other tables."""
        sender = self._reader.sender
        if sender is None or self._reader.silence < _UNHEARD:
            return
        if ask(connection, self._queries["AtWork"], {"pid": sender.pid}) == [(True,)]:
            self._reader.at_work()

    def _look_at_history(self, timeline: int | None) -> None:
        """Start the stream again if the server's timeline has changed. A ``timeline`` of None stands for a
        standby, whose timeline is then queried here.
        """
        now = time.monotonic()
        if timeline is None and now >= self._history_at:
            self._history_at = now + _HISTORY
            with closing(self._address.connect_replication()) as connection, connection.cursor() as asking:
                timeline = identify(asking).timeline
        known = self._reader.history
        if timeline is not None and known is not None and known.timeline != timeline:
            self._reader.drop("timeline")

    def _report_creation(self, connection: Connection) -> None:
        """Report which transactions the creation of the slot waits for."""
        self._said_creating = self._reader.creating
        if not self._said_creating:
            self._observer.trouble(_TROUBLE, None)
            return
        whom = "; ".join(one for one, _ in ask(connection, self._queries["OldestTransactions"]))
        text = f"the slot is created once these end: {whom or 'transactions that we may not see'}"
        if ask(connection, self._queries["InRecovery"]) == [(True,)]:
            text = f"the slot is created once the primary logs its running transactions, {self._say_how()}"
        self._observer.trouble(_TROUBLE, text)

    def _say_how(self) -> str:
        if self._snapshot_request is None:
            return (
                "which an idle one rarely does: type SELECT pg_log_standby_snapshot() there, or set"
                " PRIMARY_CONNECTION_STRING"
            )
        self._snapshot_request.give()
        fault = self._snapshot_request.fault
        return (
            f"which it cannot be asked for: {fault}" if fault else "and those have ended; it has been asked"
        )
