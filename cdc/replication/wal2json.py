"""Output of wal2json, format version 2, turned into the closed set of `cdc.changes`.

One message is one JSON object; msgspec picks the type by ``action`` and skips what we do not need (xids and
LSNs on rows, types). An action that is not in the set is an error, not a shrug: a plugin that says something
new may be saying that rows changed.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from cdc import lsn
from cdc.changes import Begin, Commit, Message
from cdc.errors import MessageError

OPTIONS = {
    "format-version": "2",
    "include-xids": "1",
    "include-lsn": "1",
    "include-timestamp": "1",
    "include-types": "0",
}
"""What the stream is started with, beside ``add-tables``. Without types the output is 40 % smaller."""


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
