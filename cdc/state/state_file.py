"""The state file: what must outlive the process so that a restart is no gap for anybody.

It holds each entry's id, revision, position and digest, and the epoch: no keys, no payloads. A batch is in it
before any cursor can see the batch, so a revision that a client has heard of is never given out twice. After
a restart the mapping is compared with it: what changed while we were down gets a new revision, and what
vanished becomes a tombstone.

The container is SQLite, for its atomic writes and its lock; the rows in it are whole batches, packed by
column (a million rows go in one by one in 6.9 s, packed in 0.3 s) and folded, little by little, when most of
them are out of date. Nothing is synced to the disk while running: a killed process loses nothing, and after a
reboot that was not clean the epoch is a new one.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdc.errors import Refusal, StateFileError
from cdc.lsn import Lsn
from cdc.postgres.gate import Gate, Snapshot
from cdc.state.place import find_fault
from cdc.store.entry_columns import GONE, EntryColumns
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cdc.store.entry_columns import EntryRow
    from cdc.store.log import Entry
    from cdc.store.store import Batch

_VERSION = 1
_SQLITE = b"SQLite format 3\0"
_CHUNK = 50_000
"""Rows in one packed batch of a copy of everything."""
_FOLD, _OVERGROWN = 2, 4
"""Rows for each entry from which on the file is folded: when there is nothing else to do, and in any case."""
_JOURNAL = 16 * 2**20
"""Bytes that SQLite's journal (its WAL) keeps on the disk once a larger batch is through."""
_STEP = 2_000
"""Rows that are read in one step of folding."""
_BATCHES = "SELECT number, head, position, seen, ids, revisions, positions, digests, checksum FROM batches"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Kept:
    """What was in the file when it was opened."""

    epoch: str
    """Names an unbroken line of revisions; a token of another epoch is worth nothing."""
    fresh: bool = True
    """There was nothing to resume: no file, or one that could not be used."""
    system: str = ""
    timeline: int = 0
    head: Revision = Revision(0)
    position: Lsn = Lsn(0)
    seen: Lsn = Lsn(0)
    bootstrap: Snapshot | None = None
    """The snapshot that the slot was created with, until the first load is done."""
    owed: Gate | None = None
    """What a reconcile still has to see because the slot's WAL was let go."""
    shown: Gate | None = None
    """What a standby was seen to show, where the newest reads were made on one."""
    entries: EntryColumns = field(default_factory=EntryColumns)


