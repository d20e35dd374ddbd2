"""The view of a subscriber of the endpoint feed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.text import Text

from server.commands.watch.endpoint import auth_short, printable, summary
from server.commands.watch.events import Changed, CheckpointReached, Mismatched, StreamLost, StreamOpened
from server.commands.watch.lines import Line, Lines

if TYPE_CHECKING:
    from server.commands.watch.feed import FeedSubscriber

_SYNCED: Final = "in sync"
_UNSETTLED: Final = "the server's map is still changing: no proof yet"


class WatchedFeed:
    """The events of a subscriber. The subscriber's thread writes them, and the showing thread reads them."""

    def __init__(self, target: str, feed: FeedSubscriber, *, until_synced: bool) -> None:
        self.target = target
        self.lines = Lines(Line(f"connecting to {target}"))
        self._feed = feed
        self._until_synced = until_synced
        self._state = "connecting"
        self.synced = threading.Event()
        """Set once the map has been in sync."""
        self._checkpoint: CheckpointReached | None = None
        self._exact: tuple[float, float] | None = None
        """The newest proof: the monotonic time at which it arrived, and the staleness of the map then, in
        seconds.
        """
        self._counts: Counter[str] = Counter()
        """The number of events by kind: ``upsert``, ``delete`` or ``reset``."""
        self._kinds: Counter[str] = Counter()
        """Number of endpoints by how they authorize."""

    def read(self) -> None:
        """Follow the feed until it is closed, or with ``--until-synced`` until it is in sync."""
        for event in self._feed.events():
            match event:
                case StreamOpened():
                    self._opened(event)
                case Changed():
                    self._changed(event)
                case CheckpointReached():
                    self._reached(event)
                case Mismatched():
                    self._told("our map differs from the server's; everything is sent again")
                case StreamLost():
                    self._told(f"{printable(event.reason)}; trying again in {event.retry_seconds:.1f} s")
            if self._until_synced and event.synced:
                return

    def close(self) -> None:
        """End `read`."""
        self._feed.close()

    def head(self) -> Text:
        """Return the current state for the top of the screen."""
        head = Text()
        head.append(self._state, style="bold green" if self._state.startswith(_SYNCED) else "bold yellow")
        if (checkpoint := self._checkpoint) is not None:
            head.append(f"\n{checkpoint.count:,} endpoints", style="bold")
            head.append(summary(self._kinds))
            head.append(
                f"\nrevision {checkpoint.revision:,}   {self._staleness()}   digest {checkpoint.digest[:8]}"
                f" {_proof(checkpoint)}"
            )
        head.append(
            f"\n{self._counts['upsert']:,} upserts   {self._counts['delete']:,} deletes   "
            f"{self._counts['reset']:,} snapshot{'' if self._counts['reset'] == 1 else 's'}"
        )
        return head

    def _staleness(self) -> str:
        if self._exact is None:
            return "not proved yet"
        at, staleness = self._exact
        return f"at most {staleness + time.monotonic() - at:.1f} s behind"

    def _told(self, state: str) -> None:
        self._state = state
        self.lines.add(Line(state))

    def _opened(self, event: StreamOpened) -> None:
        if event.resumed:
            self._told("resumed, catching up")
        else:
            self._counts["reset"] += 1
            self._told(f"receiving {event.count:,} endpoints ({event.reason.replace('_', ' ')})")

    def _reached(self, checkpoint: CheckpointReached) -> None:
        self._checkpoint = checkpoint
        if checkpoint.unsettled:
            if self._state != _UNSETTLED:
                self._told(_UNSETTLED)
            return
        self._exact = time.monotonic(), checkpoint.staleness
        self.synced.set()
        if not self._state.startswith(_SYNCED):
            self._state = f"{_SYNCED}, digest {_proof(checkpoint)}"
            proof = f"{checkpoint.count:,} endpoints, digest {_proof(checkpoint)}"
            self.lines.add(Line(f"{_SYNCED}: {proof}"))

    def _changed(self, event: Changed) -> None:
        before, after = event.before, event.after
        if before is not None:
            self._kinds[auth_short(before)] -= 1
        if after is not None:
            self._kinds[auth_short(after)] += 1
        if event.initial:
            return
        self._counts["delete" if after is None else "upsert"] += 1
        self.lines.add(Line.of_change(event.change.endpoint_id, after))


def _proof(checkpoint: CheckpointReached) -> str:
    if checkpoint.unsettled:
        return "unsettled"
    return "verified" if checkpoint.verified else "not verified"
