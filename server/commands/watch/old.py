"""The view of a subscriber of the legacy contract."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from server.commands.old_client import Disconnected, LegacySubscriber, MapFetched
from server.commands.watch.endpoint import auth_short, printable, summary
from server.commands.watch.lines import Line, Lines

if TYPE_CHECKING:
    from server.commands.old_client import EndpointUpdate


class WatchedOld:
    """The events of a subscriber. The subscriber's thread writes them, and the showing thread reads them."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.lines = Lines(Line(f"connecting to {target}"))
        self._subscriber = LegacySubscriber(target)
        self._state = "connecting"
        self._counts: Counter[str] = Counter()
        """The number of updates by kind: ``upsert``, ``delete``, or ``repeated`` if nothing changed."""
        self._kinds: Counter[str] = Counter()
        """Number of endpoints by how they authorize."""

    def read(self) -> None:
        """Follow the subscriber until it is closed."""
        for event in self._subscriber.events():
            match event:
                case MapFetched():
                    self._kinds = Counter(map(auth_short, self._subscriber.endpoints.values()))
                    self._state = "streaming"
                    self.lines.add(Line(f"fetched {event.count:,} endpoints, streaming"))
                case Disconnected():
                    self._state = f"{printable(event.reason)}; trying again in {event.retry_seconds:g} s"
                    self.lines.add(Line(self._state))
                case _:
                    self._updated(event)

    def close(self) -> None:
        """End `read`."""
        self._subscriber.close()

    def head(self) -> Text:
        """Return the current state for the top of the screen."""
        head = Text()
        head.append(self._state, style="bold green" if self._state == "streaming" else "bold yellow")
        head.append(f"\n{len(self._subscriber.endpoints):,} endpoints", style="bold")
        head.append(summary(self._kinds))
        head.append(
            f"\n{self._counts['upsert']:,} upserts   {self._counts['delete']:,} deletes   "
            f"{self._counts['repeated']:,} repeated what was known"
        )
        return head

    def _updated(self, update: EndpointUpdate) -> None:
        if not update.changed:
            self._counts["repeated"] += 1
            return
        if update.before is not None:
            self._kinds[auth_short(update.before)] -= 1
        after = update.after
        if after is None:
            self._counts["delete"] += 1
        else:
            self._kinds[auth_short(after)] += 1
            self._counts["upsert"] += 1
        self.lines.add(Line.of_change(update.endpoint_id, after))
