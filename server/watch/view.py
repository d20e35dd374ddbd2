"""The view of a subscriber of the endpoint feed."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.text import Text

from server.watch.endpoint import auth, limits, plan, printable, summary
from server.watch.events import Changed, Checkpoint, Lost, Mismatched, Opened
from server.watch.show import Line, Lines

if TYPE_CHECKING:
    from server.watch.feed import Feed

_SYNCED: Final = "in sync"


class WatchedFeed:
    """What has been seen; written by the subscriber's thread, read by the one that shows it."""

    def __init__(self, target: str, feed: Feed, *, until_synced: bool) -> None:
        self.target = target
        self.lines = Lines(Line(f"connecting to {target}"))
        self._feed = feed
        self._until_synced = until_synced
        self._state = "connecting"
        self._checkpoint: tuple[float, Checkpoint] | None = None
        """The newest, and when it came (monotonic)."""
        self._counts: Counter[str] = Counter()
        """Of ``upsert``, ``delete`` and ``reset``."""
        self._kinds: Counter[str] = Counter()
        """Endpoints by how they authorize."""

    def read(self) -> None:
        """Follow the feed until it is closed, or until it is in sync if that is what was asked for."""
        for event in self._feed.events():
            match event:
                case Opened():
                    self._opened(event)
                case Changed():
                    self._changed(event)
                case Checkpoint():
                    self._reached(event)
                case Mismatched():
                    self._told("our map is not the server's; everything comes anew")
                case Lost():
                    self._told(f"{printable(event.reason)}; trying again in {event.retry_seconds:.1f} s")
            if self._until_synced and event.synced:
                return

    def close(self) -> None:
        """End `read`."""
        self._feed.close()

    def head(self) -> Text:
        """Say how things stand."""
        head = Text(self._state, style="bold green" if self._state.startswith(_SYNCED) else "bold yellow")
        reached = self._checkpoint
        if reached is not None:
            at, checkpoint = reached
            ago = time.monotonic() - at
            head.append(f"\n{checkpoint.count:,} endpoints", style="bold default")
            head.append(summary(self._kinds), style="default")
            proof = "verified" if checkpoint.verified else "not verified: what was before is not known here"
            head.append(
                f"\nrevision {checkpoint.revision:,}   at most {checkpoint.staleness + ago:.1f} s behind the"
                f" database   digest {checkpoint.digest[:8]}, {proof}",
                style="default",
            )
        head.append(
            f"\n{self._counts['upsert']:,} upserts   {self._counts['delete']:,} deletes   "
            f"{self._counts['reset']:,} snapshots",
            style="default",
        )
        return head

    def _told(self, state: str) -> None:
        self._state = state
        self.lines.add(Line(state))

    def _opened(self, event: Opened) -> None:
        if event.resumed:
            self._told("resumed, catching up")
        else:
            self._counts["reset"] += 1
            self._told(f"receiving {event.count:,} endpoints ({event.reason.replace('_', ' ')})")

    def _reached(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = time.monotonic(), checkpoint
        if not self._state.startswith(_SYNCED):
            proof = "digest verified" if checkpoint.verified else "digest not verified"
            self._state = f"{_SYNCED}, {proof}"
            self.lines.add(Line(f"{_SYNCED}: {checkpoint.count:,} endpoints, {proof}"))

    def _changed(self, event: Changed) -> None:
        before, after = event.before, event.after
        if before is not None:
            self._kinds[auth(before)] -= 1
        if after is not None:
            self._kinds[auth(after)] += 1
        if event.initial:
            return
        endpoint_id = printable(event.change.endpoint_id)
        if after is None:
            self._counts["delete"] += 1
            self.lines.add(Line("delete", endpoint_id))
        else:
            self._counts["upsert"] += 1
            self.lines.add(Line("upsert", endpoint_id, auth(after), plan(after), limits(after)))
