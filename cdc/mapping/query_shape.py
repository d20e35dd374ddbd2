"""Finds out, from the text of the query `Endpoints`, which of its tables can take endpoints away.

If a table only adds columns to endpoints (by a LEFT JOIN), a change of its rows removes no endpoint. If a
table is used in a WHERE or in an inner join, a change of its rows may remove endpoints. Such endpoints can be
found only by their ids, because no condition on the mapping's columns finds an endpoint that the mapping no
longer has.

The grammar is not parsed. A table whose use is not understood counts as one that can take endpoints away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cdc.mapping import lexer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_CLAUSES: Final = {"select", "from", "where", "group", "having", "order", "limit", "offset", "fetch", "for"}
_UNCLEAR: Final = {
    "with",
    "union",
    "intersect",
    "except",
    "having",
    "limit",
    "offset",
    "fetch",
    "right",
    "full",
    "natural",
    "distinct",
    "group",
    "window",
    "tablesample",
}
"""Words at the top of a query whose effect on its rows is not analyzed."""
_JOINS: Final = {"join", "inner", "left", "outer", "cross", "on", "using", "as", "only", "lateral"}


@dataclass
class _Item:
    """An item of the FROM clause: a table, or an expression in parentheses."""

    outer: bool
    """Whether it is joined by a LEFT JOIN, so that its rows only add columns."""
    tables: set[str] = field(default_factory=set)
    condition: list[tuple[str, ...]] = field(default_factory=list)
    """The names in its ON condition."""


def takes_away(query: str, columns: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Return the tables whose rows can remove rows from the result of a query.

    ``columns`` has the columns of each table to look for.
    """
    tokens = list(_tokens(query))
    if any(depth == 0 and len(name) == 1 and name[0] in _UNCLEAR for depth, name in tokens):
        return frozenset(columns)
    items, where, aliases = _clauses(tokens, columns)
    removing: set[str] = set()
    for item in items:
        if not item.outer:
            removing |= item.tables
            removing |= _named(item.condition, columns, aliases)
    return frozenset(removing | _named(where, columns, aliases))


def uses(query: str, table: str, column: str, columns: Mapping[str, Iterable[str]]) -> bool:
    """Return whether a query names a column of a table, anywhere in it."""
    tokens = list(_tokens(query))
    _, _, aliases = _clauses(tokens, columns)
    everywhere = {**aliases, **_aliases(tokens, columns)}
    return any(
        name[-1] == column and (len(name) == 1 or table in everywhere.get(name[-2], {name[-2]}))
        for _, name in tokens
    )


def _tokens(query: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each name, as its stored parts, and each comma, with the depth of the parentheses around it."""
    found = [token for token in lexer.tokens(query) if token.kind in {"name", "word", "mark", "operator"}]
    depth = at = 0
    while at < len(found):
        token = found[at]
        at += 1
        if token.text == "(":
            depth += 1
        if token.text in {"(", ")", ","}:
            yield depth, (token.text,)
        if token.text == ")":
            depth -= 1
        if token.stored is not None:
            parts = [token.stored]
            while found[at : at + 1] and found[at].text == "." and (part := _part(found[at + 1 : at + 2])):
                parts.append(part)
                at += 2
            yield depth, tuple(parts)


def _part(following: list[lexer.Lexeme]) -> str | None:
    """Return the name, or the ``*``, that follows a dot; None if something else follows."""
    return next(("*" if token.text == "*" else token.stored for token in following), None)


def _clauses(
    tokens: list[tuple[int, tuple[str, ...]]], columns: Mapping[str, Iterable[str]]
) -> tuple[list[_Item], list[tuple[str, ...]], dict[str, set[str]]]:
    """Return the items of the top FROM, the names in its WHERE, and the tables of each alias."""
    clause, in_from, where = "", list[tuple[str, tuple[str, ...]]](), list[tuple[str, ...]]()
    for depth, name in tokens:
        word = name[0] if len(name) == 1 and depth == 0 else ""
        if word in _CLAUSES:
            clause = word
        if clause == "where":
            where.append(name)
        elif clause == "from":
            in_from.append((word, name))
    return _items(in_from, columns), where, _aliases(tokens, columns)


def _items(
    in_from: Iterable[tuple[str, tuple[str, ...]]], columns: Mapping[str, Iterable[str]]
) -> list[_Item]:
    """Return the items of a FROM clause.

    ``in_from`` has a pair (word, name) for each name in the clause. If the name is unqualified and outside of
    parentheses, ``word`` is the same name as a keyword; otherwise it is empty.
    """
    items, outer, conditional = list[_Item](), False, False
    for word, name in in_from:
        if word in {"from", "join", ","}:
            items.append(_Item(outer=outer and word == "join"))
            outer = conditional = False
        elif word in {"left", "on", "using"}:
            outer, conditional = word == "left", word != "left"
        elif conditional:
            items[-1].condition.append(name)
        elif name[-1] in columns:
            items[-1].tables.add(name[-1])
    return items


def _aliases(
    tokens: list[tuple[int, tuple[str, ...]]], columns: Mapping[str, Iterable[str]]
) -> dict[str, set[str]]:
    """Return the tables that each name in a query may stand for. The name may be the table's own name, or its
    alias in ``table [AS] alias``.
    """
    found = {table: {table} for table in columns}
    for at, (_, name) in enumerate(tokens):
        if name[-1] in columns:
            following = [one for _, one in tokens[at + 1 : at + 3]]
            if following[:1] == [("as",)]:
                following = following[1:]
            if following and len(following[0]) == 1:
                alias = following[0][0]
                if alias not in _CLAUSES | _JOINS | _UNCLEAR and alias.isidentifier():
                    found.setdefault(alias, set()).add(name[-1])
    return found


def _named(
    names: Iterable[tuple[str, ...]], columns: Mapping[str, Iterable[str]], aliases: Mapping[str, set[str]]
) -> set[str]:
    """Return the tables that these names may refer to. An unqualified column may belong to any table that has
    a column of that name.
    """
    found: set[str] = set()
    for name in names:
        if len(name) > 1:
            found |= aliases.get(name[-2], set())
        elif name[0] in columns:
            found.add(name[0])
        else:
            found |= {table for table, of_table in columns.items() if name[0] in of_table}
    return found
