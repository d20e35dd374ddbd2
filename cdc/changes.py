"""The messages of a slot, as a closed set of small types.

The decoders of both plugins yield these types, so no code after the decoders knows which plugin is in use.
msgspec decodes wal2json's rows directly into these types: each type's tag is wal2json's ``action``.
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
"""The value of a column: text, an integer, a boolean or None. Other numbers are the text that the server
prints, because converting them to a float could change them.
"""

Action = Literal["insert", "update", "delete", "truncate"]


class Column(msgspec.Struct, frozen=True, gc=False):
    """A name and its value. The plugins leave unchanged TOASTed values out of a row."""

    name: str
    value: Value = None


class Begin(msgspec.Struct, frozen=True, gc=False):
    """A committed transaction starts."""

    xid: Xid
    """32 bits."""
    end: Lsn
    """A position within the commit record, or the end of that record. A stream that has been read up to this
    position includes the record.
    """
    committed_at: float
    """Unix seconds by the database's clock; 0.0 if it cannot be read."""


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The transaction ends: all of its rows have been sent."""

    xid: Xid
    """0 if the plugin does not repeat it."""
    end: Lsn
    """The end of the commit record. Once it is confirmed, the slot no longer delivers the transaction."""
    committed_at: float


class Insert(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="I"):
    """A new row."""

    schema: str
    table: str
    columns: tuple[Column, ...]


class Update(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="U"):
    """A changed row; ``identity`` holds the old values of the replica identity's columns."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    identity: tuple[Column, ...]


class Delete(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="D"):
    """A deleted row; ``identity`` holds its replica identity's columns."""

    schema: str
    table: str
    identity: tuple[Column, ...]


class Truncate(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="T"):
    """A table that was emptied. TRUNCATE ... CASCADE yields one for each table."""

    schema: str
    table: str


class Note(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="M"):
    """A message of ``pg_logical_emit_message``, which is ignored. It may be outside of any transaction."""


Row = Insert | Update | Delete | Truncate
Message = Begin | Commit | Insert | Update | Delete | Truncate | Note


class MessagePlace(Enum):
    """Where in the stream a message is. Nothing else is known of a message that cannot be decoded."""

    WITHIN = auto()
    """In an open transaction, or as its beginning."""
    END = auto()
    """As the end of a transaction."""
    ANYWHERE = auto()


class Decoder(Protocol):
    """Decodes one stream from its beginning. It may remember facts that the plugin sends only once."""

    def decode(self, raw: bytes) -> Sequence[Message]:
        """Return the content of a message: usually one item, several for a TRUNCATE, none if it is ignored.

        Raises:
            MessageError: it cannot be decoded. The error quotes no part of it, since it may contain a key.

        """

    def place(self, raw: bytes) -> MessagePlace:
        """Return where in the stream a message is that could not be handled."""
