"""Applies a leader's pages to a relay's store. Nothing here waits, and nothing here depends on a broker.

The transport need not be reliable: a page may be lost, repeated, or come from an older copy of the stream.
Each run of pages states the revision at which it starts. Each checkpoint has the map's count and digest. An
entry is applied only if its revision is newer than that of the stored entry.

An unbroken chain of pages is a *line*. If a leader cannot continue its line, it begins another line with a
whole map, a *generation*. A relay adopts this map only if it is not older than the map that it serves. Until
the new map is complete, the relay serves the old one. `cdc.relay.pages` has a worked example.
"""

from __future__ import annotations

import enum
import math
import time
from operator import attrgetter
from typing import TYPE_CHECKING

from cdc.lsn import Lsn
from cdc.state.forgetting import Marks
from cdc.state.origin import Origin
from cdc.state.token import Behind, Here, Token, judge
from cdc.store.digest import DIGEST_BYTES, entry_digest
from cdc.store.log import Entry
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdc.relay.pages import Head, Page
    from cdc.state.origin import Checkpoint
    from cdc.store.store import Store

_MODULUS = 1 << (8 * DIGEST_BYTES)


class PageOutcome(enum.Enum):
    """The result of taking a page."""

    TAKEN = enum.auto()
    """The page was applied, or collected for a new map that is not complete yet."""
    IGNORED = enum.auto()
    """The page contains nothing new."""
    ARRIVED = enum.auto()
    """The map is now equal to the leader's map at the page's checkpoint."""
    BROKEN = enum.auto()
    """A page is missing. A generation that begins after this page is needed."""
    MISMATCH = enum.auto()
    """The count or the digest differs from the leader's. A new generation is needed, as for `BROKEN`."""
    OLDER = enum.auto()
    """The page completed a map, which was not adopted because it is older than the served map."""


