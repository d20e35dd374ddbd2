"""What keys are compared as. They come out of the slot as text, and the database has its own ways to compare:
`character(10)` without trailing blanks, `citext` without case, `numeric` without its scale.

So the keys of a column are cast to that column's own type, and a column with a collation in which different
texts are equal brings that along: then they find what the joins of the mapping find. Text that is equal only
if it is spelled alike needs nothing of this, and its statements are as they stand in the mapping.

In memory, keys and ids are compared as they are spelled. That is right for an id even where two spellings are
equal in the database: a gateway knows an endpoint by its spelling.
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
    """A column's type, that of a domain being what it is made of."""

    name: str
    """As SQL writes it, quoted where it has to be, with its length."""
    category: str
    """``pg_type.typcategory``: S for text, N for numbers, A for arrays, E for enums, ..."""
    exact: bool
    """Two values are equal only if they are spelled alike."""
    collation: str | None = None
    """One in which texts are equal that are not spelled alike; quoted."""
    not_null: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is nothing but text."""
        return self.exact and self.name.partition("(")[0] in _PLAIN

    @property
    def hides_nan(self) -> bool:
        """Whether null, which wal2json says for NaN and Infinity, can be nothing else."""
        return self.not_null and self.name.partition("(")[0] in _INEXACT_NUMBERS

    @property
    def cast(self) -> str:
        """The cast behind an expression that is compared as this type; empty for plain text."""
        if self.plain:
            return ""
        return f"{_CAST}{self.name}{_COLLATE}{self.collation}" if self.collation else f"{_CAST}{self.name}"

    def printed(self, expression: str) -> str:
        """Return the SQL of an expression as text, as the server prints its values, in psycopg2's form.

        A cast would lose the blanks of `character(10)`, and may be a function of somebody's own.
        """
        if self.plain:
            return expression
        if self.exact and self.name in _EXACT:
            return f"{expression}::TEXT"
        spelled = f"pg_catalog.format('%%s', {expression}) COLLATE \"C\""
        return f"CASE WHEN {expression} IS NOT NULL THEN {spelled} END"

    def sent(self, expression: str, *, as_text: bool = True) -> str:
        """Return the SQL of an expression so that the driver has no conversion for it which can fail; with
        ``as_text``, numbers and booleans come as text, too.
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
        """Whether every server has it: other names have their schema before them."""
        return "." not in self.name

    def kind(self, query: str) -> str:
        """Return the kind of keys of this type that a query takes; see `query_of`."""
        return query + self.cast


TEXT: Final = KeyType("text", "S", exact=True)
"""The type that a key is assumed to have until the catalog has been read."""
NOTHING_KNOWN: Final[Mapping[str, KeyType]] = {}


def query_of(kind: str) -> str:
    """Return the name of the query that takes keys of a kind: what stands before the cast."""
    return kind.partition(_CAST)[0]


def is_exact(kind: str) -> bool:
    """Tell whether keys of a kind are equal only if they are spelled alike; False where that is not known."""
    _, _, cast = kind.partition(_CAST)
    return not cast or cast.partition("(")[0] in _EXACT


def collation_of(kind: str) -> str | None:
    """Return the collation that keys of a kind bring along, if any."""
    return kind.partition(_COLLATE)[2] or None


def parameter(kind: str) -> str:
    """Return the name under which psycopg2 takes a kind's keys: it would take a parenthesis for the end."""
    return kind.replace("(", "[").replace(")", "]")


def keys_of(kind: str) -> str:
    """Return the SQL of a kind's keys: its parameter, cast to an array of what they are compared as."""
    _, _, cast = kind.partition(_CAST)
    given = f"%({parameter(kind)})s::TEXT[]"
    if not cast:
        return given
    name, _, collation = cast.replace("%", "%%").partition(_COLLATE)
    return f"({given})::{name}[]" + (f"{_COLLATE}{collation}" if collation else "")


def literal(kind: str, key: str) -> str:
    """Return a key as its type reads it: wal2json leaves out how `bytea` begins."""
    if kind.endswith(f"{_CAST}bytea") and not key.startswith("\\x"):
        return f"\\x{key}"
    return key


def of_columns(rows: Iterable[Sequence[Any]]) -> dict[tuple[str, str], KeyType]:
    """Read rows of the query ``KeyColumns``: the types by table and column."""
    return {(table, column): KeyType(*of_type) for table, column, *of_type in rows}
