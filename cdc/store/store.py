"""The store: a map of endpoints that can be walked by revision.

Every live endpoint and every tombstone is an `Entry`. Entries also stand in a log in the order of their
revisions; an entry that moves on is appended again, and its old place is dead. A subscriber is nothing but a
place in that log, so there is no queue to overflow: who is slow finds the latest value of a key, and the
writer never waits for anybody.

One thread writes (the applier), in two steps so that the state file can be written between them: `prepare`
compares and decides, `publish` makes it visible. Anyone may read; a read takes the lock for one bounded slice
of the log.
"""

from __future__ import annotations

import threading
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
    from collections.abc import Callable, Iterable


_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True)
class Cut:
    """The map that the store holds at one moment: what a token stands for once a walk has arrived there."""

    revision: Revision
    history: Timeline
    """The line of WAL that the two positions are of."""
    position: Lsn
    seen: Lsn
    count: int
    digest: bytes
    consistent: bool
    """It is one that the database has had; otherwise an endpoint may be newer than another."""


@dataclass(slots=True)
class Batch:
    """What one read changes: decided against the store, not yet visible."""

    revision: Revision
    """The head once this is published; the old head if nothing changes."""
    position: Lsn
    newest: Lsn
    """What changed may be as new as this."""
    changed: list[Entry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """`entry_digest` of each changed entry; empty for a tombstone."""
    moved: list[tuple[Entry, bytes]] = field(default_factory=list)
    """Named by a transaction, with the same bytes (and their digest) as before: only the position moves."""
    verified: list[tuple[Entry, bytes]] = field(default_factory=list)
    """Known from the state file, and found unchanged in the first reconcile: the entry and its payload."""
    again: list[str] = field(default_factory=list)
    """Ids that this reading has brought before."""
    twice: list[str] = field(default_factory=list)
    """Those of them that have come with other bytes: they are gone."""
    delta: int = 0
    """What the digest of the whole map changes by."""
    upserts: int = 0
    deletes: int = 0

    def __repr__(self) -> str:
        return f"<Batch {self.revision}: {self.upserts} upserts, {self.deletes} deletes>"


class Store:
    """See the module."""

    _COMPACT_FROM = 4096
    """Dead places in the log that are not worth the work of compacting it."""
    _COMPACT_STEP = 1000
    """Places that are looked at after a publication, beside eight for each entry in it: faster than new ones
    come.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.head = Revision(0)
        """The newest published revision."""
        self.consistent = False
        """Whether the map at `head` is one that existed: False between the parts of a ripple or a
        reconcile.
        """
        self.ready = False
        """Whether a complete mapping has been loaded since the start."""
        self.history = Timeline()
        """The line of WAL that all positions here are of; unknown before any slot was read."""
        self.position: Lsn = Lsn(0)
        """Every transaction up to here is in the map."""
        self.seen: Lsn = Lsn(0)
        """Nothing in the map is newer than this."""
        self.log: list[Entry] = []
        self.entries: dict[str, Entry] = {}
        """Everything by id, tombstones too: an entry in the log is dead when it is not the one in here."""
        self.tombstones: dict[str, Entry] = {}
        """The deletes that old clients may still have to be told, oldest first."""
        self.places: set[Place] = set()
        """Where walks stand in the log: compacting it carries them along."""
        self.express = Express()
        """What a walk may hand out before its turn."""
        self.movements: list[dict[str, Entry]] = []
        """Each is given the entries whose position moves, for who mirrors us; guarded by the lock."""
        self._readings = 0
        self._compaction: Compaction | None = None
        self._digest = 0
        self._kept = EntryColumns()
        self._unverified: dict[str, int] = {}
        """Entries of the state file that await their payload, by their number in `_kept`."""
        self._wakes: set[Callable[[], None]] = set()

    def __len__(self) -> int:
        """Count the live endpoints, including those of the state file that still await their payload."""
        return len(self.entries) - len(self.tombstones)

    @property
    def digest(self) -> bytes:
        """The state digest of the live endpoints, 16 bytes."""
        return self._digest.to_bytes(DIGEST_BYTES, "big")

    def cut(self) -> Cut:
        """Describe the map of this moment; to be called under the lock."""
        return Cut(self.head, self.history, self.position, self.seen, len(self), self.digest, self.consistent)

    def live(self) -> list[Entry]:
        """Return all live entries at one moment."""
        with self.lock:
            return [entry for entry in self.entries.values() if entry.payload is not None]

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called after every publication, from the writer's thread; it must not block.

        Returns a function that ends it.
        """
        with self.lock:
            self._wakes.add(wake)

        def unsubscribe() -> None:
            with self.lock:
                self._wakes.discard(wake)

        return unsubscribe

    # Writing: one thread only. It may read without the lock, since nobody else writes.

    def restore(self, kept: EntryColumns, head: Revision, position: Lsn = Lsn(0), seen: Lsn = Lsn(0)) -> None:
        """Take over what the state file kept, before anything else; payloads come with the first reconcile.

        What that reconcile finds unchanged keeps its revision, what it does not find becomes a tombstone.
        """
        kept = kept.in_order()
        revisions = cast("Iterable[Revision]", kept.revisions)
        positions = cast("Iterable[Lsn]", kept.positions)
        log = list(map(Entry, kept.ids, revisions, positions, repeat(None)))
        if GONE in kept.digests:  # perhaps, as two digests may have zeros where they meet
            gone = [entry for number, entry in enumerate(log) if kept.digest(number) == GONE]
        else:
            gone = []
        unverified = dict(zip(kept.ids, range(len(log)), strict=True))
        for entry in gone:
            del unverified[entry.id]
        with self.lock:
            self.log, self.entries = log, dict(zip(kept.ids, log, strict=True))
            self.tombstones = {entry.id: entry for entry in gone}
            self._kept, self._unverified = kept, unverified
            self.head, self.position, self.seen = head, position, seen

    def withhold(self) -> None:
        """Let nobody have the map from now on: another server is the one to ask."""
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
        """Replace everything by another server's entries and tombstones. Takes 2 s a million.

        Walks end: their next read raises `OutlivedError`, and returns nothing of the new map. ``along`` is
        called in the same moment, under the lock.
        """
        log = sorted(entries, key=attrgetter("revision"))
        digests = (entry_digest(entry.id, entry.payload) for entry in log if entry.payload is not None)
        digest = sum(int.from_bytes(one, "big") for one in digests) % _MODULUS
        with self.lock:
            self.log, self._compaction = log, None
            self.entries = {entry.id: entry for entry in log}
            self.tombstones = {entry.id: entry for entry in log if entry.payload is None}
            self._unverified = {}
            self._digest = digest
            self.history, self.head, self.consistent = history, head, consistent
            self.position, self.seen = position, seen
            for place in self.places:
                place.outlive()
            along()
            wakes = tuple(self._wakes)
        for wake in wakes:  # so that whoever walks finds out
            wake()

    def copied(self, entries: Iterable[Entry], head: Revision) -> Batch:
        """Make a batch of another server's newer entries, in the order of their revisions, up to its
        ``head``.
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
        """Return count and digest of the map that publishing a batch would make."""
        count = len(self)
        for entry in batch.changed:
            old = self.entries.get(entry.id)
            count += (entry.payload is not None) - (old is not None and entry.id not in self.tombstones)
        return count, ((self._digest + batch.delta) % _MODULUS).to_bytes(DIGEST_BYTES, "big")

    def rewind(self, history: Timeline) -> None:
        """Forget positions, since another history has taken the place of theirs; the map and its revisions
        stay.
        """
        with self.lock:
            self.history, self.consistent = history, False
            self.position = self.seen = Lsn(0)
            for entry in self.entries.values():
                entry.position = Lsn(0)

    def follow_timeline(self, history: Timeline, switch: Lsn | None = None) -> None:
        """Be of another history that goes on from ours; forget how far ours was followed beyond the
        ``switch`` at which it was left.
        """
        with self.lock:
            self.history = history
            if switch is not None:
                self.position = min(self.position, switch)

    def kept_digest(self, entry: Entry) -> bytes:
        """Return the digest to remember: `GONE` for a tombstone, as restored while not yet verified."""
        if entry.payload is not None:
            return entry_digest(entry.id, entry.payload)
        number = self._unverified.get(entry.id)
        return GONE if number is None else self._kept.digest(number)

    @property
    def reading(self) -> int:
        """The number of the newest reading."""
        return self._readings

    def begin_reading(self) -> int:
        """Number a read that comes in parts, for `prepare` or `Entry.reading`, and later `not_read`."""
        self._readings += 1
        return self._readings

    def not_read(self, reading: int) -> list[str]:
        """Return the live ids that neither this whole read nor a later one has brought.

        A mark on each entry takes 8 bytes; a set of all ids would be a seventh of the map, for each read.
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
        seen: Lsn = Lsn(0),
        reading: int = 0,
    ) -> Batch:
        """Compare what was read (None: it is gone) with the map; each id at most once a call.

        ``named`` says that transactions up to ``position`` named these ids, so that the position of an entry
        moves even where its bytes stay. The rows of a reconcile are named by nobody. An id that comes again
        with other bytes within one ``reading`` is gone: of two rows nobody knows which one counts.
        What is different may be as new as ``seen``: it is news to a client of another server that is not
        beyond that.
        """
        batch = Batch(self.head, position, max(position, seen))
        entries, revision, newest = self.entries, Revision(self.head + 1), batch.newest
        for endpoint_id, payload in rows:
            old = entries.get(endpoint_id)
            if reading and old is not None and old.reading == reading:
                batch.again.append(endpoint_id)
                if payload != old.payload:
                    batch.twice.append(endpoint_id)
                    self._compare_gone(batch, endpoint_id, old, named=named, reading=reading)
            elif payload is None:
                self._compare_gone(batch, endpoint_id, old, named=named, reading=reading)
            elif old is None:  # all of them, a million times, at the first load: so it stands here
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
        position = max(batch.newest, old.position)  # what is redelivered is not news
        # One string an id, however often it moves.
        batch.changed.append(Entry(old.id, Revision(self.head + 1), position, payload, old.reading))
        batch.digests.append(digest)

    def _compare_gone(
        self, batch: Batch, endpoint_id: str, old: Entry | None, *, named: bool, reading: int
    ) -> None:
        if old is None:
            if named:  # it came and went before we looked, but a client of another server may have seen it
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
        """Make a prepared batch visible; the state file has it already.

        ``consistent`` says whether the map is one that existed once this is in, ``position`` up to where it
        then holds every transaction, ``seen`` how new the read behind it was. ``express`` lets what changed
        go before what walks have not handed out yet.
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
                self._unverified, self._kept = {}, EntryColumns()  # a dict that was emptied keeps its size
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
        self._compact(len(batch.changed))

    def loaded(self) -> None:
        """Say that the complete mapping is in: from now on clients may have it."""
        with self.lock:
            self.ready = True
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def mark_consistent(self, position: Lsn) -> None:
        """Say that nothing is open: the map is one that existed, and holds every transaction up to
        ``position``.
        """
        with self.lock:
            news = not self.consistent
            self.consistent = True
            self.position = max(self.position, position)
            wakes = tuple(self._wakes) if news else ()
        for wake in wakes:
            wake()

    def _mark_gone(self, batch: Batch) -> None:
        """Keep tombstones, and what is not verified yet, true to what was changed."""
        for forgotten in (self.tombstones, self._unverified):
            if forgotten:  # out and in again, so that tombstones stay in the order of their revisions
                for entry in batch.changed:
                    forgotten.pop(entry.id, None)
        if batch.upserts < len(batch.changed):
            self.tombstones.update((entry.id, entry) for entry in batch.changed if entry.payload is None)

    def tend(self) -> bool:
        """Go on with a compaction, when there is nothing else to do; True if there is more of it."""
        if self._compaction is not None:
            self._compact(self._COMPACT_STEP)
        return self._compaction is not None

    def _compact(self, changed: int) -> None:
        """Drop dead places once there are a third as many as live ones: old payloads take room, walks take
        longer. Until all are looked at there are half as many.

        Little by little: a million places at once would hold up a revocation for half a second.
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
