"""The store's log: entries in the order of their revisions, and the places of walks in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.units import Revision


class Entry(msgspec.Struct, eq=False, gc=False):
    """An endpoint or its tombstone, at one revision. After publication only `position` and `reading` change.

    Creating a `Struct` takes a quarter of the time of an object of an ordinary class. With ``gc=False`` the
    garbage collector does not track entries; otherwise it would visit a million of them again and again
    during a load. This is safe, since an entry cannot be part of a cycle.
    """

    id: str
    revision: Revision
    position: Lsn
    payload: bytes | None
    """The serialized ``proto.GatewayEndpoint``; None in a tombstone."""
    reading: int = 0
    """The number of the newest reading that has returned the endpoint; see `Store.begin_reading`."""

    def __repr__(self) -> str:  # the payload holds an API key
        kind = "tombstone" if self.payload is None else f"{len(self.payload)} bytes"
        return f"<Entry {self.id!r} revision {self.revision}, {kind}>"


class OutlivedError(Exception):
    """The log of a walk has been replaced, so the walk must be started again."""


class Place:
    """An index into the store's log that stays valid after a compaction; guarded by the store's lock."""

    __slots__ = ("__weakref__", "_places", "index", "outlived")

    def __init__(self, index: int, places: set[Place]) -> None:
        """``places`` is `Store.places`."""
        self.index = index
        self.outlived = False
        """Whether the log has been replaced."""
        self._places = places
        places.add(self)

    def carry(self, index: int) -> None:
        """Move to an index in the compacted log."""
        self.index = index

    def outlive(self) -> None:
        """Record that the log has been replaced, so the walk at this place must be started again."""
        self.outlived = True

    def leave(self) -> None:
        """Remove this place from the store."""
        self._places.discard(self)
