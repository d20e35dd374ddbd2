"""The express list: entries of small changes, which a walk sends ahead of the rest of the log.

A plan's ripple adds 100,000 entries to the log, and a revoked key adds one. A walk in the log's order would
reach the revoked key only after the ripple, which takes a client of the legacy contract seconds. So the store
also keeps the newest entries of small batches in a second list. A walk that has many entries ahead of it
takes entries from that list first, and skips them when it reaches them in the log.

This is safe because a walk sends only live entries, from either list. The live entry is the newest state of
its endpoint, and every older entry of that endpoint is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cdc.store.log import Entry

FEW: Final = 100
"""Maximum size of a batch whose entries are sent ahead. A larger batch is a ripple itself."""
_OVERTAKEN: Final = 10_000
"""Maximum number of entries that one walk sends ahead before it reaches the end of the log. Further entries
are sent in the log's order.
"""
_KEPT: Final = 4096
"""Minimum number of newest entries that the list keeps. A walk that is further behind finds older entries
only in the log.
"""


class Express:
    """The store's express list; guarded by the store's lock."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._dropped = 0
        """Number of entries that have been dropped from the front of the list."""

    def add(self, entries: Iterable[Entry]) -> None:
        """Append the entries of a small batch that is being published."""
        self._entries.extend(entries)
        if len(self._entries) > 2 * _KEPT:
            self._dropped += len(self._entries) - _KEPT
            del self._entries[:-_KEPT]

    @property
    def end(self) -> int:
        """Number of entries that have ever been appended."""
        return self._dropped + len(self._entries)

    def after(self, number: int, limit: int) -> tuple[list[Entry], int]:
        """Return at most ``limit`` entries from number ``number`` on, and the next entry's number."""
        start = max(number - self._dropped, 0)
        found = self._entries[start : start + limit]
        return found, self._dropped + start + len(found)


class Overtaking:
    """One walk's place in the express list, and the entries that it has taken from the list; guarded by the
    store's lock.
    """

    __slots__ = ("_express", "_next", "_sent")

    def __init__(self, express: Express) -> None:
        """Start at the end of the list."""
        self._express = express
        self._next = express.end
        self._sent: dict[str, Entry] = {}

    def take(self, limit: int, live: dict[str, Entry]) -> list[Entry]:
        """Return the next entries that are ``live``, oldest first; an empty list if there are none."""
        while limit and self._next < self._express.end and len(self._sent) < _OVERTAKEN:
            found, self._next = self._express.after(self._next, limit)
            entries = [entry for entry in found if live.get(entry.id) is entry]
            if entries:
                self._sent.update((entry.id, entry) for entry in entries)
                return entries
        return []

    def skip(self) -> None:
        """Move to the end of the list, because the walk is about to send all of its entries anyway."""
        self._next = self._express.end

    def has_sent(self, entry: Entry) -> bool:
        """Return whether the walk has already sent an entry that it now reaches in the log."""
        return bool(self._sent) and self._sent.get(entry.id) is entry

    def arrived(self) -> None:
        """Forget the entries that were sent ahead, because the walk has reached the end of the log."""
        if self._sent:
            self._sent = {}
            self.skip()  # entries beyond _OVERTAKEN were sent in the log's order
