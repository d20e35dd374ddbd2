"""The state file, with which clients can resume after a restart of the server.

It contains the epoch, and the id, revision, position and digest of each entry, but no keys and no payloads. A
batch is written before a subscriber can see it, so no revision that a client knows is used twice. After a
restart the mapping is compared with the file: an endpoint that has changed gets a new revision, and an
endpoint that is gone becomes a tombstone.

The file is an SQLite database, because that has atomic writes and a lock. Each row is a whole batch, packed
by column: a million entries take 0.3 s in this form, and 6.9 s as single rows. When most entries in the file
are out of date, the file is *folded* in small steps: each step replaces some old rows by one row with their
live entries. Nothing is synced to the disk while the server runs. A killed process loses nothing, and after a
crash of the machine a new epoch begins.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
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
"""Number of entries in one packed row when the whole store is written."""
_FOLD, _OVERGROWN = 2, 4
"""The file is folded when it has this many rows for each entry. The first limit applies while the server is
idle, and the larger one always.
"""
_JOURNAL = 16 * 2**20
"""Size to which SQLite's journal (its WAL) is truncated after a larger batch, in bytes."""
_STEP = 2_000
"""Number of entries that are read in one step of folding."""
_BATCHES = "SELECT number, head, position, seen, ids, revisions, positions, digests, checksum FROM batches"
_NOTES = ("system", "timeline", "bootstrap", "owed", "shown", "forgotten", "marks")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Kept:
    """The content of the file when it was opened."""

    epoch: str
    """Identifies an unbroken line of revisions. Tokens of other epochs cannot resume by revision."""
    fresh: bool = True
    """Whether there was no usable file, so that no client can resume."""
    system: str = ""
    timeline: int = 0
    head: Revision = Revision(0)
    position: Lsn = Lsn(0)
    seen: Lsn = Lsn(0)
    bootstrap: Snapshot | None = None
    """The snapshot that the slot was created with; None once the first load is done."""
    owed: Gate | None = None
    """The gate of the reconcile that is owed because the slot was confirmed beyond open tasks; None if none
    is owed.
    """
    shown: Gate | None = None
    """The gate for reads from a primary after reads from a standby; see `cdc.requery.monotonic_reads`."""
    forgotten: Revision = Revision(0)
    """Tombstones up to this revision are forgotten, even if the file still has them."""
    marks: str = ""
    """The marks of `cdc.state.forgetting`, as text."""
    notes: dict[str, str | int] = field(default_factory=dict)
    """The notes that these fields were read from."""
    entries: EntryColumns = field(default_factory=EntryColumns)


