"""A relay's intake: applies pages and heads from any transport, counts them, and decides when to serve the
map. `cdc.relay.pages` defines pages and heads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.relay.page_reader import PageOutcome
from cdc.units import Revision

if TYPE_CHECKING:
    from cdc.observer import Observer
    from cdc.relay.leader import LeaderFreshness
    from cdc.relay.page_reader import PageReader
    from cdc.relay.pages import Head, Page
    from cdc.store.store import Store

CHAIN: Final = "relay_chain"
_LEADERLESS_SECONDS: Final = 3.0
"""Seconds that a complete map waits for a head of the leader. After that it is served with an unknown age."""


@dataclass(slots=True)
class Received:
    """Counters for the metrics; only `Intake` writes them."""

    connected: bool = False
    pages: int = 0
    bytes: int = 0
    breaks: int = 0
    mismatches: int = 0
    restarts: int = 0
    """Number of connections to the broker or the leader that were lost or could not be opened."""
    revision: Revision = Revision(0)
    """The leader's revision at the newest applied checkpoint."""


class Intake:
    """Applies pages and heads. One thread uses it; any thread may read `received`."""

    def __init__(
        self,
        store: Store,
        reader: PageReader,
        freshness: LeaderFreshness,
        observer: Observer,
    ) -> None:
        self._store = store
        self._reader = reader
        self._freshness = freshness
        self._observer = observer
        self.received = Received()
        self._arrived_at: float | None = None
        self._broken = False

    @property
    def wanting(self) -> bool:
        """Whether a generation (a whole map in pages) is needed and its opening page has not arrived yet."""
        return self._reader.wanting

    def connected(self) -> None:
        """Record that the connection is up, so that pages arrive from now on."""
        self.received.connected = True
        self._observer.connected(connected=True)
        self._observer.mode("streaming")

    def lost(self, reason: str, why: str) -> None:
        """Record that the connection was lost or could not be opened; see `Observer.reconnecting`."""
        self.received.connected = False
        self.received.restarts += 1
        self._observer.connected(connected=False)
        self._observer.reconnecting(reason, why)
        self.look()

    def count(self, size: int, *, whole: bool) -> None:
        """Count ``size`` received bytes of a page. If the page is ``whole``, count it too."""
        self.received.bytes += size
        self.received.pages += whole

    def page(self, page: Page) -> None:
        """Apply a page."""
        line = self._reader.line
        outcome = self._reader.take(page)
        match outcome:
            case PageOutcome.ARRIVED:
                self._arrived(other_line=self._reader.line != line)
            case PageOutcome.BROKEN:
                self.received.breaks += 1
                self._report_broken("pages are missing")
            case PageOutcome.MISMATCH:
                self.received.mismatches += 1
                self._report_broken("our map's count or digest differs from the leader's")

    def head(self, word: Head, *, live: bool) -> None:
        """Apply a head of the leader; see `LeaderFreshness.heard` for ``live``."""
        if self._reader.line in ("", word.line):
            self._freshness.heard(word, live=live)
            self._reader.hear(word)

    def look(self) -> None:
        """Begin to serve the map if it is known to be the leader's current map, or after a time limit."""
        if self._store.ready or self._arrived_at is None:
            return
        current = self._freshness.heard_at is not None and self._freshness.behind == 0
        if current or time.monotonic() - self._arrived_at > _LEADERLESS_SECONDS:
            self._store.loaded()

    def _arrived(self, *, other_line: bool) -> None:
        if other_line:
            self._freshness.other_line()
        self._freshness.arrived(self._reader.exact)
        self.received.revision = self._reader.exact
        self._arrived_at = self._arrived_at or time.monotonic()
        if self._broken:
            self._broken = False
            self._observer.trouble(CHAIN, None)

    def _report_broken(self, why: str) -> None:
        self._broken = True
        self._observer.trouble(CHAIN, f"{why}: the old map is served until a complete new one has arrived")
