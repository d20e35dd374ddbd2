"""Runs a statement repeatedly in another session during a test, and measures each run."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg2

from tests.plugins.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 5.0
"""Maximum seconds that another session may have to wait for us."""


class Repeated:
    """Runs the statement in its own session, in autocommit, until the context of `repeated` ends."""

    def __init__(self, url: str, statement: str) -> None:
        self.waits: list[float] = []
        """The duration of each run, in seconds."""
        self._url, self._statement = url, statement
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with closing(psycopg2.connect(self._url)) as session, session.cursor() as cursor:
            session.autocommit = True
            while not self._ending.wait(0.005):
                began = time.monotonic()
                cursor.execute(self._statement)
                self.waits.append(time.monotonic() - began)

    def start(self) -> None:
        self._thread.start()
        self.goes_on()

    def goes_on(self, number: int = 3) -> None:
        """Wait until ``number`` more runs have ended."""
        seen = len(self.waits)
        wait_until(lambda: len(self.waits) >= seen + number, "it goes on", 2 * MOST)

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"it hangs: {self._statement}"


@contextmanager
def repeated(url: str, statement: str) -> Iterator[Repeated]:
    """Run a statement repeatedly while the context lasts. Fails if a run takes longer than `MOST`."""
    one = Repeated(url, statement)
    one.start()
    try:
        yield one
    finally:
        one.stop()
    assert max(one.waits) < MOST, max(one.waits)
