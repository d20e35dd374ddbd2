"""What goes before everything else that a walk still has to hand out: entries that were named one by one.

A plan's ripple puts 100,000 entries into the log, a revoked key one. A walk that hands out the log in its
order, or in the opposite one, comes to that one entry when its neighbours are out, and a client of the old
contract takes seconds for those. So the store keeps the newest entries of small publications in a second
list, and a walk that has much before it takes from there first. It meets them again in the log, and passes
them over.

That is safe because only live entries are handed out, here as there: the log behind the walk has no newer
state of the endpoint, and what it has of older ones is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cdc.store.log import Entry

FEW: Final = 100
"""Entries of one publication that may go before others; more of them are a ripple of their own."""
_OVERTAKEN: Final = 10_000
"""Entries that one walk hands out before others, until it has handed out everything. A client that is slow
for so long gets the next ones in their turn.
"""
_KEPT: Final = 4096
"""Entries that are remembered at least. A walk that is further behind finds the others in the log."""


class Express:
    """The store's list; guarded by its lock."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._dropped = 0
        """How many have been in the list, and are no more."""

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember entries that are published now."""
        self._entries.extend(entries)
        if len(self._entries) > 2 * _KEPT:
            self._dropped += len(self._entries) - _KEPT
            del self._entries[:-_KEPT]

    @property
    def end(self) -> int:
        """How many there have ever been."""
        return self._dropped + len(self._entries)

    def after(self, number: int, limit: int) -> tuple[list[Entry], int]:
        """Return at most ``limit`` entries from the number on, and the number behind them."""
        start = max(number - self._dropped, 0)
        found = self._entries[start : start + limit]
        return found, self._dropped + start + len(found)


class Overtaking:
    """One walk's place in the list, and what it has handed out from there; guarded by the store's lock."""

    __slots__ = ("_express", "_next", "_sent")

    def __init__(self, express: Express) -> None:
        """Stand behind everything that there is."""
        self._express = express
        self._next = express.end
        self._sent: dict[str, Entry] = {}

    def take(self, limit: int, live: dict[str, Entry]) -> list[Entry]:
        """Take the next entries that are ``live``, the oldest first; empty when there are none."""
        while limit and self._next < self._express.end and len(self._sent) < _OVERTAKEN:
            found, self._next = self._express.after(self._next, limit)
            entries = [entry for entry in found if live.get(entry.id) is entry]
            if entries:
                self._sent.update((entry.id, entry) for entry in entries)
                return entries
        return []

    def skip(self) -> None:
        """Stand behind everything that there is: the walk is about to hand it out in any case."""
        self._next = self._express.end

    def has_sent(self, entry: Entry) -> bool:
        """Tell whether an entry that the walk meets in the log was handed out already."""
        return bool(self._sent) and self._sent.get(entry.id) is entry

    def arrived(self) -> None:
        """Forget what was handed out: there is nothing left in the log that could be met again."""
        if self._sent:
            self._sent = {}
            self.skip()  # what there was no room for came in its turn
