"""Feedback to the server: status updates, which show that we are alive, and confirmations of the slot.

There are two dangers.

psycopg2 answers a keepalive by itself, with a flush position that it derives from the messages that were
*read*. Inside a transaction, that position can be beyond earlier transactions that are still pending, and the
slot would never deliver these again. So the reading cursor never gets a flush position. Before its first
message, the cursor reports the end of WAL from keepalives, which is before everything that the stream will
deliver. The next status update corrects such an answer.

A wal sender with a flush position may be chosen as a synchronous standby
(`cdc.replication.synchronous_standby`). So each confirmation is sent once, reports nothing beyond the
confirmed position, and is followed at once by a status update without a flush position. A psycopg2 cursor
never reports less than before, so confirmations and status updates have separate cursors. The slot stays
confirmed, since Postgres ignores a flush position of 0.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from cdc.failpoints import reach
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from psycopg2.extras import ReplicationCursor

    from cdc.freshness import Freshness

_TICK = 0.1
"""Minimum time between two confirmations, in seconds."""
_SIGN = 1.0
"""Seconds between status updates while nothing is confirmed. They must be frequent, since wal_sender_timeout
may be short.
"""
ASK = 5.0
"""Seconds between status updates that ask the server for an answer."""


class Feedback:
    """Sends one connection's feedback. Owned by the thread that reads the slot."""

    def __init__(self, confirming: ReplicationCursor, signs: ReplicationCursor) -> None:
        """Take two cursors of the reading connection that have not sent feedback yet."""
        self._confirming = confirming
        self._signs = signs
        self._room = select.poll()
        self._room.register(signs.fileno(), select.POLLOUT)
        self._sent_at = 0.0
        self._asked_at = time.monotonic()
        self._unanswered: float | None = None
        self._confirmed: Lsn = Lsn(0)

    def heard(self) -> None:
        """Record that the server has sent something."""
        self._unanswered = None

    @property
    def silence(self) -> float:
        """Seconds since the server was asked for an answer, if it has sent nothing since then; otherwise 0.0.

        A frozen process does not ask, so the time during which this process is frozen does not count.
        """
        return 0.0 if self._unanswered is None else time.monotonic() - self._unanswered

    def send(self, freshness: Freshness, confirm: Lsn) -> None:
        """Send the feedback that is due. ``confirm`` is the position to confirm; 0 for none.

        Sends nothing while the connection is full of feedback that the server has not read. psycopg2 would
        wait for room, and would block all threads of this process until there is some.
        """
        now = time.monotonic()
        ask = now - self._asked_at >= ASK
        news = confirm > self._confirmed and now - self._sent_at >= _TICK
        if not (ask or news or now - self._sent_at >= _SIGN):
            return
        if not self._room.poll(0):
            return
        if confirm > self._confirmed:
            reach("confirming")
            self.confirm(confirm)
            reach("confirmed")
            freshness.confirmed(confirm)
        received = max(freshness.positions().received, confirm)
        self._signs.send_feedback(write_lsn=received, reply=ask, force=True)
        self._sent_at = now
        if ask:
            self._asked_at = now
            self._unanswered = self._unanswered or now

    def confirm(self, position: Lsn) -> None:
        """Confirm the slot up to ``position``, unless it is confirmed already. The caller must then send a
        status update or end the connection.
        """
        if position > self._confirmed:
            self._confirmed = position
            self._confirming.send_feedback(
                write_lsn=position, flush_lsn=position, apply_lsn=position, force=True
            )
