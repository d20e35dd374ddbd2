"""What the server hears from the slot's reader: signs of life, and what it may forget.

Two traps.

psycopg2 answers a keepalive by itself, with a flush position that it guesses from the messages that were
*read*; inside a transaction that guess can cover complete transactions before it that are still pending, and
they would never be delivered again. So the cursor that reads is never told of a flush position. Before the
first message it does take over the end of WAL that keepalives name, which is before everything that is still
to come; the next sign of life puts right what such an answer has said.

A flush position that stands makes a wal sender eligible as a synchronous standby
(`cdc.replication.synchronous_standby`). So each confirmation is followed at once by a sign of life without
one. A cursor of psycopg2 never reports less than before, so there is a cursor for each of the two. What the
slot has confirmed stays: Postgres ignores a flush position of 0.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cdc.failpoints import reach
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from psycopg2.extras import ReplicationCursor

    from cdc.freshness import Freshness

_TICK = 0.1
"""Least seconds between two confirmations."""
_SIGN = 1.0
"""Seconds after which the server hears from us even if nobody can take what it sends: its patience with
readers (wal_sender_timeout) may be short.
"""
ASK = 5.0
"""Seconds between signs of life that ask the server for one."""


class Feedback:
    """Owned by the thread that reads the slot; one for each connection."""

    def __init__(self, confirming: ReplicationCursor, signs: ReplicationCursor) -> None:
        """Take two cursors on the connection that is read; neither has reported anything yet."""
        self._confirming = confirming
        self._signs = signs
        self._sent_at = 0.0
        self._asked_at = time.monotonic()
        self._unanswered: float | None = None
        self._confirmed: Lsn = Lsn(0)

    def heard(self) -> None:
        """Note that the server has sent something."""
        self._unanswered = None

    @property
    def silence(self) -> float:
        """Seconds since the server was asked for a sign of life without sending anything; 0.0 if it has.

        A process that was frozen itself has not asked meanwhile, and so blames nobody.
        """
        return 0.0 if self._unanswered is None else time.monotonic() - self._unanswered

    def send(self, freshness: Freshness, confirm: Lsn) -> None:
        """Send what is due, with ``confirm`` as what may be forgotten (0 for nothing)."""
        now = time.monotonic()
        ask = now - self._asked_at >= ASK
        news = confirm > self._confirmed and now - self._sent_at >= _TICK
        if not (ask or news or now - self._sent_at >= _SIGN):
            return
        received = max(freshness.positions().received, confirm)
        if confirm:
            if confirm > self._confirmed:
                reach("confirming")
            self.confirm(confirm, received)
            if confirm > self._confirmed:
                reach("confirmed")
            freshness.confirmed(confirm)
        self._signs.send_feedback(write_lsn=received, reply=ask, force=True)
        self._confirmed, self._sent_at = confirm, now
        if ask:
            self._asked_at = now
            self._unanswered = self._unanswered or now

    def confirm(self, position: Lsn, received: Lsn = Lsn(0)) -> None:
        """Let the server forget everything up to ``position``; then `send`, or close the connection."""
        self._confirming.send_feedback(
            write_lsn=max(received, position), flush_lsn=position, apply_lsn=position, force=True
        )
