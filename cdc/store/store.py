"""The store: a map of endpoints that can be walked by revision.

Every live endpoint and every tombstone is an `Entry`. All entries are also in a log, in the order of their
revisions. When an endpoint changes, a new entry is appended, and the old entry is dead. A subscriber is only
a place in that log, so there is no queue that could overflow. A slow subscriber finds the newest state of
each endpoint, and the writer never waits.

Only the applier's thread writes, in two steps: `prepare` compares rows with the map, and `publish` makes the
changes visible. Between the two steps, the batch is written to the state file. Any thread may read; a read
holds the lock for one bounded slice of the log.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from cdc.lsn import Lsn
from cdc.postgres.timeline import Timeline
from cdc.store.compaction import Compaction
from cdc.store.digest import DIGEST_BYTES, entry_digest
from cdc.store.entry_columns import GONE, EntryColumns
from cdc.store.express import Express
from cdc.store.log import Entry, Place
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable


_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True)
class Cut:
    """The map at one moment. When a client's walk arrives at it, the client has this map, and its token
    identifies the map.
    """

    revision: Revision
    history: Timeline
    """The history that `position` and `seen` belong to."""
    position: Lsn
    seen: Lsn
    count: int
    digest: bytes
    consistent: bool
    """Whether the database had this map at some moment. If not, some endpoints may be newer than others."""


@dataclass(slots=True)
class Batch:
    """The changes that one read makes to the map. They are not visible before `Store.publish`."""

    revision: Revision
    """The store's head after the batch is published; the current head if nothing changes."""
    position: Lsn
    newest: Lsn
    """No change in the batch is newer than this position."""
    changed: list[Entry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """`entry_digest` of each changed entry; empty for a tombstone."""
    moved: list[tuple[Entry, bytes]] = field(default_factory=list)
    """Entries that a transaction named and that have not changed, with their digests.

    Only their positions change.
    """
    verified: list[tuple[Entry, bytes]] = field(default_factory=list)
    """Entries of the state file that the first reconcile found unchanged, with their payloads."""
    again: list[str] = field(default_factory=list)
    """Ids that this reading has returned before."""
    twice: list[str] = field(default_factory=list)
    """Ids that this reading has returned before with a different payload. They become tombstones."""
    delta: int = 0
    """The change of the whole map's digest."""
    upserts: int = 0
    deletes: int = 0

    def claim(self, revision: Revision) -> None:
        """Make ``revision`` the store's head when the batch is published."""
        self.revision = revision

    def __repr__(self) -> str:
        return f"<Batch {self.revision}: {self.upserts} upserts, {self.deletes} deletes>"


class Store:
    """The map, its log, and the positions up to which the map includes the database's transactions."""

    _COMPACT_FROM = 4096
    """Minimum number of dead entries for a compaction of the log."""
    _COMPACT_STEP = 1000
    """Number of entries that a compaction looks at after each batch, plus eight for each entry of the batch.
    So the compaction is faster than the growth of the log.
    """

    _FORGET_STEP = 2_000
    """Number of tombstones that are removed at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.head = Revision(0)
        """The newest published revision."""
        self.consistent = False
        """Whether the map at `head` is consistent. Between the chunks of a ripple or a reconcile it is not.
        """
        self.ready = False
        """Whether a complete mapping has been loaded since the start."""
        self.history = Timeline()
        """The history that all positions here belong to; unknown until a slot has been read."""
        self.position: Lsn = Lsn(0)
        """Every transaction up to this position is in the map."""
        self.seen: Lsn = Lsn(0)
        """Nothing in the map is newer than this position."""
        self.log: list[Entry] = []
        self.entries: dict[str, Entry] = {}
        """All entries by id, including tombstones. An entry in the log is dead if it is not in this dict."""
        self.tombstones: dict[str, Entry] = {}
        """The tombstones by id, oldest first. They are deletes that clients of the legacy contract may not
        have received.
        """
        self.forgotten = Revision(0)
        """Tombstones up to this revision may be gone, so that no walk may continue from an older revision."""
        self._old: list[Entry] = []
        """Tombstones that still have to be removed."""
        self.places: set[Place] = set()
        """The places of walks in the log. A compaction moves them."""
        self.express = Express()
        """Entries that a walk may send ahead of the rest of the log."""
        self.movements: list[dict[str, Entry]] = []
        """Collectors of entries whose positions change, one for each mirror or relay publisher; guarded by
        the lock.
        """
        self._readings = 0
        self._compaction: Compaction | None = None
        self._digest = 0
        self._kept = EntryColumns()
        self._unverified: dict[str, int] = {}
        """For each id whose payload is still unknown, the number of its entry in `_kept`."""
        self._wakes: set[Callable[[], None]] = set()

    def __len__(self) -> int:
        """Number of live endpoints, including those of the state file whose payload is still unknown."""
        return len(self.entries) - len(self.tombstones)

    @property
    def digest(self) -> bytes:
        """The state digest of the live endpoints, 16 bytes."""
        return self._digest.to_bytes(DIGEST_BYTES, "big")

    def cut(self) -> Cut:
        """Return the current map. The caller must hold the lock."""
        return Cut(self.head, self.history, self.position, self.seen, len(self), self.digest, self.consistent)

    def live(self) -> list[Entry]:
        """Return all live entries at one moment."""
        with self.lock:
            return [entry for entry in self.entries.values() if entry.payload is not None]

    def moved_before(self, moved: dict[str, Entry], beyond: Lsn, up_to: Revision) -> None:
        """Add to ``moved`` the entries that have a position beyond ``beyond`` and a revision up to ``up_to``.
        ``moved`` is one of the `movements`.

        Takes 0.2 s for a million entries. The lock is held only while references are copied.
        """
        with self.lock:
            entries = list(self.entries.values())
        found = [entry for entry in entries if entry.position > beyond and entry.revision <= up_to]
        with self.lock:
            for entry in found:
                moved.setdefault(entry.id, entry)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` after every change, from the writer's thread. ``wake`` must not block.

        Returns a function that ends the subscription.
        """
        with self.lock:
            self._wakes.add(wake)

        def unsubscribe() -> None:
            with self.lock:
                self._wakes.discard(wake)

        return unsubscribe

    # Writing: one thread only. That thread may read without the lock.

    def restore(
        self,
        kept: EntryColumns,
        head: Revision,
        position: Lsn = Lsn(0),
        seen: Lsn = Lsn(0),
        forgotten: Revision = Revision(0),
    ) -> None:
        """Load the entries of the state file, before any other call. Their payloads are unknown until the
        first reconcile.

        Endpoints that the reconcile finds unchanged keep their revisions. Endpoints that it does not find
        become tombstones. The file may still contain tombstones up to the revision ``forgotten``.
        """
        kept = kept.in_order()
        revisions = cast("Iterable[Revision]", kept.revisions)
        positions = cast("Iterable[Lsn]", kept.positions)
        log = list(map(Entry, kept.ids, revisions, positions, repeat(None)))
        if GONE in kept.digests:  # a first test: the zeros may also belong to two adjacent digests
            gone = [entry for number, entry in enumerate(log) if kept.digest(number) == GONE]
        else:
            gone = []
        unverified = dict(zip(kept.ids, range(len(log)), strict=True))
        entries = dict(zip(kept.ids, log, strict=True))
        for entry in gone:
            del unverified[entry.id]
            if entry.revision <= forgotten:
                del entries[entry.id]  # its log entry stays, and is skipped because it is dead
        with self.lock:
            self.log, self.entries, self.forgotten = log, entries, forgotten
            self.tombstones = {entry.id: entry for entry in gone if entry.revision > forgotten}
            self._kept, self._unverified = kept, unverified
            self.head, self.position, self.seen = head, position, seen

    def withhold(self) -> None:
        """Stop serving the map, because another server leads."""
        with self.lock:
            self.ready = False
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def adopt(
        self,
        entries: Iterable[Entry],
        head: Revision,
        *,
        history: Timeline,
        consistent: bool,
        position: Lsn = Lsn(0),
        seen: Lsn = Lsn(0),
        along: Callable[[], object] = lambda: None,
    ) -> None:
        """Replace the map by another server's entries and tombstones. Takes 2 s for a million.

        All walks end: their next read raises `OutlivedError`. ``along`` is called under the same lock.
        """
        log = sorted(entries, key=attrgetter("revision"))
        digests = (entry_digest(entry.id, entry.payload) for entry in log if entry.payload is not None)
        digest = sum(int.from_bytes(one, "big") for one in digests) % _MODULUS
        with self.lock:
            self.log, self._compaction = log, None
            self.entries = {entry.id: entry for entry in log}
            self.tombstones = {entry.id: entry for entry in log if entry.payload is None}
            self.forgotten, self._old = Revision(0), []
            self._unverified = {}
            self._digest = digest
            self.history, self.head, self.consistent = history, head, consistent
            self.position, self.seen = position, seen
            for place in self.places:
                place.outlive()
            along()
            wakes = tuple(self._wakes)
        for wake in wakes:  # so that walks notice
            wake()

    def copied(self, entries: Iterable[Entry], head: Revision) -> Batch:
        """Make a batch of another server's newer entries, which are in the order of their revisions, up to
        that server's ``head``.
        """
        batch = Batch(max(head, self.head), Lsn(0), Lsn(0))
        for entry in entries:
            old = self.entries.get(entry.id)
            if old is not None and old.payload is not None:
                batch.delta -= int.from_bytes(entry_digest(old.id, old.payload), "big")
            digest = b"" if entry.payload is None else entry_digest(entry.id, entry.payload)
            batch.delta += int.from_bytes(digest, "big")
            batch.changed.append(entry)
            batch.digests.append(digest)
            batch.revision = max(batch.revision, entry.revision)
        return batch

    def after(self, batch: Batch) -> tuple[int, bytes]:
        """Return the count and the digest that the map will have after ``batch`` is published."""
        count = len(self)
        for entry in batch.changed:
            old = self.entries.get(entry.id)
            count += (entry.payload is not None) - (old is not None and entry.id not in self.tombstones)
        return count, ((self._digest + batch.delta) % _MODULUS).to_bytes(DIGEST_BYTES, "big")

    def tombstones_up_to(self, revision: Revision) -> list[Entry]:
        """Return the oldest tombstones, up to this revision."""
        tombstones = list(self.tombstones.values())
        return tombstones[: bisect_right(tombstones, revision, key=attrgetter("revision"))]

    def forget(self, up_to: Revision) -> None:
        """Remove the tombstones up to a revision: some now, and the rest during calls of `publish` and
        `tend`.

        Walks that have not yet returned these tombstones can never return them, so they end as with `adopt`.
        """
        self._old = self.tombstones_up_to(up_to)
        with self.lock:
            self.forgotten = max(self.forgotten, up_to)
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove some of the tombstones to be forgotten. Removing a million at once would delay a revocation
        for a second.
        """
        some = self._old[-self._FORGET_STEP :]
        del self._old[-self._FORGET_STEP :]
        with self.lock:
            for entry in some:
                if self.entries.get(entry.id) is entry:  # otherwise the endpoint exists again
                    del self.tombstones[entry.id], self.entries[entry.id]

    def rewind(self, history: Timeline) -> None:
        """Adopt another history, to which the current positions do not belong. Entries and revisions stay."""
        with self.lock:
            self.history, self.consistent = history, False
            self.position = self.seen = Lsn(0)
            for entry in self.entries.values():
                entry.position = Lsn(0)

    def follow_timeline(self, history: Timeline, switch: Lsn | None = None) -> None:
        """Adopt a history that continues the current one.

        If the current one ended at ``switch``, the map may lack transactions after that position.
        """
        with self.lock:
            self.history = history
            if switch is not None:
                self.position = min(self.position, switch)

    def kept_digest(self, entry: Entry) -> bytes:
        """Return an entry's digest for the state file: `GONE` for a tombstone, or the digest from the file
        until the first reconcile has verified it.
        """
        if entry.payload is not None:
            return entry_digest(entry.id, entry.payload)
        number = self._unverified.get(entry.id)
        return GONE if number is None else self._kept.digest(number)

    @property
    def reading(self) -> int:
        """The number of the newest reading."""
        return self._readings

    def begin_reading(self) -> int:
        """Return a new number for a read in chunks; see `prepare`, `Entry.reading` and `not_read`."""
        self._readings += 1
        return self._readings

    def not_read(self, reading: int) -> list[str]:
        """Return the live ids that neither this read of the whole mapping nor a later read has returned.

        The number in each entry takes 8 bytes. A set of ids for each read would take a seventh of the map's
        memory.
        """
        return [
            entry.id
            for entry in self.entries.values()
            if entry.reading < reading and entry.id not in self.tombstones
        ]

    def prepare(
        self,
        rows: Iterable[tuple[str, bytes | None]],
        position: Lsn,
        *,
        named: bool = True,
        asked: Collection[str] = (),
        seen: Lsn = Lsn(0),
        reading: int = 0,
    ) -> Batch:
        """Compare rows with the map. A payload of None means that the endpoint does not exist. Each id may
        occur only once in a call.

        ``named`` says that transactions up to ``position`` named these ids, so that the entries' positions
        change even if the payloads do not. The rows of a reconcile are not named.

        ``asked`` are the named ids that come only from a signal table. If such an id is unknown, it gets no
        tombstone, since no client can have it.

        If one ``reading`` returns an id twice with different payloads, the endpoint becomes a tombstone,
        because it is unknown which row is right.

        Nothing in the rows is newer than ``seen``.
        """
        batch = Batch(self.head, position, max(position, seen))
        find = self._find_remembered if self._old else self.entries.get
        revision, newest = Revision(self.head + 1), batch.newest
        for endpoint_id, payload in rows:
            old = find(endpoint_id)
            if reading and old is not None and old.reading == reading:
                batch.again.append(endpoint_id)
                if payload != old.payload:
                    batch.twice.append(endpoint_id)
                    self._compare_gone(batch, endpoint_id, old, named=named, reading=reading)
            elif payload is None:
                if old is not None or endpoint_id not in asked:
                    self._compare_gone(batch, endpoint_id, old, named=named, reading=reading)
            elif old is None:  # inlined, because the first load does this a million times
                digest = entry_digest(endpoint_id, payload)
                batch.changed.append(Entry(endpoint_id, revision, newest, payload, reading))
                batch.digests.append(digest)
                batch.delta += int.from_bytes(digest, "big")
            else:
                old.reading = max(old.reading, reading)
                if old.payload != payload:
                    self._compare(batch, payload, old, named=named)
                elif named:
                    batch.moved.append((old, entry_digest(endpoint_id, payload)))
        if batch.changed:
            batch.revision = revision
            batch.upserts = sum(entry.payload is not None for entry in batch.changed)
        return batch

    def _find_remembered(self, endpoint_id: str) -> Entry | None:
        """Return the entry of an id, unless it is a tombstone that is about to be removed.

        Such a tombstone must not be used again: clients whose map is younger than the retention time would
        miss the delete.
        """
        tombstone = self.tombstones.get(endpoint_id)
        if tombstone is not None and tombstone.revision <= self.forgotten:
            return None
        return self.entries.get(endpoint_id)

    def _compare(self, batch: Batch, payload: bytes, old: Entry, *, named: bool) -> None:
        digest = entry_digest(old.id, payload)
        batch.delta += int.from_bytes(digest, "big")
        if old.payload is not None:
            batch.delta -= int.from_bytes(entry_digest(old.id, old.payload), "big")
        elif self.kept_digest(old) == digest:
            batch.verified.append((old, payload))
            if named:
                batch.moved.append((old, digest))
            return
        position = max(batch.newest, old.position)  # a transaction that is delivered again moves nothing back
        # `old.id` rather than the row's string, so that each id is one object in memory.
        batch.changed.append(Entry(old.id, Revision(self.head + 1), position, payload, old.reading))
        batch.digests.append(digest)

    def _compare_gone(
        self, batch: Batch, endpoint_id: str, old: Entry | None, *, named: bool, reading: int
    ) -> None:
        if old is None:
            if named:  # created and deleted before the read, but a client of another server may have it
                batch.changed.append(Entry(endpoint_id, Revision(self.head + 1), batch.newest, None, reading))
                batch.digests.append(b"")
            return
        old.reading = max(old.reading, reading)
        if endpoint_id in self.tombstones:
            if named:
                batch.moved.append((old, b""))
            return
        if old.payload is not None:
            batch.delta -= int.from_bytes(entry_digest(endpoint_id, old.payload), "big")
        position = max(batch.newest, old.position)
        batch.changed.append(Entry(old.id, Revision(self.head + 1), position, None, old.reading))
        batch.digests.append(b"")
        batch.deletes += 1

    def publish(
        self,
        batch: Batch,
        *,
        consistent: bool,
        position: Lsn = Lsn(0),
        seen: Lsn = Lsn(0),
        express: bool = False,
    ) -> None:
        """Make a prepared batch visible. The state file must contain the batch already.

        ``consistent`` says whether the map is then consistent. The map then includes every transaction up to
        ``position``, and nothing newer than ``seen``. With ``express``, walks send the batch's entries before
        the rest of the log.
        """
        with self.lock:
            for collected in self.movements:
                collected.update((entry.id, entry) for entry, _ in batch.moved)
            for entry, _ in batch.moved:
                entry.position = max(entry.position, batch.position)
            for entry, payload in batch.verified:
                entry.payload = payload
                self._unverified.pop(entry.id, None)
            for entry in batch.changed:
                self.entries[entry.id] = entry
            self._mark_gone(batch)
            if len(self._kept) and not self._unverified:
                self._unverified, self._kept = {}, EntryColumns()  # an emptied dict would keep its size
            self.log.extend(batch.changed)
            if express:
                self.express.add(batch.changed)
            self._digest = (self._digest + batch.delta) % _MODULUS
            self.head = batch.revision
            self.consistent = consistent
            self.position = max(self.position, position)
            self.seen = max(self.seen, seen)
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()
        if self._old:
            self._remove_old()
        self._compact(len(batch.changed))

    def loaded(self) -> None:
        """Record that the whole mapping has been loaded, so that clients may be served."""
        with self.lock:
            self.ready = True
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def mark_consistent(self, position: Lsn) -> None:
        """Record that the map is consistent, and includes every transaction up to ``position``."""
        with self.lock:
            news = not self.consistent
            self.consistent = True
            self.position = max(self.position, position)
            wakes = tuple(self._wakes) if news else ()
        for wake in wakes:
            wake()

    def _mark_gone(self, batch: Batch) -> None:
        """Update `tombstones` and `_unverified` for the changes of a batch."""
        for forgotten in (self.tombstones, self._unverified):
            if forgotten:  # it is moved to the end, so that tombstones stay in the order of their revisions
                for entry in batch.changed:
                    forgotten.pop(entry.id, None)
        if batch.upserts < len(batch.changed):
            self.tombstones.update((entry.id, entry) for entry in batch.changed if entry.payload is None)

    def tend(self) -> bool:
        """Do a step of the remaining work of `forget` and of compaction.

        Return whether there is more to do.
        """
        if self._old:
            self._remove_old()
        elif self._compaction is not None:
            self._compact(self._COMPACT_STEP)
        return bool(self._old) or self._compaction is not None

    def _compact(self, changed: int) -> None:
        """Remove dead entries from the log, since they take memory and slow walks down. A compaction begins
        when there is a dead entry for every three live ones. At its end there may be one for every two.

        The compaction is done in steps. A million entries at once would delay a revocation for half a second.
        """
        if self._compaction is None:
            dead = len(self.log) - len(self.entries)
            if dead <= max(self._COMPACT_FROM, len(self.entries) // 3):
                return
            self._compaction = Compaction(self.log)
        if self._compaction.step(self.entries, self._COMPACT_STEP + 8 * changed):
            with self.lock:
                self.log = self._compaction.finish(self.log, self.places)
            self._compaction = None
