"""The leader's side of relays: walks over the store and makes pages. Nothing here waits.

To the store, a publisher is a subscriber like any other: it has a `Cursor`, and the store never waits for it.
For a generation it has a second place in the log, which moves backwards, as in a `Catchup`. The cursor's
entries are always sent first, so that a revocation never waits behind a generation.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final, TypeVar

from cdc.lsn import Lsn
from cdc.relay.pages import Head, Page
from cdc.state.origin import Checkpoint
from cdc.store.cursor import SCAN, Cursor
from cdc.store.log import OutlivedError, Place
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cdc.freshness import Freshness
    from cdc.state.origin import Origin
    from cdc.store.log import Entry
    from cdc.store.store import Cut, Store

_Item = TypeVar("_Item")

PAGE_BYTES: Final = 60 * 1024
"""Maximum size of a page's entries, unless a single entry is larger. With its header a page has at most 64
KiB.
"""
_ENTRY_BYTES: Final = 48
"""Maximum size of an entry without its id and payload, or of a moved position without its id, in bytes."""
_ENTRIES: Final = 500
"""Maximum number of entries that are taken from the store at a time."""
_MOVED_SECONDS: Final = 1.0
"""Seconds between two checkpoints that contain only new positions."""
_GROWTH: Final = 1.0
"""A new generation begins when the number of entries published since the last one exceeds `_LEAST` and this
multiple of its entries.
"""
_LEAST: Final = 10_000
"""Minimum number of published entries before a new generation; see `_GROWTH`."""


class Publisher:
    """Makes one line of pages, which is one unbroken chain.

    One thread uses it, and takes the next page only after the last one has been stored.
    """

    def __init__(
        self,
        store: Store,
        origin: Callable[[], Origin],
        freshness: Freshness,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        entries: int = _ENTRIES,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        self._store = store
        self._origin = origin
        self._freshness = freshness
        self._clock = clock
        self._wall = wall
        self._entries = entries
        self._page_bytes = page_bytes
        self.line = ""
        """The current line; empty while there is none."""
        self._of = "", 0
        """The epoch and the timeline of the line."""
        self.number = 0
        """The number of the newest page that `take` has returned."""
        self._tail: Cursor | None = None
        self._back: Place | None = None
        """The place of the generation's backward walk; None if no generation is in progress."""
        self._begun = True
        """Whether the next entries that `_tail` reads begin a run."""
        self._start = Revision(0)
        """The revision of the newest checkpoint, or the one at which the line began."""
        self._position: Lsn = Lsn(0)
        """The position of the checkpoint of revision `_start`."""
        self._told: Cut | None = None
        """The newest checkpoint that this publisher has made in the line; None before the first."""
        self._told_at = 0.0
        self._moved: dict[str, Entry] = {}
        """Entries whose positions have moved since they were last in a page."""
        self._opening = False
        """Whether the next page opens a generation."""
        self._opened = self._newest = 0
        """Numbers of two opening pages: `_opened` is that of the generation in progress, `_newest` that of
        the newest complete generation.
        """
        self._generation = self._since = 0
        """`_generation` is the number of entries of the newest generation, `_since` the number of entries
        published since it began.
        """

    def limit(self, page_bytes: int) -> None:
        """Limit the entries of a page to ``page_bytes`` bytes. A larger entry gets a page of its own."""
        self._page_bytes = min(PAGE_BYTES, page_bytes)

    def resume(self, last: Page | None) -> bool:
        """Continue after the stream's last page. If that is impossible, begin a new line and return False."""
        store, of = self._store, self._present()
        self.close()
        if (
            last is None
            or (last.epoch, last.timeline) != of
            or not store.forgotten <= last.reached <= store.head
        ):
            self._open_line(of)
            return False
        reached = last.reached
        self.line, self._of, self.number, self._begun = last.line, of, last.number, True
        self._tail, self._start, self._told = Cursor(store, reached), reached, None
        self._position = last.position if last.checkpoint is None else last.checkpoint.position
        self._collect_moves(beyond=self._position, up_to=reached)
        self._generation, self._since = len(store.entries), 0
        self._newest, self._opened = last.generation, 0
        if not self._newest:  # its leader ended before completing the line's first generation
            self.begin_generation()
        return True

    def begin_generation(self) -> None:
        """Begin a new generation in the same line."""
        store = self._store
        if self._tail is None:
            raise RuntimeError("there is no line yet")
        self._drop_back()
        with store.lock:
            self._back = Place(self._tail.index, store.places)
            self._generation, self._since = len(store.entries), 0
        self._opening = True

    @property
    def generating(self) -> bool:
        """Whether a generation is in progress."""
        return self._back is not None

    @property
    def outgrown(self) -> bool:
        """Whether a new generation is due, because more entries have been published since the last generation
        than it contained.
        """
        return self._back is None and self._since > max(_LEAST, self._generation * _GROWTH)

    @property
    def patience(self) -> float:
        """Seconds after which to call `take` again if the store does not change sooner."""
        return max(0.0, self._told_at + _MOVED_SECONDS - self._clock())

    def head(self) -> Head:
        """Return the leader's current state."""
        positions = self._freshness.positions()
        with self._store.lock:
            store = self._store
            # Our position is valid for a relay only if the relay has received all newer positions of
            # endpoints.
            position = min(store.position, self._position) if self._moved else store.position
            return Head(
                line=self.line,
                revision=store.head,
                staleness=self._freshness.staleness(),
                at=self._wall(),
                server_end=positions.server_end,
                position=position,
                seen=store.seen,
                consistent=store.consistent,
                number=self.number,
            )

    def take(self) -> list[Page]:
        """Return the next pages in order; an empty list if there are none now."""
        of = self._present()
        if of != self._of:  # the epoch or the timeline has changed
            self._open_line(of)
        if self._tail is None:
            raise RuntimeError("there is no line yet")
        if self._opening:
            self._opening = False
            page = self._page(opening=True, older=True)
            self._opened = page.number
            return [page]
        try:
            part = self._tail.read(self._entries)
        except OutlivedError:  # it was not read for so long that deletes which it had to return are forgotten
            self._open_line(of)
            return []
        if part.entries:
            self._since += len(part.entries)
            return self._run(part.entries, part.arrival)
        if part.more:
            return []
        if self._back is not None and part.arrival is not None:
            if self._back.index > 0:
                return self._older(self._read_back())
            self._drop_back()
            return self._run([], part.arrival, complete=True)
        if part.arrival is not None and self._outdated(part.arrival):
            return self._run([], part.arrival)
        return []

    @property
    def more(self) -> bool:
        """Whether `take` should be called again at once."""
        tail = self._tail
        return tail is not None and (
            self._opening or self._back is not None or tail.revision < self._store.head
        )

    def close(self) -> None:
        """Remove the walks from the store."""
        self._drop_back()
        if self._tail is not None:
            self._tail.close()
            self._tail = None
            with self._store.lock:
                self._store.movements[:] = [one for one in self._store.movements if one is not self._moved]

    def _present(self) -> tuple[str, int]:
        return self._origin().epoch, self._store.history.timeline

    def _open_line(self, of: tuple[str, int]) -> None:
        self.close()
        self.line, self._of, self.number, self._begun = uuid.uuid4().hex, of, 0, True
        self._tail, self._told = Cursor(self._store), None
        self._start = self._tail.revision
        self._position = self._opened = self._newest = Lsn(0)
        self._collect_moves(beyond=Lsn(0), up_to=Revision(-1))
        self.begin_generation()

    def _collect_moves(self, beyond: Lsn, up_to: Revision) -> None:
        """Collect the entries whose positions change from now on, and the entries up to the revision
        ``up_to`` whose positions are beyond ``beyond``.
        """
        self._moved = {}
        with self._store.lock:
            self._store.movements.append(self._moved)
        if up_to >= 0:
            self._store.moved_before(self._moved, beyond, up_to)

    def _drop_back(self) -> None:
        if self._back is not None:
            with self._store.lock:
                self._back.leave()
            self._back = None

    def _read_back(self) -> list[Entry]:
        store, back = self._store, self._back
        entries: list[Entry] = []
        if back is not None:
            with store.lock:
                stop = max(0, back.index - self._entries * SCAN)
                while back.index > stop and len(entries) < self._entries:
                    back.index -= 1
                    entry = store.log[back.index]
                    if store.entries.get(entry.id) is entry:
                        entries.append(entry)
        return entries

    def _older(self, entries: Sequence[Entry]) -> list[Page]:
        pages = []
        for some in self._cut(entries, _size):
            page = self._page(older=True)
            page.entries = some
            pages.append(page)
        return pages

    def _run(self, entries: Sequence[Entry], arrival: Cut | None, *, complete: bool = False) -> list[Page]:
        pages = []
        for some in self._cut(entries, _size):
            pages.append(self._page(first=self._begun))
            pages[-1].entries = some
            self._begun = False
        if arrival is None:
            return pages
        moved = self._movements(arrival)
        for part in self._cut(moved, lambda one: len(one[0].encode())):
            pages.append(self._page(first=self._begun))
            pages[-1].moved = part
            self._begun = False
        if not pages:
            pages.append(self._page(first=self._begun))
        if complete:
            self._newest = pages[-1].generation = self._opened
        pages[-1].complete = complete
        pages[-1].checkpoint = Checkpoint.of(arrival, self._origin())
        self._told, self._told_at, self._begun = arrival, self._clock(), True
        self._start, self._position = arrival.revision, arrival.position
        return pages

    def _cut(self, items: Iterable[_Item], bytes_of: Callable[[_Item], int]) -> Iterator[list[_Item]]:
        """Yield the items in parts that each fit into a page. An item that is too large becomes a part of its
        own.
        """
        some: list[_Item] = []
        room = self._page_bytes
        for item in items:
            size = _ENTRY_BYTES + bytes_of(item)
            if size > room and some:
                yield some
                some, room = [], self._page_bytes
            room -= size
            some.append(item)
        if some:
            yield some

    def _page(self, *, first: bool = False, opening: bool = False, older: bool = False) -> Page:
        self.number += 1
        epoch, timeline = self._of
        return Page(
            line=self.line,
            number=self.number,
            start=self._start,
            epoch=epoch,
            timeline=timeline,
            position=self._position,
            first=first,
            opening=opening,
            total=self._generation if opening else 0,
            older=older,
            generation=self._newest,
            generating=self._back is not None,
        )

    def _outdated(self, arrival: Cut) -> bool:
        told = self._told
        if told is None or told.revision != arrival.revision or told.consistent != arrival.consistent:
            return True
        late = self._clock() - self._told_at >= _MOVED_SECONDS
        return late and bool(self._moved)

    def _movements(self, arrival: Cut) -> list[tuple[str, Revision, Lsn]]:
        store = self._store
        with store.lock:
            current = [entry for entry in self._moved.values() if store.entries.get(entry.id) is entry]
            self._moved.clear()
            self._moved.update((entry.id, entry) for entry in current if entry.revision > arrival.revision)
            return [
                (entry.id, entry.revision, entry.position)
                for entry in current
                if entry.revision <= arrival.revision
            ]


def _size(entry: Entry) -> int:
    return len(entry.id.encode()) + len(entry.payload or b"")