class StateFile:
    """An open and locked state file; used by the applier's thread alone."""

    def __init__(self, path: Path, system: str = "") -> None:
        """Open or create the file and read it; one of another cluster than ``system`` is set aside.

        Raises:
            Refusal: another process has it.
            StateFileError: it cannot be created or written.

        """
        self.path = path
        self._system = system
        self.set_aside: Path | None = None
        """Where an unusable file was moved to."""
        self._rows = 0
        self._folded_to: int | None = None
        """Number of the last batch that was folded; None where that is not going on."""
        with _errors(path):
            try:
                self._open()
                self.kept = self._load()
            except _Foreign as error:
                raise StateFileError(
                    f"the state file {path} cannot be used: it is something else, and stays as it is; name"
                    " another file in STATE_FILE"
                ) from error
            except (_Unusable, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_away()
                self._open()
                self.kept = self._load()

    def append(self, batch: Batch, *, position: Lsn, seen: Lsn) -> None:
        """Write one batch, atomically.

        Raises:
            StateFileError: it is not in the file; the caller goes on without one, in a new epoch.

        """
        # Columns, not rows: at the first load this is done a million times.
        entries = [*batch.changed, *(entry for entry, _ in batch.moved)]
        if not entries:
            return
        columns = EntryColumns()
        columns.ids = [entry.id for entry in entries]
        columns.revisions.extend([entry.revision for entry in entries])
        columns.positions.extend([entry.position for entry in batch.changed])
        columns.positions.extend([batch.position] * len(batch.moved))
        columns.digests += b"".join([digest or GONE for digest in batch.digests])
        columns.digests += b"".join([digest or GONE for _, digest in batch.moved])
        with _errors(self.path), self._db:
            self._insert(columns, batch.revision, position, seen)

    def note(self, **values: str | int) -> None:
        """Remember facts by name (``system``, ``timeline``, ``bootstrap``, ``owed``, ``shown``)."""
        with _errors(self.path), self._db:
            self._set(values)

    def start_epoch(self, entries: EntryColumns, head: Revision, *, position: Lsn, seen: Lsn) -> str:
        """Break with the past: tokens given out so far are worth nothing. Returns the new epoch's name."""
        self.kept.epoch = uuid.uuid4().hex
        with _errors(self.path), self._db:
            self._set({"epoch": self.kept.epoch})
            self._replace(entries, head, position, seen)
        return self.kept.epoch

    def fold(self, entries: Mapping[str, Entry]) -> bool:
        """Do a step of rewriting the file, if most of it is out of date; True if there is more to do.

        ``entries`` are those of the store, in which everything is that is in the file. A step takes some
        milliseconds: the whole would hold up a revocation for seconds, where there are a million.
        """
        if self._folded_to is None:
            if self._rows <= _FOLD * len(entries) + _CHUNK:
                return False
            self._folded_to = 0
        with _errors(self.path), self._db:
            numbers, kept, read = self._read_newest(self._folded_to, entries)
            if not numbers:
                self._folded_to = None
                return False
            self._db.execute("DELETE FROM batches WHERE number BETWEEN ? AND ?", (numbers[0], numbers[-1]))
            self._rows -= read
            self._insert(kept.entries, kept.head, kept.position, kept.seen, number=numbers[-1])
            self._folded_to = numbers[-1]
        return True

    def overgrown(self, live: int) -> bool:
        """Tell whether folding cannot wait any longer, where the store has so many entries."""
        return self._rows > _OVERGROWN * live + 2 * _CHUNK

    def _read_newest(self, after: int, entries: Mapping[str, Entry]) -> tuple[list[int], Kept, int]:
        """Read the next batches: their numbers, the rows that still hold, and how many they had in all."""
        numbers: list[int] = []
        kept, places, read = Kept(epoch=""), dict[str, int](), 0
        with closing(self._db.execute(f"{_BATCHES} WHERE number > ? ORDER BY number", (after,))) as batches:
            for number, *batch in batches:
                columns = self._unpack(kept, batch)
                # A row is older than one that comes later, or it is what the entry is now.
                newest = (row for row in columns if _is_now(entries.get(row.id), row))
                _overlay(kept.entries, places, newest)
                numbers.append(number)
                read += len(columns)
                if read >= _STEP:
                    break
            if numbers and not kept.entries:  # one row bears how far it goes, which all batches say together
                _overlay(kept.entries, places, [*columns][-1:])
        return numbers, kept, read

    def close(self) -> None:
        """Put everything on the disk and say that this was a clean end."""
        with _errors(self.path):
            self._db.execute("PRAGMA synchronous = FULL")
            with self._db:
                self._set({"clean": 1})
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    def discard(self) -> None:
        """Let go of a file that failed, as it is."""
        with suppress(sqlite3.Error):
            self._db.close()

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if is_foreign(self.path):
            raise _Foreign
        self._db = sqlite3.connect(self.path, timeout=0, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "facts" not in tables:  # somebody else's: nothing has been written to it yet
            self._db.close()
            raise _Foreign
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA journal_size_limit = {_JOURNAL}")
        with self._db:
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, head INT, position INT,"
                " seen INT, ids TEXT, revisions BLOB, positions BLOB, digests BLOB, checksum INT)"
            )

    def _load(self) -> Kept:
        facts = dict(self._db.execute("SELECT name, value FROM facts"))
        if facts.get("version", _VERSION) != _VERSION:
            raise _Unusable
        kept = self._read_batches()
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        kept.fresh = "epoch" not in facts
        survived = facts.get("clean") == 1 or facts.get("boot") == boot
        kept.epoch = str(facts["epoch"]) if not kept.fresh and survived else uuid.uuid4().hex
        kept.system = str(facts.get("system", ""))
        if self._system and kept.system not in ("", self._system):
            raise _Unusable
        kept.timeline = int(facts.get("timeline", 0))
        bootstrap = str(facts.get("bootstrap", ""))
        kept.bootstrap = Snapshot.parse(bootstrap) if bootstrap else None
        kept.owed = Gate.parse(str(facts.get("owed", "")))
        kept.shown = Gate.parse(str(facts.get("shown", "")))
        with self._db:
            self._set({"version": _VERSION, "epoch": kept.epoch, "boot": boot, "clean": 0})
        return kept

    def _read_batches(self) -> Kept:
        kept = Kept(epoch="")
        entries, numbers = kept.entries, dict[str, int]()
        self._rows, self._folded_to = 0, None
        for _, *batch in self._db.execute(f"{_BATCHES} ORDER BY number"):
            columns = self._unpack(kept, batch)
            if numbers.keys().isdisjoint(columns.ids):
                numbers.update(
                    zip(columns.ids, range(len(entries), len(entries) + len(columns)), strict=True)
                )
                entries.extend(columns)
            else:
                _overlay(entries, numbers, columns)
            self._rows += len(columns)
        return kept

    def _unpack(self, kept: Kept, batch: list[Any]) -> EntryColumns:
        """Return a batch's rows, and note in ``kept`` how far it goes."""
        head, position, seen, ids, *packed, checksum = batch
        if _checksum(ids, *packed) != checksum:
            raise _Unusable
        kept.head, kept.position = max(kept.head, head), max(kept.position, position)
        kept.seen = max(kept.seen, seen)
        columns = EntryColumns()
        columns.ids, columns.digests = ids.split("\0"), bytearray(packed[2])
        columns.revisions.frombytes(packed[0])
        columns.positions.frombytes(packed[1])
        return columns

    def _replace(self, entries: EntryColumns, head: Revision, position: Lsn, seen: Lsn) -> None:
        self._db.execute("DELETE FROM batches")
        self._rows, self._folded_to = 0, None
        for start in range(0, len(entries), _CHUNK):
            self._insert(entries.part(start, start + _CHUNK), head, position, seen)

    def _insert(
        self, columns: EntryColumns, head: Revision, position: Lsn, seen: Lsn, *, number: int | None = None
    ) -> None:
        packed = (
            "\0".join(columns.ids),  # no text in Postgres holds a NUL
            columns.revisions.tobytes(),
            columns.positions.tobytes(),
            bytes(columns.digests),
        )
        self._db.execute(
            "INSERT INTO batches (number, head, position, seen, ids, revisions, positions, digests, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, head, position, seen, *packed, _checksum(*packed)),
        )
        self._rows += len(columns)

    def _set(self, values: dict[str, str | int]) -> None:
        self._db.executemany("REPLACE INTO facts VALUES (?, ?)", values.items())

    def _move_away(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()
        self.set_aside = self.path.with_name(f"{self.path.name}.unusable-{int(time.time())}")
        self.path.replace(self.set_aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)


def is_foreign(path: Path) -> bool:
    """Tell whether a file was never a state file: it has content, and not SQLite's; blocks on the disk.

    Somebody's mistake in STATE_FILE must not move a file of theirs away. One that begins with zeros is taken
    for ours: so a file system may leave it when the machine goes down hard.
    """
    if not path.is_file():  # a device or a pipe
        return True
    with path.open("rb") as file:
        header = file.read(len(_SQLITE))
    return header != _SQLITE and bool(header.strip(b"\0"))


class _Foreign(Exception):  # noqa: N818 - never leaves this module
    """The file is not ours to touch."""


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """The file is of another version or another cluster, or a checksum is off."""


def _is_now(entry: Entry | None, row: EntryRow) -> bool:
    return entry is None or (row.revision, row.position) >= (entry.revision, entry.position)


def _overlay(entries: EntryColumns, numbers: dict[str, int], newer: Iterable[EntryRow]) -> None:
    """Put newer values over those of the same ids."""
    for endpoint_id, revision, position, digest in newer:
        number = numbers.setdefault(endpoint_id, len(entries))
        if number == len(entries):
            entries.add(endpoint_id, revision, position, digest)
        else:
            entries.put(number, revision, position, digest)


def _checksum(ids: str, *columns: bytes) -> int:
    checksum = zlib.crc32(ids.encode())
    for column in columns:
        checksum = zlib.crc32(column, checksum)
    return checksum


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Say what failed and what to do about it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise Refusal(
                f"the state file {path} is in use by another process: give each server its own STATE_FILE"
            ) from error
        raise StateFileError(f"the state file {path} cannot be used: {error}; {_remedy(path)}") from error
    except _Unusable as error:
        raise StateFileError(
            f"the state file {path} cannot be used: a checksum is off; {_remedy(path)}"
        ) from error
    except (sqlite3.Error, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        raise StateFileError(f"the state file {path} cannot be used: {text}; {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    fault = find_fault(path)
    return (
        f"{fault.text}; {fault.remedy}" if fault else "see to the disk below it, or choose another STATE_FILE"
    )
