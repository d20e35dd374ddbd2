"""Writes to the state file. When the file fails, the ledger reports the failure and begins a new epoch, and
the server continues without the file.

A restart without a state file forgets revisions and tombstones. So no client may resume by revisions that are
not in the file; the new epoch prevents it. When a file can be written again, the whole store is copied into
it first.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from cdc.errors import Refusal, StateFileError
from cdc.lsn import Lsn
from cdc.state.state_file import Kept, StateFile
from cdc.store.entry_columns import EntryColumns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cdc.observer import Observer
    from cdc.postgres.gate import Snapshot
    from cdc.postgres.timeline import Timeline
    from cdc.store.store import Batch, Store

_RETRY = 5.0
"""Seconds between attempts to open a state file after a failure."""
TROUBLE = "state_file"


class Ledger:
    """The applier's access to the state file. Owned by the applier's thread; any thread may read `epoch`."""

    def __init__(
        self,
        path: Path,
        system: str,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the state file of the cluster with the identifier ``system``, or continue without one.

        Raises:
            Refusal: another process has the file open.

        """
        self._path = path
        self._observer = observer
        self._clock = clock
        self._file: StateFile | None = None
        self._retry_at = 0.0
        self.epoch = uuid.uuid4().hex
        """Identifies an unbroken line of revisions."""
        self.kept = Kept(self.epoch)
        """The content of the file when it was opened, without the entries and positions that the store has
        adopted, and with the newest timeline and bootstrap snapshot.
        """
        self._notes: dict[str, str | int] = {}
        """The newest notes, which are needed when a file is written again."""
        try:
            self._file = StateFile(path, system)
        except StateFileError as error:
            self._failed(error)
            return
        self.kept = self._file.kept
        self.epoch = self.kept.epoch
        self._notes.update(self.kept.notes)
        if self._file.set_aside is not None:
            self._observer.state_file_error(
                f"the state file {path} was unusable and is now {self._file.set_aside.name};"
                " clients of the legacy contract that missed deletes must be restarted"
            )

    def restore(self, store: Store) -> Lsn:
        """Move the content of the file to the store.

        Return a position that nothing in the content exceeds.
        """
        kept = self.kept
        store.restore(kept.entries, kept.head, kept.position, kept.seen, kept.forgotten)
        self.kept = replace(kept, entries=EntryColumns())
        if self._file is not None:
            self._file.let_go()
        self.adopted()
        return kept.seen

    def adopted(self) -> None:
        """Record that the store's positions apply from now on, and no longer those of the file."""
        self.kept = replace(self.kept, position=Lsn(0), seen=Lsn(0))

    def follow(self, history: Timeline) -> None:
        """Record the timeline that the positions belong to."""
        if (self.kept.system, self.kept.timeline) != (history.system, history.timeline):
            self.kept = replace(self.kept, system=history.system, timeline=history.timeline)
            self.note(system=history.system, timeline=history.timeline)

    def bootstrap(self, snapshot: Snapshot | None) -> None:
        """Record the snapshot that the slot was created with; None once the map includes everything in it."""
        if snapshot != self.kept.bootstrap:
            self.kept = replace(self.kept, bootstrap=snapshot)
            self.note(bootstrap="" if snapshot is None else str(snapshot))

    def append(self, batch: Batch, *, position: Lsn, seen: Lsn) -> None:
        """Write a batch before it becomes visible. Does not raise if the file fails."""
        if self._file is None:
            return
        try:
            self._file.append(batch, position=position, seen=seen)
        except StateFileError as error:
            self._failed(error)

    def note(self, **values: str | int) -> bool:
        """Write notes by name.

        Return whether they are in the file, so that the next process can read them.
        """
        self._notes.update(values)
        if self._file is None:
            return False
        try:
            self._file.note(**values)
        except StateFileError as error:
            self._failed(error)
        return self._file is not None

    def new_epoch(self, store: Store) -> None:
        """Begin a new epoch, because the database now has another history."""
        self.epoch = uuid.uuid4().hex
        if self._file is not None:
            self._rewrite(self._file, store)

    def overgrown(self, store: Store) -> bool:
        """Return whether `tend` must be called now, even if there is other work, which may never end."""
        return self._file is not None and self._file.overgrown(len(store.entries))

    def tend(self, store: Store) -> bool:
        """Do a step of upkeep: fold the file, or try to open it again. Return whether there is more to do."""
        if self._file is not None:
            try:
                self._file.check_place()
                return self._file.fold(store.entries, store.forgotten)
            except StateFileError as error:
                self._failed(error)
        elif self._clock() >= self._retry_at and store.ready:
            try:
                again = StateFile(self._path)
            except (StateFileError, Refusal) as error:  # another process may have opened it in the meantime
                self._retry_at = self._clock() + _RETRY
                self._complain(error)
                return False
            if self._rewrite(again, store):
                self._observer.trouble(TROUBLE, None)
        return False

    def close(self) -> None:
        """Close the file cleanly."""
        if self._file is not None:
            try:
                self._file.close()
            except StateFileError as error:
                self._failed(error)
            self._file = None

    def _rewrite(self, file: StateFile, store: Store) -> bool:
        try:
            self.epoch = file.start_epoch(
                _remembered(store),
                store.head,
                position=store.position,
                seen=store.seen,
                notes={**self._notes, "forgotten": store.forgotten},
            )
        except StateFileError as error:
            file.discard()
            self._failed(error)
            return False
        self._file = file
        return True

    def _failed(self, error: StateFileError) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None
        self._retry_at = self._clock() + _RETRY
        self.epoch = uuid.uuid4().hex
        self._observer.state_file_error(str(error))
        self._complain(error)

    def _complain(self, error: StateFileError | Refusal) -> None:
        forgets = "a restart now would forget revisions, and deletes that clients must still receive"
        self._observer.trouble(TROUBLE, f"{error}; {forgets}")


def _remembered(store: Store) -> EntryColumns:
    return EntryColumns(
        (entry.id, entry.revision, entry.position, store.kept_digest(entry))
        for entry in store.entries.values()
    )
