"""Feedback to the server: status updates, which show that we are alive, and confirmations of the slot.

There are two traps.

psycopg2 answers a keepalive by itself, with a flush position that it derives from the messages that were
*read*. Inside a transaction, that position can lie beyond earlier transactions that are still pending, and
the slot would never deliver these again. So the cursor that reads never gets a flush position. Before the
first message it adopts the end of WAL from keepalives, which lies before everything that is still to come.
The next status update corrects such an answer.

A wal sender with a flush position may be chosen as a synchronous standby
(`cdc.replication.synchronous_standby`). So each confirmation is sent once, reports nothing beyond the
confirmed position, and is followed at once by a status update without a flush position. A cursor of psycopg2
never reports less than before, so each of the two has its own cursor. The slot stays confirmed, since
Postgres ignores a flush position of 0.
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
"""Seconds between two confirmations, at least."""
_SIGN = 1.0
"""Seconds between status updates while the applier takes no transactions. wal_sender_timeout may be short."""
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
        """Note that the server has sent something."""
        self._unanswered = None

    @property
    def silence(self) -> float:
        """Seconds since the server was asked for an answer and has sent nothing; 0.0 if it has answered.

        While this process is frozen it does not ask, so a freeze of its own does not count.
        """
        return 0.0 if self._unanswered is None else time.monotonic() - self._unanswered

    def send(self, freshness: Freshness, confirm: Lsn) -> None:
        """Send the feedback that is due. ``confirm`` is the position to confirm; 0 for none.

        Sends nothing while the connection is full of feedback that the server has not read: psycopg2 would
        wait for room, and would stop all threads of this process until then.
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
        """Confirm the slot up to ``position``, unless that is done. The caller then sends a status update, or
        ends the connection.
        """
        if position > self._confirmed:
            self._confirmed = position
            self._confirming.send_feedback(
                write_lsn=position, flush_lsn=position, apply_lsn=position, force=True
            )
