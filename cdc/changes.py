"""What a slot sends, as a closed set of small types: the edge at which a plugin's output becomes ours.

msgspec decodes wal2json's objects right into them: each one's tag is wal2json's ``action``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Value = str | int | float | bool | None
"""What a column can hold in JSON. Keys are strings or integers; the rest is never looked at."""

Action = Literal["insert", "update", "delete", "truncate"]


class Column(msgspec.Struct, frozen=True, gc=False):
    """A name and its value; unchanged TOASTed values are left out of a row by the plugin."""

    name: str
    value: Value = None


class Begin(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="B"):
    """A committed transaction starts; ``lsn`` and ``nextlsn`` are of its *commit* record and that record's
    end.
    """

    xid: int
    timestamp: str
    lsn: str
    nextlsn: str


class Commit(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="C"):
    """The transaction is whole; the same values as in its `Begin`."""

    xid: int
    timestamp: str
    lsn: str
    nextlsn: str


class Insert(msgspec.Struct, frozen=True, tag_field="action", tag="I"):
    """A new row."""

    schema: str
    table: str
    columns: tuple[Column, ...]


class Update(msgspec.Struct, frozen=True, tag_field="action", tag="U"):
    """A changed row; ``identity`` holds the replica identity's columns as they were before."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    identity: tuple[Column, ...]


class Delete(msgspec.Struct, frozen=True, tag_field="action", tag="D"):
    """A row that is gone, known by its replica identity."""

    schema: str
    table: str
    identity: tuple[Column, ...]


class Truncate(msgspec.Struct, frozen=True, tag_field="action", tag="T"):
    """A table that was emptied; a cascade sends one for each table."""

    schema: str
    table: str


class Note(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="M"):
    """``pg_logical_emit_message``: somebody else's business; may stand outside of a transaction."""


Row = Insert | Update | Delete | Truncate
Message = Begin | Commit | Insert | Update | Delete | Truncate | Note
