"""Who waits for us in the database, and for how long: no writer and no migration may for more than 5 s."""

from __future__ import annotations

import re
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 5.0
"""Seconds."""
_TICK = 0.1
_LATELY = 5.0
"""Seconds for which a session of ours is known by its number after it was last seen."""
_BLOCKED = """
SELECT waiting.mode, extract(epoch FROM clock_timestamp() - waiting.waitstart)::float8
FROM pg_locks AS waiting
WHERE NOT waiting.granted AND EXISTS (
    SELECT FROM unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
    JOIN pg_stat_activity AS ours USING (pid)
    WHERE ours.application_name = 'pads-cdc'
)
"""
"""Locks of any kind that a session of ours has, and somebody waits for."""
_COMMITS = """
SELECT 'commit', extract(epoch FROM clock_timestamp() - query_start)::float8
FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND EXISTS (
    SELECT FROM pg_stat_replication
    WHERE application_name = 'pads-cdc' AND sync_state IN ('sync', 'quorum')
)
"""
"""Commits that wait for a standby, while we count as one."""
_OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pads-cdc'"


class Waits:
    """Looks ten times a second at the servers that we read, in a thread of its own, until `stop`."""

    def __init__(self, urls: Callable[[], list[str]]) -> None:
        """``urls`` are of the servers as they are at the time."""
        self._urls = urls
        self._ending = threading.Event()
        self.excused = threading.Event()
        """What is frozen itself makes everybody wait: that is not for us."""
        self._excused_until = 0.0
        self.longest = 0.0
        """Seconds that anybody has waited for us."""
        self.who = ""
        self.during: Callable[[], str] = str
        self.victims: list[str] = []
        """Deadlocks that ended somebody's transaction because of us."""
        self._ours: dict[int, float] = {}
        """When each session of ours was last seen: its number becomes another session's in time."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join(30)

    def blame(self, error: psycopg2.Error) -> None:
        """Note a deadlock in which a session of ours was."""
        found = re.findall(r"\b[Pp]rocess (\d+)", str(error))
        since = time.monotonic() - _LATELY
        if any(self._ours.get(int(pid), 0.0) > since for pid in found):
            self.victims.append(str(error))

    def _run(self) -> None:
        while not self._ending.wait(_TICK):
            if self.excused.is_set():
                self._excused_until = time.monotonic()
            for url in self._urls():
                try:
                    self._look(url)
                except psycopg2.Error:
                    continue  # a fault: the server is down, or does not let us in

    def _look(self, url: str) -> None:
        options = "-c statement_timeout=2s"
        with closing(psycopg2.connect(url, options=options, connect_timeout=2)) as session:
            session.autocommit = True
            with session.cursor() as cursor:
                while not self._ending.wait(_TICK) and url in self._urls():
                    if self.excused.is_set():
                        self._excused_until = time.monotonic()
                    cursor.execute(_OURS)
                    self._ours.update((pid, time.monotonic()) for (pid,) in cursor)
                    for query in (_BLOCKED, _COMMITS):
                        cursor.execute(query)
                        for who, seconds in cursor.fetchall():
                            self._found(who, seconds or 0.0)

    def _found(self, who: str, seconds: float) -> None:
        if time.monotonic() - seconds <= self._excused_until:
            return
        if seconds > self.longest:
            self.longest, self.who = seconds, f"{who}, {self.during()}"
