"""Output of wal2json, format version 2, turned into a closed set of small types.

One message is one JSON object; msgspec picks the type by ``action`` and skips what we do not need (xids and
LSNs on rows, types). An action that is not in the set is an error, not a shrug: a plugin that says something
new may be saying that rows changed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from cdc import lsn
from cdc.errors import MessageError

Value = str | int | float | bool | None
"""What a column can hold in JSON. Keys are strings or integers; the rest is never looked at."""

Action = Literal["insert", "update", "delete", "truncate"]

OPTIONS = {
    "format-version": "2",
    "include-xids": "1",
    "include-lsn": "1",
    "include-timestamp": "1",
    "include-types": "0",
}
"""What the stream is started with, beside ``add-tables``. Without types the output is 40 % smaller."""


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

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def parse(raw: bytes) -> Message:
    """Read one message.

    Raises:
        MessageError: with reason ``undecodable`` (not the JSON that we know) or ``unknown_action``. The text
            of the message is not in the error: it may hold an API key.

    """
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as error:
        # msgspec names the place ("... - at `$.action`") and, for a tag, its value, but no other content.
        if str(error).endswith("`$.action`"):
            raise MessageError(
                "unknown_action", "wal2json sent an action that is not in its format 2"
            ) from None
        raise MessageError("undecodable", "wal2json sent a message of an unexpected shape") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MessageError("undecodable", f"wal2json sent {len(raw)} bytes that are not JSON") from None


def commit_time(message: Begin | Commit) -> float:
    """Return the commit time as Unix seconds by the database's clock; 0.0 where it cannot be read."""
    try:
        return datetime.fromisoformat(message.timestamp).timestamp()
    except ValueError:
        return 0.0


def end_of(message: Begin | Commit) -> lsn.Lsn:
    """Return the end of the commit record: what is confirmed once the transaction is done.

    Raises:
        MessageError: it is not an LSN.

    """
    try:
        return lsn.parse(message.nextlsn)
    except ValueError:
        raise MessageError("undecodable", "wal2json sent a commit without a readable LSN") from None


def escape_table(schema: str, table: str) -> str:
    """Write a table for ``add-tables``: a backslash before what its parser takes for syntax.

    The list is case-sensitive, knows no quotes, and refuses unescaped white space; an empty list mutes
    everything.
    """
    return f"{_escape(schema)}.{_escape(table)}"


def _escape(name: str) -> str:
    return "".join(f"\\{char}" if char in " \t\n\r\f,.\\'*" else char for char in name)
