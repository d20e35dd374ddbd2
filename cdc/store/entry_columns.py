"""The part of the entries that the state file keeps, so that a restarted server can find the endpoints that
have changed.

The entries are stored by column. Objects for a million entries would take twice the time, and 200 MB that the
process would never return to the system.
"""

from __future__ import annotations

from array import array
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from cdc.lsn import Lsn
from cdc.store.digest import DIGEST_BYTES
from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


GONE: Final = bytes(DIGEST_BYTES)
"""The digest of a tombstone. The probability that a real digest is all zeros is 2^-128."""


class EntryRow(NamedTuple):
    """The kept part of one entry."""

    id: str
    revision: Revision
    position: Lsn
    digest: bytes
    """`entry_digest`; `GONE` in a tombstone."""


class EntryColumns:
    """Entries in any order, each id once. An entry's number is its index."""

    __slots__ = ("digests", "ids", "positions", "revisions")

    def __init__(self, rows: Iterable[tuple[str, Revision, Lsn, bytes]] = ()) -> None:
        self.ids: list[str] = []
        self.revisions = array("Q")
        self.positions = array("Q")
        self.digests = bytearray()
        for row in rows:
            self.add(*row)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[EntryRow]:
        for number, endpoint_id in enumerate(self.ids):
            revision, position = Revision(self.revisions[number]), Lsn(self.positions[number])
            yield EntryRow(endpoint_id, revision, position, self.digest(number))

    def add(self, endpoint_id: str, revision: Revision, position: Lsn, digest: bytes) -> None:
        """Append an entry, whose id must be new."""
        self.ids.append(endpoint_id)
        self.revisions.append(revision)
        self.positions.append(position)
        self.digests += digest

    def put(self, number: int, revision: Revision, position: Lsn, digest: bytes) -> None:
        """Replace the values of an entry."""
        self.revisions[number], self.positions[number] = revision, position
        self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = digest

    def extend(self, other: EntryColumns) -> None:
        """Append entries, whose ids must be new."""
        self.ids += other.ids
        self.revisions += other.revisions
        self.positions += other.positions
        self.digests += other.digests

    def part(self, start: int, stop: int) -> EntryColumns:
        """Return a copy of the entries from number ``start`` to before ``stop``."""
        part = EntryColumns()
        part.ids = self.ids[start:stop]
        part.revisions, part.positions = self.revisions[start:stop], self.positions[start:stop]
        part.digests = self.digests[start * DIGEST_BYTES : stop * DIGEST_BYTES]
        return part

    def digest(self, number: int) -> bytes:
        """Return an entry's digest."""
        return bytes(self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])

    def in_order(self) -> EntryColumns:
        """Return the entries in the order of their revisions. Returns ``self`` if they are in this order
        already, as after a first load.
        """
        revisions = self.revisions
        if all(map(int.__le__, revisions, revisions[1:])):
            return self
        return EntryColumns(sorted(self, key=attrgetter("revision")))
