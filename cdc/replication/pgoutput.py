"""Decodes the output of pgoutput, protocol version 1, into the closed set of types in `cdc.changes`.

The format is binary: the first byte is the kind of the message, numbers are big-endian, and names end with a
zero byte (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html). A relation is
described before its first row and again when it has changed. Rows refer to it by its OID, and to columns by
position. A kind of message that is not in the protocol is an error, and is not ignored.

Values are text in the database's own encoding, because the session asks for no conversion
(``client_encoding`` SQL_ASCII). With a conversion, the server would end the stream at a value that has no
equivalent in UTF-8.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec

from cdc.changes import (
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    MessagePlace,
    Note,
    Truncate,
    Update,
)
from cdc.errors import MessageError
from cdc.postgres.encoding import Encoding
from cdc.units import Xid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cdc.changes import Value

NAME: Final = "pgoutput"

_BEGIN: Final = Struct(">xQqI")
_COMMIT: Final = Struct(">xBQQq")
_TRUNCATE: Final = Struct(">xIB")
_OID: Final = Struct(">I")
_COUNT: Final = Struct(">H")
_COLUMN: Final = Struct(">Ii")
"""A column's type and its modifier."""

_BY_COMMIT, _BY_ROW = b"C", b"BRYOIUDT"
_ROWS: Final = b"IUD"
_INSERT, _, _DELETE = _ROWS
_NEW, _OLD_KEY, _OLD_ROW = b"NKO"
_TEXT, _NULL = b"tn"
_NO_VALUE: Final = b"nu"
"""NULL, or a TOASTed value that has not changed."""

_UTF8: Final = Encoding.named("UTF8")

_EPOCH: Final = 946_684_800
"""The start of Postgres' time, 2000-01-01, in Unix seconds."""
_MICROSECONDS: Final = 1_000_000


def _is_true(text: str) -> bool:
    return text == "t"


_NO_KEYS: Final[dict[int, Callable[[str], Value]]] = {16: _is_true}
"""Conversions by type OID, for columns that are not keys. The text of a boolean becomes a boolean, as
wal2json sends it.
"""


def options(publication: str) -> dict[str, str]:
    """Return the options of a stream. They do not request logical messages, which could fill the memory."""
    quoted = publication.replace('"', '""')
    return {"proto_version": "1", "publication_names": f'"{quoted}"'}


class _Relation(msgspec.Struct, frozen=True):
    """A table as the plugin last described it."""

    schema: str
    table: str
    columns: tuple[str | None, ...]
    """The columns by position; None for those that are not needed."""
    identity: frozenset[str]
    """The needed columns that are in the replica identity."""
    all_identity: bool
    """Whether every column is needed and in the identity, as in most publications that `setup` makes."""
    no_keys: dict[str, Callable[[str], Value]]
    """The conversions of `_NO_KEYS` by column, for the columns that have one."""

    def identity_of(self, columns: tuple[Column, ...]) -> tuple[Column, ...]:
        """Return the columns that are in the replica identity."""
        if self.all_identity:
            return columns
        return tuple([column for column in columns if column.name in self.identity])


