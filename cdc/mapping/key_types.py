"""The types in which keys are compared. The slot sends keys as text, but the database does not compare all
types as text: comparisons of `character(10)` ignore trailing blanks, those of `citext` ignore case, and those
of `numeric` ignore the scale.

So the keys of a column are cast to the column's type. If the column has a collation in which different texts
can be equal, the keys get that collation as well. Then the keys find the same rows as the joins of the
mapping. Text types whose values are equal only if they are spelled alike need no cast.

A value that is longer than a message is never sent: the server sends the value's length instead. So a row
takes little memory here, however long its values are (`KeyType.sent`).

In memory, keys and ids are compared by their spelling. This is right for ids even if the database considers
two spellings equal, because a gateway knows an endpoint by the spelling of its id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.mapping.row_rule import CUT, MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_CAST: Final = "::"
_COLLATE: Final = " COLLATE "
_INEXACT_NUMBERS: Final = frozenset({"numeric", "real", "double precision"})
_EXACT: Final = frozenset(
    {"text", "character varying", "name", "uuid", "smallint", "integer", "bigint", "oid", "boolean", "bytea"}
)
_SENT_AS_TEXT: Final = frozenset(
    {"text", "character varying", "character", "bpchar", "name", "text[]", "character varying[]"}
)
_SENT_AS_IT_IS: Final = _SENT_AS_TEXT | {"smallint", "integer", "bigint", "boolean"}
_PLAIN: Final = frozenset({"text", "character varying"})
_PADDED: Final = frozenset({"character", "bpchar"})
_CUT: Final = CUT.decode()
_STORED: Final = MESSAGE_BYTES // 255
"""A text that takes at most this number of bytes in the table fits into a message: neither of Postgres'
compressions turns more than 255 bytes into one.
"""
_STORED_LIST: Final = _STORED // 16
"""The same for a list of texts, in which one byte can stand for eight NULLs."""
_BEGINNING: Final = 160
"""If an id is too long, this number of its characters is sent, for reports."""


@dataclass(frozen=True)
class KeyType:
    """The type of a column. If that is a domain, the domain's base type."""

    name: str
    """The name in SQL, quoted if necessary, with its length."""
    category: str
    """``pg_type.typcategory``: S for text, N for numbers, A for arrays, E for enums, ..."""
    exact: bool
    """Whether two values are equal only if they are spelled alike."""
    collation: str | None = None
    """The column's collation, quoted, if differently spelled texts can be equal in it."""
    limited: bool = False
    """Whether the column's length is limited, so that every value fits into a message."""
    computed: bool = False
    """Whether the column is an expression, which the server may compute each time that it is named."""

    @property
    def plain(self) -> bool:
        """Whether this is a text type whose values are compared by their spelling."""
        return self.exact and self._base in _PLAIN

    @property
    def sent_as_null(self) -> tuple[str, ...]:
        """The values that wal2json sends as null."""
        name, precision, _ = self.name.partition("(")
        if name not in _INEXACT_NUMBERS:
            return ()
        return ("NaN",) if precision else ("NaN", "Infinity", "-Infinity")

    @property
    def cast(self) -> str:
        """The cast that converts an expression to this type; empty for plain text."""
        if self.plain:
            return ""
        return f"{_CAST}{self.name}{_COLLATE}{self.collation}" if self.collation else f"{_CAST}{self.name}"

    def printed(self, expression: str) -> str:
        """Return SQL, in psycopg2's form, for the text that the server prints for an expression's value.

        A cast would lose the blanks of `character(10)`, and may call a function that a user has defined.
        """
        if self.plain:
            return expression
        if self.exact and self.name in _EXACT:
            return f"{expression}::TEXT"
        spelled = f"pg_catalog.format('%%s', {expression}) COLLATE \"C\""
        return f"CASE WHEN {expression} IS NOT NULL THEN {spelled} END"

    def sent(self, expression: str, *, as_text: bool = True) -> str:
        """Return SQL for an expression's value, in a type that the driver can always convert. If the value is
        longer than a message, the SQL yields `CUT` and the value's length.

        With ``as_text``, numbers and booleans become text too.
        """
        as_it_is = _SENT_AS_TEXT if as_text else _SENT_AS_IT_IS
        if self._base in as_it_is or self.category == "X":
            return self._cut(expression, expression)
        if self.category == "A":
            return self._cut(expression, f"{expression}::TEXT[]")
        if self.category in ("N", "B") and self.built_in:
            return f"{expression}::TEXT"
        return self._cut(expression, self.printed(expression))

    def named(self, expression: str) -> str:
        """Return SQL for an id as the server prints it. If the id is longer than a message, the SQL yields
        `CUT`, the id's length and its beginning.
        """
        printed = self.printed(expression)
        if not self.can_be_long:
            return printed
        instead = _instead(_length(printed), f", ' ', pg_catalog.left({printed}, {_BEGINNING})")
        return f"CASE WHEN {self.is_long(expression)} THEN {instead} ELSE {printed} END"

    @property
    def can_be_long(self) -> bool:
        """Whether a value may be longer than a message. A number has at most 150,000 digits."""
        if self.limited or self.category in ("E", "X"):
            return False
        return not (self.built_in and self.category in ("N", "B"))

    def is_long(self, expression: str) -> str:
        """Return SQL for whether an expression's value, as the server prints it, is longer than a message."""
        return self._is_long(expression, self.printed(expression))

    def _is_long(self, expression: str, text: str) -> str:
        long = f"{_length(text)} > {MESSAGE_BYTES}"
        if text != expression and self.category == "S":  # most values need not be printed twice
            return f"pg_catalog.pg_column_size({expression}) > {_STORED} AND {long}"
        return long

    def _cut(self, expression: str, sent: str) -> str:
        """Return the SQL ``sent``, changed to yield `CUT` and the length of a value longer than a message."""
        if not self.can_be_long:
            return sent
        if self.category == "A":
            length = _length(f"pg_catalog.array_to_string({sent}, ',', '-')")
            long = f"{length} > {MESSAGE_BYTES}"
            if sent == expression:
                long = f"pg_catalog.pg_column_size({expression}) > {_STORED_LIST} AND {long}"
            instead = f"ARRAY[{_instead(length)}]::{self.name if sent == expression else 'TEXT[]'}"
        else:
            long, instead = self._is_long(expression, sent), _instead(_length(sent))
            if sent == expression and self._base in _PADDED:  # as text, other values would lose their blanks
                instead += "::pg_catalog.bpchar"
        return f"CASE WHEN {long} THEN {instead} ELSE {sent} END"

    @property
    def _base(self) -> str:
        """The name without the length."""
        return self.name.partition("(")[0]

    @property
    def built_in(self) -> bool:
        """Whether the type is in ``pg_catalog``. The names of other types are qualified."""
        return "." not in self.name

    def kind(self, query: str) -> str:
        """Return the kind of keys of this type that a query takes; see `query_of`."""
        return query + self.cast


