"""Adds the schema to the table names in a query, since our search path does not include the mapped tables.

Anyone who may create objects in a schema of the search path can make their own operator or function run in
place of a built-in one. For example, an ``=`` for two ``varchar`` in that schema is preferred to the built-in
one, which takes two ``text``. So our sessions search only ``pg_catalog``, and the names of a mapping's tables
have to be qualified.

If this module overlooks a name, the server finds no table of that name and reports an error. It never reads
another table instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.mapping.lexer import tokens as tokens_of
from cdc.mapping.sql_text import quote_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from cdc.mapping.lexer import Lexeme

_KINDS: Final = {"text", "name", "word", "mark"}
"""The tokens that matter here."""
_BEHIND_TABLES: Final = frozenset(
    {"WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "OFFSET", "FETCH", "FOR"}
    | {"UNION", "INTERSECT", "EXCEPT"}
)
"""Words that end a list of tables. They are all reserved, so no table has such a name."""


@dataclass
class _Level:
    """One level of parentheses."""

    select: bool = False
    """Whether a SELECT has been seen at this level, so that a FROM begins a list of tables. The FROM of
    ``extract(epoch FROM x)`` does not.
    """
    tables: bool = False
    """Whether the position is in a list of tables, where a table follows each comma."""
    table: bool = False
    """Whether the next token is a table, or opens a parenthesis around tables."""

    def keyword(self, word: str, *, compares: bool) -> bool:
        """Step over a word, in upper case. Return whether it is a keyword that matters here.

        ``compares`` says whether the word is the FROM of ``IS DISTINCT FROM``.
        """
        if word == "SELECT":
            self.select, self.tables, self.table = True, False, False
        elif word in _BEHIND_TABLES:
            self.tables = self.table = False
        elif word == "FROM" and self.select and not compares:
            self.tables = self.table = True
        elif word == "JOIN":
            self.table = self.tables
        elif word == "TABLE":
            self.table = True
        else:
            return self.table and word in {"ONLY", "LATERAL"}
        return True


def qualify(query: str, tables: Collection[str], schema: str) -> str:
    """Return a query in which the schema has been added before the names of these tables.

    ``tables`` are the names in the catalog. Columns, aliases and functions of the same names stay as they
    are, and so do qualified names.

    Raises:
        ValueError: a WITH gives the name of a table to something else.

    """
    tokens = [token for token in tokens_of(query) if token.kind in _KINDS]
    levels = [_Level()]
    qualified, last = "", 0
    for number, token in enumerate(tokens):
        level = levels[-1]
        match token.text:
            case "(":
                levels.append(_Level(tables=level.table, table=level.table))
                level.table = False
            case ")":
                levels = levels[:-1] or [_Level()]
            case ",":
                level.table = level.tables
        name, word = token.stored, token.text.upper() if token.kind == "word" else ""
        if name is None or level.keyword(word, compares=_is_comparison(tokens, number)):
            continue
        if name in tables and _is_defined(tokens, number):
            raise ValueError(f"WITH {token.text}: that is the name of a table, call it something else")
        if name in tables and level.table and not _follows(tokens, number, "(", "."):
            qualified += f"{query[last : token.start]}{quote_name(schema)}."
            last = token.start
        level.table = False
    return qualified + query[last:]


def calls(query: str) -> set[tuple[str, str]]:
    """Return the functions that a query calls, as pairs of schema and name as in the catalog."""
    tokens = [token for token in tokens_of(query) if token.kind != "comment"]
    return {
        (schema.stored, name.stored)
        for schema, dot, name, parenthesis in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False)
        if (dot.text, parenthesis.text) == (".", "(") and schema.stored and name.stored
    }


def _follows(tokens: list[Lexeme], number: int, *what: str) -> bool:
    """Return whether the next token is one of these words or marks."""
    return number + 1 < len(tokens) and tokens[number + 1].text.upper() in what


def _is_comparison(tokens: list[Lexeme], number: int) -> bool:
    """Return whether this FROM belongs to ``IS DISTINCT FROM``."""
    before = [token.text.upper() for token in tokens[max(0, number - 2) : number]]
    return before in (["IS", "DISTINCT"], ["NOT", "DISTINCT"])


def _is_defined(tokens: list[Lexeme], number: int) -> bool:
    """Return whether a WITH defines this name, as in ``name (columns) AS MATERIALIZED (``."""
    before = tokens[number - 1].text.upper() if number else ""
    if before not in {"WITH", "RECURSIVE", ","}:
        return False
    if _follows(tokens, number, "("):
        while not _follows(tokens, number, ")"):
            number += 1
            if number >= len(tokens):
                return False
        number += 1
    if not _follows(tokens, number, "AS"):
        return False
    number += 1
    while _follows(tokens, number, "NOT", "MATERIALIZED"):
        number += 1
    return _follows(tokens, number, "(")
