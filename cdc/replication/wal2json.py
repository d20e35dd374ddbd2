"""Decodes the output of wal2json, format version 2, into the closed set of types in `cdc.changes`.

One message is one JSON object. msgspec picks the type by ``action`` and skips the fields that we do not need
(xids and LSNs on rows, types). An unknown action is an error and is not ignored: it might mean that rows have
changed.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from cdc import lsn
from cdc.changes import Begin, Column, Commit, Delete, Insert, Message, MessagePlace, Note, Truncate, Update
from cdc.errors import MessageError
from cdc.units import Xid  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdc.changes import Value
    from cdc.postgres.encoding import Encoding

NAME: Final = "wal2json"

OPTIONS: Final = {
    "format-version": "2",
    "include-xids": "1",
    "include-lsn": "1",
    "include-timestamp": "1",
    "include-types": "0",
}
"""The options of a stream, in addition to ``add-tables``. Without types the output is 40 % smaller."""

_COMMIT: Final = b'{"action":"C"'
_WITHIN: Final = tuple(b'{"action":"%c"' % action for action in b"BIUDT")


class _Begin(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="B"):
    """``lsn`` is the position of the transaction's *commit* record, ``nextlsn`` the end of that record."""

    xid: Xid
    timestamp: str
    lsn: str
    nextlsn: str


class _Commit(msgspec.Struct, frozen=True, gc=False, tag_field="action", tag="C"):
    """The same values as in the transaction's `_Begin`."""

    xid: Xid
    timestamp: str
    lsn: str
    nextlsn: str


_Row = Insert | Update | Delete | Truncate | Note
_Said = _Begin | _Commit | _Row
_decoder: msgspec.json.Decoder[_Said] = msgspec.json.Decoder(_Said, float_hook=str)


class Wal2JsonDecoder:
    """Decodes a stream. It has no state, since each row names its table and its columns."""

    def __init__(self, encoding: Encoding | None = None) -> None:
        """``encoding`` is the database's encoding, in which the plugin writes. The default is UTF-8."""
        self._encoding = None if encoding is None or encoding.utf8 else encoding

    def decode(self, raw: bytes) -> Sequence[Message]:
        """Decode a message; see `parse`."""
        if self._encoding is None or raw.isascii():
            return (parse(raw),)
        # msgspec decodes only UTF-8, so each byte first becomes one character. The JSON stays intact: in
        # every server encoding, the bytes of multibyte characters differ from those of JSON's syntax. Then
        # each text is decoded separately, because some of them may be invalid.
        message = parse(raw.decode("latin-1").encode())
        return (message if isinstance(message, Begin | Commit) else _decoded(message, self._encoding),)

    def place(self, raw: bytes) -> MessagePlace:
        """Return where in the stream a message of this kind is. Its first bytes show its kind."""
        if raw.startswith(_COMMIT):
            return MessagePlace.END
        return MessagePlace.WITHIN if raw.startswith(_WITHIN) else MessagePlace.ANYWHERE


def parse(raw: bytes) -> Message:
    """Read one message.

    Raises:
        MessageError: with reason ``undecodable`` (not the expected JSON) or ``unknown_action``. The error
            does not quote the message, which may contain an API key.

    """
    try:
        said = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        # msgspec names the place ("... - at `$.action`") and, for a tag, its value, but no other content.
        if str(error).endswith("`$.action`"):
            raise MessageError(
                "unknown_action", "wal2json sent an action that is not in its format 2"
            ) from None
        raise MessageError("undecodable", "wal2json sent a message of an unexpected shape") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MessageError("undecodable", f"wal2json sent {len(raw)} bytes that are not JSON") from None
    if isinstance(said, _Begin):
        return Begin(said.xid, _end(said), _seconds(said))
    if isinstance(said, _Commit):
        return Commit(said.xid, _end(said), _seconds(said))
    return said


def _decoded(message: _Row, encoding: Encoding) -> _Row:
    """Return a message whose texts are decoded from the database's encoding. In ``message``, each character
    stands for one byte.
    """

    def text(value: Value) -> Value:
        if isinstance(value, str) and not value.isascii():
            return encoding.key(value.encode("latin-1"))
        return value

    def columns(row: Iterable[Column]) -> tuple[Column, ...]:
        return tuple(Column(text(column.name), text(column.value)) for column in row)

    match message:
        case Note():
            return message
        case Insert(schema, table, row):
            return Insert(text(schema), text(table), columns(row))
        case Update(schema, table, row, identity):
            return Update(text(schema), text(table), columns(row), columns(identity))
        case Delete(schema, table, identity):
            return Delete(text(schema), text(table), columns(identity))
        case Truncate(schema, table):
            return Truncate(text(schema), text(table))


def _seconds(said: _Begin | _Commit) -> float:
    try:
        return datetime.fromisoformat(said.timestamp).timestamp()
    except ValueError:
        return 0.0


def _end(said: _Begin | _Commit) -> lsn.Lsn:
    try:
        return lsn.parse(said.nextlsn)
    except ValueError:
        raise MessageError("undecodable", "wal2json sent a commit without a readable LSN") from None


def options(tables: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the options of a stream of these tables, each given as (schema, table)."""
    return {
        **OPTIONS,
        "add-tables": ",".join(escape_table(*table) for table in tables),
        "add-msg-prefixes": _unguessable(),
    }


def _unguessable() -> str:
    """Return a random prefix for ``add-msg-prefixes``. No logical message has it, so none is sent.

    Any role may call pg_logical_emit_message(). The plugin cannot write a message of 200 MB, so such a
    message would end every stream.
    """
    return f"pads_cdc_{secrets.token_hex(16)}"


def escape_table(schema: str, table: str) -> str:
    """Return a table's name in the form that ``add-tables`` needs: with a backslash before each special
    character.

    The list is case-sensitive, has no quotes, and allows no unescaped white space. With an empty list the
    plugin sends no rows at all.
    """
    return f"{_escape(schema)}.{_escape(table)}"


def _escape(name: str) -> str:
    return "".join(f"\\{char}" if char in " \t\n\r\f,.\\'*" else char for char in name)
