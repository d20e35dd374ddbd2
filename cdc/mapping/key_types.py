"""The types in which keys are compared. Keys come out of the slot as text, but the database compares some
types in other ways: `character(10)` without trailing blanks, `citext` without case, `numeric` without its
scale.

So the keys of a column are cast to the column's type. If the column has a collation in which different texts
are equal, the keys get that collation as well. Then they find the same rows as the joins of the mapping.
Types of text whose values are equal only if they are spelled alike need no cast.

In memory, keys and ids are compared by their spelling. That is right for an id even if two spellings are
equal in the database, because a gateway knows an endpoint by its spelling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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


@dataclass(frozen=True)
class KeyType:
    """The type of a column; for a domain, its base type."""

    name: str
    """The name in SQL, quoted if necessary, with its length."""
    category: str
    """``pg_type.typcategory``: S for text, N for numbers, A for arrays, E for enums, ..."""
    exact: bool
    """Whether two values are equal only if they are spelled alike."""
    collation: str | None = None
    """The column's collation, quoted, if texts that are spelled differently are equal in it."""

    @property
    def plain(self) -> bool:
        """Whether it is text that is compared by its spelling."""
        return self.exact and self.name.partition("(")[0] in _PLAIN

    @property
    def sent_as_null(self) -> tuple[str, ...]:
        """The values for which wal2json sends null."""
        name, precision, _ = self.name.partition("(")
        if name not in _INEXACT_NUMBERS:
            return ()
        return ("NaN",) if precision else ("NaN", "Infinity", "-Infinity")

    @property
    def cast(self) -> str:
        """The cast that makes an expression this type; empty for plain text."""
        if self.plain:
            return ""
        return f"{_CAST}{self.name}{_COLLATE}{self.collation}" if self.collation else f"{_CAST}{self.name}"

    def printed(self, expression: str) -> str:
        """Return SQL for the text that the server prints for an expression's value, in psycopg2's form.

        A cast would lose the blanks of `character(10)`, and may call a function that a user has defined.
        """
        if self.plain:
            return expression
        if self.exact and self.name in _EXACT:
            return f"{expression}::TEXT"
        spelled = f"pg_catalog.format('%%s', {expression}) COLLATE \"C\""
        return f"CASE WHEN {expression} IS NOT NULL THEN {spelled} END"

    def sent(self, expression: str, *, as_text: bool = True) -> str:
        """Return SQL for an expression's value in a type that the driver cannot fail to convert.

        With ``as_text``, numbers and booleans become text too.
        """
        as_it_is = _SENT_AS_TEXT if as_text else _SENT_AS_IT_IS
        if self.name.partition("(")[0] in as_it_is or self.category == "X":
            return expression
        if self.category == "A":
            return f"{expression}::TEXT[]"
        if self.category in ("N", "B") and self.built_in:
            return f"{expression}::TEXT"
        return self.printed(expression)

    @property
    def built_in(self) -> bool:
        """Whether it is a type of ``pg_catalog``; the names of others are qualified."""
        return "." not in self.name

    def kind(self, query: str) -> str:
        """Return the kind of keys of this type that a query takes; see `query_of`."""
        return query + self.cast


TEXT: Final = KeyType("text", "S", exact=True)
"""The type that a key is assumed to have until the catalog has been read."""
NOTHING_KNOWN: Final[Mapping[str, KeyType]] = {}


def query_of(kind: str) -> str:
    """Return the name of the query that takes keys of a kind, which is the part before the cast."""
    return kind.partition(_CAST)[0]


def is_exact(kind: str) -> bool:
    """Return whether keys of a kind are equal only if they are spelled alike; False if that is unknown."""
    _, _, cast = kind.partition(_CAST)
    return not cast or cast.partition("(")[0] in _EXACT


def collation_of(kind: str) -> str | None:
    """Return the collation of a kind's keys; None if it has none of its own."""
    return kind.partition(_COLLATE)[2] or None


def parameter(kind: str) -> str:
    """Return the name of the parameter with a kind's keys. psycopg2 allows no parentheses in it."""
    return kind.replace("(", "[").replace(")", "]")


def keys_of(kind: str) -> str:
    """Return SQL for a kind's keys: its parameter, cast to an array of the type in which they are
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
