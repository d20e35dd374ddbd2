"""What a slot sends, as a closed set of small types: the edge at which a plugin's output becomes ours.

Both plugins yield these types, and nothing behind their decoders knows which one it was. msgspec decodes
wal2json's rows right into them: each one's tag is wal2json's ``action``.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdc.lsn import Lsn
    from cdc.units import Xid


Value: TypeAlias = Any
"""What a column can hold: text, an integer, a boolean or None. Numbers that are no integers are text, as the
server prints them: a float would be another number.
"""

Action = Literal["insert", "update", "delete", "truncate"]


class Column(msgspec.Struct, frozen=True, gc=False):
    """A name and its value; unchanged TOASTed values are left out of a row by the plugin."""

    name: str
    value: Value = None


class Begin(msgspec.Struct, frozen=True, gc=False):
    """A committed transaction starts."""

    xid: Xid
    """32 bits."""
    end: Lsn
    """A position within its commit record, or that record's end: who has read up to here has read the
    record.
    """
    committed_at: float
    """Unix seconds by the database's clock; 0.0 where it cannot be read."""


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The transaction is whole."""

    xid: Xid
    """0 where the plugin does not repeat it."""
    end: Lsn
    """The end of its commit record: confirming it lets the slot forget the transaction."""
    committed_at: float


class Insert(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="I"):
    """A new row."""

    schema: str
    table: str
    columns: tuple[Column, ...]


class Update(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="U"):
    """A changed row; ``identity`` holds the replica identity's columns as they were before."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    identity: tuple[Column, ...]


class Delete(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="D"):
    """A row that is gone, known by its replica identity."""

    schema: str
    table: str
    identity: tuple[Column, ...]


class Truncate(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="T"):
    """A table that was emptied; a cascade is one for each table."""

    schema: str
    table: str


class Note(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="M"):
    """``pg_logical_emit_message``: somebody else's business; may stand outside of a transaction."""


Row = Insert | Update | Delete | Truncate
Message = Begin | Commit | Insert | Update | Delete | Truncate | Note


class MessagePlace(Enum):
    """Where in a stream a plugin sends a kind of message: all that is known of one that cannot be read."""

    WITHIN = auto()
    """In an open transaction, or as its beginning."""
    END = auto()
    """As the end of a transaction."""
    ANYWHERE = auto()


class Decoder(Protocol):
    """Reads one stream, from its beginning: it may remember what the plugin says only once."""

    def decode(self, raw: bytes) -> Sequence[Message]:
        """Return what a message says: one thing as a rule, several for a TRUNCATE, or nothing of interest.

        Raises:
            MessageError: it cannot be read. The error holds nothing of the message, which may hold a key.

        """

    def place(self, raw: bytes) -> MessagePlace:
        """Tell where a message stands that could not be handled."""