def _length(text: str) -> str:
    return f"pg_catalog.octet_length({text})"


def _instead(length: str, more: str = "") -> str:
    """Return SQL for `CUT`, a length, and the SQL ``more``. It stands for a value that is too long."""
    return f"pg_catalog.concat('{_CUT}', {length}{more})"


TEXT: Final = KeyType("text", "S", exact=True)
"""The type that a key is assumed to have until the catalog has been read."""
UNKNOWN: Final = KeyType("text", "S", exact=True, limited=True)
"""The type that a column is assumed to have until then. Its values are sent unchanged."""
NOTHING_KNOWN: Final[Mapping[str, KeyType]] = {}


def query_of(kind: str) -> str:
    """Return the name of the query that takes keys of a kind. It is the part of the kind before the cast."""
    return kind.partition(_CAST)[0]


def is_exact(kind: str) -> bool:
    """Return whether keys of a kind are equal only if they are spelled alike; False if that is unknown."""
    _, _, cast = kind.partition(_CAST)
    return not cast or cast.partition("(")[0] in _EXACT


def collation_of(kind: str) -> str | None:
    """Return the collation of a kind's keys; None if it has none of its own."""
    return kind.partition(_COLLATE)[2] or None


def parameter(kind: str) -> str:
    """Return the name of the parameter for a kind's keys. psycopg2 allows no parentheses in such names."""
    return kind.replace("(", "[").replace(")", "]")


def keys_of(kind: str) -> str:
    """Return SQL for a kind's keys: the kind's parameter, cast to an array of the type in which the keys are
    compared.
    """
    _, _, cast = kind.partition(_CAST)
    given = f"%({parameter(kind)})s::TEXT[]"
    if not cast:
        return given
    name, _, collation = cast.replace("%", "%%").partition(_COLLATE)
    return f"({given})::{name}[]" + (f"{_COLLATE}{collation}" if collation else "")


def literal(kind: str, key: str) -> str:
    r"""Return a key in a form that its type can read: wal2json leaves out the `\x` before a `bytea`."""
    if kind.endswith(f"{_CAST}bytea") and not key.startswith("\\x"):
        return f"\\x{key}"
    return key


def of_columns(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, str], KeyType]:
    """Return the types by table and column, from the rows of the query ``KeyColumns``."""
    return {(table, column): KeyType(*of_type) for table, column, *of_type in rows}