class PageReader:
    """Keeps a relay's map up to date. One thread uses the reader, and no other thread writes to the store.
    Any thread may call `origin`.
    """

    def __init__(self, store: Store, marks: Marks | None = None) -> None:
        """``marks`` decides how long the relay keeps deletes. By default it keeps them for ever."""
        self._store = store
        self._marks = marks or Marks(math.inf)
        self._origin = Origin("0" * 32, None)
        self.line = ""
        """The line of pages that the current map comes from; empty while there is no map."""
        self.exact = Revision(0)
        """The revision of the newest checkpoint, at which the map was equal to the leader's map."""
        self.position: Lsn = Lsn(0)
        """The position of the newest checkpoint.

        All changes of positions up to this position have been applied.
        """
        self._ahead = False
        """Whether entries newer than the newest checkpoint have been applied as well."""
        self._page_line = ""
        self._page_number = 0
        """The number of the newest page, which belongs to the line `_page_line`."""
        self._unbroken = 0
        """The number of a page of `line`. The map includes all pages up to it."""
        self._running = False
        """Whether no page of the current run is missing so far."""
        self._run_start = Revision(0)
        """The revision from which the current run starts."""
        self._coming: dict[str, Entry] | None = {}
        """The entries of the new map that is being collected; None while no new map is needed."""
        self._opened = self._completed = False
        """`_opened` says whether `_coming` began with an opening page, `_completed` whether its generation is
        complete.
        """
        self._distrusted = False
        """Whether the current map is known to differ from the leader's.

        If so, none of its entries may be kept.
        """

    def origin(self) -> Origin:
        """Return the leader's origin at the newest checkpoint. Tokens are made and judged with it."""
        return self._origin

    @property
    def timeline(self) -> int:
        """The timeline of the map's positions."""
        return self._store.history.timeline

    @property
    def wanting(self) -> bool:
        """Whether a generation is needed and its opening page has not arrived yet."""
        return self._coming is not None and not self._opened

    def hear(self, head: Head) -> None:
        """Adopt the leader's position, which changes even while its map does not change.

        The position is ignored if a page before this head is missing: such a page may have changed the
        positions of entries, even without a new revision. Older leaders do not number their heads; their
        ``number`` is 0.
        """
        store = self._store
        if head.line != self.line or head.number not in (0, self._unbroken):
            return
        if head.revision == self.exact and head.consistent and store.consistent:
            store.mark_consistent(head.position)

    def start_over(self) -> None:
        """Collect a new map from the next generation. Until it is complete, the current map is served."""
        self._coming, self._opened, self._completed = {}, False, False
        self._running, self._page_line = False, ""

    def take(self, page: Page) -> PageOutcome:
        """Apply a page."""
        outcome = self._take(page)
        brings_nothing = outcome is PageOutcome.IGNORED and page.line == self.line and page.older
        if outcome is PageOutcome.ARRIVED or (brings_nothing and page.number == self._unbroken + 1):
            self._unbroken = page.number
        return outcome

    def _take(self, page: Page) -> PageOutcome:
        follows = page.line == self._page_line and page.number == self._page_number + 1
        self._page_line, self._page_number = page.line, page.number
        if page.line != self.line and self._coming is None:
            self.start_over()  # another leader, or the same one after a break: it sends a generation
            self._page_line, self._page_number = page.line, page.number
        if self._coming is not None:
            return self._collect(self._coming, page, follows=follows)
        if page.first:
            # Positions can change without a new revision. The checkpoint's position shows that such a change
            # was missed.
            self._running = page.start <= self.exact and page.position <= self.position
            self._run_start = page.start
        elif not follows or page.start != self._run_start:
            self._running = False
        if page.opening or page.older:
            return PageOutcome.IGNORED
        if self._running:
            return self._apply(page)
        self.start_over()
        return PageOutcome.BROKEN

    def _collect(self, coming: dict[str, Entry], page: Page, *, follows: bool) -> PageOutcome:
        if page.opening and not (follows and self._completed):
            coming.clear()
            self._opened, self._completed = True, False
        elif not (self._opened and follows) or not (self._completed or page.complete or page.generating):
            # A page is missing, or the leader has abandoned this generation. The next one may be complete.
            self._opened = self._completed = False
            return PageOutcome.IGNORED
        for entry in page.entries:
            held = coming.get(entry.id)
            if held is None or held.revision < entry.revision:
                coming[entry.id] = entry
            elif held.revision == entry.revision:  # a repeated run, with newer positions
                held.position = max(held.position, entry.position)
        for endpoint_id, revision, position in page.moved:
            moved = coming.get(endpoint_id)
            if moved is not None and moved.revision == revision:
                moved.position = max(moved.position, position)
        self._completed = self._completed or page.complete
        if page.checkpoint is None or not self._completed:
            return PageOutcome.TAKEN
        return self._complete(page.line, coming, page.checkpoint)

    def _complete(self, line: str, coming: dict[str, Entry], checkpoint: Checkpoint) -> PageOutcome:
        if self._is_passed(checkpoint) if line == self.line else self._is_older(checkpoint):
            return PageOutcome.OLDER
        if _proof(coming.values()) != (checkpoint.count, checkpoint.digest):
            self.start_over()
            return PageOutcome.MISMATCH
        self._coming = None
        missed = self.exact < checkpoint.origin.forgotten  # deletes that the leader has since forgotten
        if line == self.line and not self._distrusted and not missed:
            news = sorted(self._newer(coming.values()), key=attrgetter("revision"))
            return self._publish(news, [], checkpoint)
        same_epoch = checkpoint.origin.epoch == self._origin.epoch
        self._store.adopt(
            [*coming.values(), *self._forgotten(coming, checkpoint, same_epoch=same_epoch)],
            checkpoint.revision,
            history=checkpoint.history,
            consistent=checkpoint.consistent,
            position=checkpoint.position,
            seen=checkpoint.seen,
            along=lambda: setattr(self, "_origin", checkpoint.origin),
        )
        if not same_epoch:
            self._marks.clear()
        self.line, self.exact, self.position = line, checkpoint.revision, checkpoint.position
        self._ahead = False
        self._distrusted = False
        self._forget()
        return PageOutcome.ARRIVED

    def _forgotten(
        self, coming: dict[str, Entry], checkpoint: Checkpoint, *, same_epoch: bool
    ) -> list[Entry]:
        """Return a tombstone for each endpoint of this relay that a new map contains neither as live nor as
        deleted.

        A leader that has lost its state file does not know which endpoints were deleted before. Clients of
        the legacy contract have received such endpoints from this relay, so the relay must send the deletes.

        In the same epoch a tombstone keeps its revision, so that a new map does not delay its end.
        """
        revision, position = checkpoint.revision, checkpoint.position
        return [
            entry
            if same_epoch and entry.payload is None and entry.revision <= revision
            else Entry(endpoint_id, revision, position, None)
            for endpoint_id, entry in self._store.entries.items()
            if endpoint_id not in coming
        ]

    def _is_passed(self, checkpoint: Checkpoint) -> bool:
        """Return whether the map is newer than this checkpoint of its line.

        If so, the page is a repetition.
        """
        return checkpoint.revision < self.exact + self._ahead

    def _is_older(self, checkpoint: Checkpoint) -> bool:
        """Return whether a map of another line is older than the served map."""
        store, held = self._store, self._origin
        if not self.line:
            return False
        if checkpoint.origin.epoch == held.epoch:  # the same server: its `seen` only grows
            return (checkpoint.seen, checkpoint.revision) < (store.seen, self.exact)
        token = Token(
            epoch=held.epoch,
            system=store.history.system,
            timeline=store.history.timeline,
            revision=self.exact,
            position=store.position,
            seen=store.seen,
            mapping=held.mapping,
            issued=0,
            encoding=held.encoding,
        )
        here = Here(
            checkpoint.origin,
            checkpoint.history,
            checkpoint.revision,
            checkpoint.position,
            now=0.0,
            retention=0.0,
        )
        return isinstance(judge(token.encode(), here, opened=time.monotonic()), Behind)

    def _apply(self, page: Page) -> PageOutcome:
        checkpoint = page.checkpoint
        if checkpoint is not None and self._is_passed(checkpoint):
            checkpoint = None  # a repeated run
        return self._publish(self._newer(page.entries), page.moved, checkpoint)

    def _newer(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the entries that are newer than the stored ones.

        Update the positions of the other entries.
        """
        newer = []
        for entry in entries:
            held = self._store.entries.get(entry.id)
            if held is None or held.revision < entry.revision:
                newer.append(entry)
            elif held.revision == entry.revision:
                held.position = max(held.position, entry.position)
        return newer

    def _publish(
        self, news: list[Entry], moved: Sequence[tuple[str, Revision, Lsn]], checkpoint: Checkpoint | None
    ) -> PageOutcome:
        store = self._store
        batch = store.copied(news, store.head)
        self._move(moved)
        if checkpoint is None:
            # More entries of the newest revision may follow, so no token may claim that revision yet.
            batch.claim(max(store.head, Revision(news[-1].revision - 1)) if news else store.head)
            self._ahead = self._ahead or bool(news)
            if news or moved:
                positions = [*(entry.position for entry in news), *(position for _, _, position in moved)]
                store.publish(batch, consistent=False, seen=max(positions))
            return PageOutcome.TAKEN
        if store.after(batch) != (checkpoint.count, checkpoint.digest):
            self._distrusted = True
            self.start_over()
            return PageOutcome.MISMATCH
        batch.claim(max(store.head, checkpoint.revision))
        self.exact, self.position, self._origin = batch.revision, checkpoint.position, checkpoint.origin
        self._ahead = False
        store.publish(
            batch, consistent=checkpoint.consistent, position=checkpoint.position, seen=checkpoint.seen
        )
        self._forget()
        return PageOutcome.ARRIVED

    def _forget(self) -> None:
        """Forget the deletes that the leader has forgotten, if this relay has had them for the retention
        time.

        If the relay was cut off from its leader, its clients of the legacy contract may not have received
        these deletes yet.
        """
        store = self._store
        self._marks.set(store.head)
        up_to = min(self._marks.due, self._origin.forgotten)
        if up_to > store.forgotten:
            store.forget(up_to)

    def _move(self, moved: Sequence[tuple[str, Revision, Lsn]]) -> None:
        """Update the positions of entries with unchanged payloads, if they still have that revision."""
        for endpoint_id, revision, position in moved:
            entry = self._store.entries.get(endpoint_id)
            if entry is not None and entry.revision == revision:
                entry.position = max(entry.position, position)


def _proof(entries: Iterable[Entry]) -> tuple[int, bytes]:
    """Return the count and the digest of the live entries, in the form of a checkpoint."""
    digests = [entry_digest(entry.id, entry.payload) for entry in entries if entry.payload is not None]
    total = sum(int.from_bytes(digest, "big") for digest in digests) % _MODULUS
    return len(digests), total.to_bytes(DIGEST_BYTES, "big")