class PgoutputDecoder:
    """Decodes one stream. Rows of tables outside of the mapping take hardly any time."""

    def __init__(
        self,
        wanted: Mapping[tuple[str, str], Collection[str]] | None = None,
        encoding: Encoding = _UTF8,
    ) -> None:
        """``wanted`` contains the needed columns by (schema, table); None means all columns of all tables.
        ``encoding`` is the database's encoding.
        """
        self._wanted = wanted
        self._encoding = encoding
        self._text = bytes.decode if encoding.utf8 else encoding.key
        self._relations: dict[bytes, _Relation | None] = {}
        """The tables by OID, as the stream has described them; None for a table outside of the mapping."""

    def decode(self, raw: bytes) -> Sequence[Message]:
        """Decode a message.

        Raises:
            MessageError: with reason ``undecodable`` or ``unknown_action``.

        """
        # The errors are raised without a cause, which might quote the message. UnicodeDecodeError is a
        # ValueError.
        try:
            if raw[0] not in _ROWS:
                return self._no_row(raw)
            relation = self._relations[raw[1:5]]  # nearly all messages of a backlog are rows
            return () if relation is None else (self._row(raw, relation),)
        except KeyError:
            raise MessageError("undecodable", "pgoutput named a table that it has not described") from None
        except (struct.error, IndexError, ValueError):
            text = f"pgoutput sent {len(raw)} bytes that are not in its format"
            raise MessageError("undecodable", text) from None

    def place(self, raw: bytes) -> MessagePlace:
        """Return where in the stream a message of this kind is."""
        kind = raw[:1]
        if kind == _BY_COMMIT:
            return MessagePlace.END
        return MessagePlace.WITHIN if kind and kind in _BY_ROW else MessagePlace.ANYWHERE

    def _no_row(self, raw: bytes) -> Sequence[Message]:
        match raw[:1]:
            case b"B":
                commit, at, xid = _BEGIN.unpack(raw)
                # The end of the commit record is not known yet. A server reads a whole record at once, so a
                # position beyond its first byte stands for a position beyond the record.
                return (Begin(xid, commit + 1, _seconds(at)),)
            case b"C":
                _, _, end, at = _COMMIT.unpack(raw)
                return (Commit(Xid(0), end, _seconds(at)),)
            case b"R":
                self._describe(raw)
                return ()
            case b"T":
                return self._truncated(raw)
            case b"M":
                return (Note(),)
            case b"Y" | b"O":  # a type, and a replication origin
                return ()
            case _:
                raise MessageError("unknown_action", "pgoutput sent a message that is not in its protocol 1")

    def _row(self, raw: bytes, relation: _Relation) -> Message:
        kind, which, at = raw[0], raw[5], 6
        before: tuple[Column, ...] | None = None
        if kind != _INSERT and which in (_OLD_KEY, _OLD_ROW):
            before, at = self._values(raw, at, relation, old_key=which == _OLD_KEY)
            if kind == _DELETE:
                _ends(raw, at)
                return Delete(relation.schema, relation.table, relation.identity_of(before))
            at, which = at + 1, raw[at]
        if which != _NEW or kind == _DELETE:
            raise ValueError
        columns, at = self._values(raw, at, relation)
        _ends(raw, at)
        if kind == _INSERT:
            return Insert(relation.schema, relation.table, columns)
        # If the message has no old row, the identity has not changed.
        identity = relation.identity_of(columns if before is None else before)
        return Update(relation.schema, relation.table, columns, identity)

    def _values(
        self, raw: bytes, at: int, relation: _Relation, *, old_key: bool = False
    ) -> tuple[tuple[Column, ...], int]:
        """Read a row from offset ``at`` on. Return its needed columns, and the offset after the row.

        TOASTed values that have not changed are left out. In an ``old_key``, NULL stands for a column outside
        of the replica identity and is left out too; the identity itself has no NULL.
        """
        text = self._text
        if _COUNT.unpack_from(raw, at)[0] != len(relation.columns):
            raise ValueError
        at += 2
        found: list[Column] = []
        for name in relation.columns:
            kind = raw[at]
            if kind == _TEXT:
                start = at + 5
                at = start + _OID.unpack_from(raw, at + 1)[0]
                if name is not None:
                    found.append(Column(name, text(raw[start:at])))
            else:
                if kind not in _NO_VALUE:  # binary values were not asked for
                    raise ValueError
                at += 1
                if name is not None and kind == _NULL and not old_key:
                    found.append(Column(name))
        if relation.no_keys:
            found = [_converted(column, relation.no_keys.get(column.name)) for column in found]
        return tuple(found), at

    def _describe(self, raw: bytes) -> None:
        oid = raw[1:5]
        self._relations.pop(oid, None)  # the old description is invalid even if this one cannot be decoded
        schema, at = self._name(raw, 5)
        table, at = self._name(raw, at)
        (count,) = _COUNT.unpack_from(raw, at + 1)  # before it, the kind of the identity
        at += 3
        schema = schema or "pg_catalog"
        if self._wanted is not None and (schema, table) not in self._wanted:
            self._relations[oid] = None
            return
        wanted = None if self._wanted is None else self._wanted[schema, table]
        columns: list[str | None] = []
        identity, no_keys = set(), {}
        for _ in range(count):
            in_identity = raw[at] & 1
            name, at = self._name(raw, at + 1)
            type_oid, _modifier = _COLUMN.unpack_from(raw, at)
            at += _COLUMN.size
            if wanted is not None and name not in wanted:
                columns.append(None)
                continue
            columns.append(name)
            if in_identity:
                identity.add(name)
            if type_oid in _NO_KEYS:
                no_keys[name] = _NO_KEYS[type_oid]
        _ends(raw, at)
        self._relations[oid] = _Relation(
            schema,
            table,
            tuple(columns),
            frozenset(identity),
            identity.issuperset(name for name in columns if name is not None),
            no_keys,
        )

    def _truncated(self, raw: bytes) -> Sequence[Message]:
        count, _ = _TRUNCATE.unpack_from(raw)
        _ends(raw, _TRUNCATE.size + count * _OID.size)
        oids = [raw[at : at + _OID.size] for at in range(_TRUNCATE.size, len(raw), _OID.size)]
        relations = [self._relations[oid] for oid in oids]
        return [Truncate(one.schema, one.table) for one in relations if one is not None]

    def _name(self, raw: bytes, at: int) -> tuple[str, int]:
        """Read a name. Return it with the offset after it.

        A name that is not valid text is not an error. It differs from every name in the mapping.
        """
        end = raw.index(0, at)
        return self._encoding.key(raw[at:end]), end + 1


def _converted(column: Column, convert: Callable[[str], Value] | None) -> Column:
    if convert is None or not isinstance(column.value, str):
        return column
    return Column(column.name, convert(column.value))


def _ends(raw: bytes, at: int) -> None:
    if at != len(raw):
        raise ValueError


def _seconds(microseconds: int) -> float:
    return _EPOCH + microseconds / _MICROSECONDS