class StateFile:
    """An open and locked state file. Only the applier's thread uses it."""

    def __init__(self, path: Path, system: str = "") -> None:
        """Open or create the file and read it. A file of another cluster than ``system`` is renamed.

        Raises:
            Refusal: another process has the file open.
            StateFileError: the file cannot be created or written.

        """
        self.path = path
        self._system = system
        self.set_aside: Path | None = None
        """The new name of an unusable file; None if there was none."""
        self._rows = 0
        self._folded_to: int | None = None
        """The number of the last folded batch; None while no folding is in progress."""
        self._forgotten = Revision(0)
        """Tombstones up to this revision were forgotten when the current folding began."""
        with _errors(path):
            try:
                self._open()
                self.kept = self._load()
            except _Foreign as error:
                raise StateFileError(
                    f"the state file {path} cannot be used: it is not a state file, and was left as it is;"
                    " name another file in STATE_FILE"
                ) from error
            except (_Unusable, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_away()
                self._open()
                self.kept = self._load()
            self._opened = self._found()

    def append(self, batch: Batch, *, position: Lsn, seen: Lsn) -> None:
        """Write one batch, atomically.

        Raises:
            StateFileError: the batch was not written. The caller must continue without a file, in a new
            epoch.

        """
        # The columns are filled one by one, which is faster than row by row: the first load has a million
        # entries.
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
        self.check_place()
        with _errors(self.path), self._db:
            self._insert(columns, batch.revision, position, seen)

    def note(self, **values: str | int) -> None:
        """Write notes by name; see `_NOTES`."""
        self.check_place()
        with _errors(self.path), self._db:
            self._set(values)

    def start_epoch(
        self,
        entries: EntryColumns,
        head: Revision,
        *,
        position: Lsn,
        seen: Lsn,
        notes: Mapping[str, str | int],
    ) -> str:
        """Begin a new epoch with this content, so that earlier tokens are invalid. Return the new epoch.

        The file may be new or have old content. Afterwards it has only these notes.
        """
        epoch = uuid.uuid4().hex
        with _errors(self.path), self._db:
            self._db.executemany("DELETE FROM facts WHERE name = ?", [(name,) for name in _NOTES])
            self._set({**notes, "epoch": epoch})
            self._replace(entries, head, position, seen)
        self.let_go()
        return epoch

    def let_go(self) -> None:
        """Free the entries that were read when the file was opened. A million of them take 100 MB."""
        self.kept = replace(self.kept, entries=EntryColumns())

    def fold(self, entries: Mapping[str, Entry], forgotten: Revision = Revision(0)) -> bool:
        """Do a step of folding, if most of the file is out of date. Return whether there is more to do.

        ``entries`` are the store's entries. They include all entries of the file except tombstones up to
        ``forgotten``. A step takes some milliseconds. With a million entries, folding all at once would delay
        a revocation for seconds.
        """
        if self._folded_to is None:
            if self._rows <= _FOLD * len(entries) + _CHUNK:
                return False
            self._folded_to, self._forgotten = 0, forgotten
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

    def check_place(self) -> None:
        """Check that the file and SQLite's journal are still the files that were opened.

        Writes to a file that somebody has removed or replaced succeed, but are lost after a restart. The
        check costs two calls of stat, 5 us.

        Raises:
            StateFileError: one of the files has been removed or replaced.

        """
        if self._found() != self._opened:
            fault = find_fault(self.path)
            remedy = f"{fault.text}; {fault.remedy}" if fault else "a new one is written within seconds"
            raise StateFileError(
                f"the state file {self.path} has been removed or replaced while it was in use; {remedy}"
            )

    def _found(self) -> list[tuple[int, int] | None]:
        """Return the device and inode of the file and of its journal; None for a file that does not exist."""
        found: list[tuple[int, int] | None] = []
        for path in (self.path, Path(f"{self.path}-wal")):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def overgrown(self, live: int) -> bool:
        """Return whether folding must not wait any longer. ``live`` is the number of entries in the store."""
        return self._rows > _OVERGROWN * live + 2 * _CHUNK

    def _read_newest(self, after: int, entries: Mapping[str, Entry]) -> tuple[list[int], Kept, int]:
        """Read the next batches. Return their numbers, their entries that are up to date, and the number of
        all their entries.
        """
        numbers: list[int] = []
        kept, places, read = Kept(epoch=""), dict[str, int](), 0
        with closing(self._db.execute(f"{_BATCHES} WHERE number > ? ORDER BY number", (after,))) as batches:
            for number, *batch in batches:
                columns = self._unpack(kept, batch)
                newest = (row for row in columns if self._is_now(entries.get(row.id), row))
                _overlay(kept.entries, places, newest)
                numbers.append(number)
                read += len(columns)
                if read >= _STEP:
                    break
            if numbers and not kept.entries:
                # The batches' positions can be stored only together with an entry, so one entry that is out
                # of date is kept. Its endpoint may have been deleted, and the tombstone may be forgotten
                # during this folding. The kept entry must not bring the endpoint back then, so it becomes a
                # tombstone.
                row = [*columns][-1]
                entry = entries.get(row.id)
                same = entry is not None and entry.revision == row.revision
                _overlay(kept.entries, places, [row if same else row._replace(digest=GONE)])
        return numbers, kept, read

    def _is_now(self, entry: Entry | None, row: EntryRow) -> bool:
        """Return whether a row of the file is up to date, given the store's entry."""
        if entry is not None:
            return (row.revision, row.position) >= (entry.revision, entry.position)
        # The row is a forgotten tombstone. If it was forgotten during this folding, a batch that was folded
        # earlier may contain an older row of the same id. So the tombstone stays until the next folding.
        return row.digest == GONE and row.revision > self._forgotten

    def close(self) -> None:
        """Sync the file to the disk, and mark it as closed cleanly."""
        with _errors(self.path):
            self._db.execute("PRAGMA synchronous = FULL")
            with self._db:
                self._set({"clean": 1})
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    def discard(self) -> None:
        """Close a file that has failed, without writing to it."""
        with suppress(sqlite3.Error):
            self._db.close()

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if is_foreign(self.path):
            raise _Foreign
        self._db = sqlite3.connect(self.path, timeout=0, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "facts" not in tables:  # another program's database, which must not be changed
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
        # A walk cannot begin before the forgotten revision, so this must not exceed the head. The head of a
        # file without entries is 0.
        kept.forgotten = min(Revision(int(facts.get("forgotten", 0))), kept.head)
        kept.marks = str(facts.get("marks", ""))
        kept.notes = {name: facts[name] for name in _NOTES if name in facts}
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
        """Return the entries of a batch, and note its positions in ``kept``."""
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
    """Return whether a file is certainly not a state file, because its content is not SQLite's. Reads the
    file.

    A mistake in STATE_FILE must not make us rename another program's file. A file that begins with zeros
    counts as a state file, because a file system may leave such a file after a crash of the machine.
    """
    if not path.is_file():  # a device or a pipe
        return True
    with path.open("rb") as file:
        header = file.read(len(_SQLITE))
    return header != _SQLITE and bool(header.strip(b"\0"))


class _Foreign(Exception):  # noqa: N818 - never leaves this module
    """The file does not belong to us."""


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """The file has another version or belongs to another cluster, or a checksum is wrong."""


def _overlay(entries: EntryColumns, numbers: dict[str, int], newer: Iterable[EntryRow]) -> None:
    """Replace the values of ids by newer ones, and append new ids."""
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
    """Translate the errors of the file that a block raises into ours, with the cause and the remedy."""
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
            f"the state file {path} cannot be used: a checksum is wrong; {_remedy(path)}"
        ) from error
    except (sqlite3.Error, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        raise StateFileError(f"the state file {path} cannot be used: {text}; {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    fault = find_fault(path)
    return f"{fault.text}; {fault.remedy}" if fault else "check its disk, or choose another STATE_FILE"
