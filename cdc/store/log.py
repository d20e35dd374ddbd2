"""The store's log: its entries in the order of their revisions, and the places where walks stand in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.units import Revision


class Entry(msgspec.Struct, eq=False, gc=False):
    """An endpoint, or its tombstone, at one revision. Only `position` and `reading` change after it
    was published.

    A `Struct` is made in a quarter of the time of a class of ours, and ``gc=False`` keeps a million of them
    out of the garbage collector's sight, which would look at them again and again during a load. (Nothing in
    an entry can refer back to it.)
    """

    id: str
    revision: Revision
    position: Lsn
    payload: bytes | None
    """The serialized ``proto.GatewayEndpoint``; None in a tombstone."""
    reading: int = 0
    """The newest whole read that has brought it; see `Store.begin_reading`."""

    def __repr__(self) -> str:  # the payload holds an API key
        kind = "tombstone" if self.payload is None else f"{len(self.payload)} bytes"
        return f"<Entry {self.id!r} revision {self.revision}, {kind}>"


class OutlivedError(Exception):
    """The log in which a walk stood has been replaced: whoever walks has to begin anew."""


class Place:
    """An index into the store's log that survives compaction; guarded by the store's lock."""

    __slots__ = ("__weakref__", "_places", "index", "outlived")

    def __init__(self, index: int, places: set[Place]) -> None:
        """``places`` are the store's."""
        self.index = index
        self.outlived = False
        """The log is another one now."""
        self._places = places
        places.add(self)

    def carry(self, index: int) -> None:
        """Stand at another index of a new log."""
        self.index = index

    def outlive(self) -> None:
        """Note that the log has been replaced: a walk that stood at this place has to begin anew."""
        self.outlived = True

    def leave(self) -> None:
        """Let the store forget this place."""
        self._places.discard(self)
