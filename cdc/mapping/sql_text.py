"""Reads .sql files as text: their named queries and parameters, and the tables and indexes that they create.
Nothing is executed. `cdc.mapping.lexer` finds the ends of strings, names and statements.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cdc.mapping.lexer import script, tokens, unquoted

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMED = re.compile(r"^[ \t]*--[ \t]*name[ \t]*:.*$", re.MULTILINE | re.IGNORECASE)
_NAME = re.compile(r"-- name: (\w+) :many[ \t\r]*")
_WORD_OR_QUOTED = r'(?:\w+|"(?:[^"]|"")+")'
_TABLE = re.compile(
    rf"CREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:{_WORD_OR_QUOTED}\s*\.\s*)?({_WORD_OR_QUOTED})\s*\(",
    re.IGNORECASE,
)
_KEY = re.compile(
    rf"ALTER\s+TABLE\s+(?:ONLY\s+)?(?:{_WORD_OR_QUOTED}\s*\.\s*)?({_WORD_OR_QUOTED})\s+"
    r"ADD\s+(CONSTRAINT\s.*)",
    re.IGNORECASE | re.DOTALL,
)
_INDEX = re.compile(
    r'CREATE\s+INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+(\w+)\s+ON\s+(?::"schema"\s*\.\s*)?(\w+)'
    r"\s*\(([\w\s,]+)\)\s*",
    re.IGNORECASE,
)
_KEY_OF_COLUMN = re.compile(r"\b(?:PRIMARY\s+KEY|UNIQUE)\b", re.IGNORECASE)
_KEY_OF_TABLE = re.compile(r"^(?:CONSTRAINT\s+\S+\s+)?(?:PRIMARY\s+KEY|UNIQUE)\s*\(([^)]*)\)", re.IGNORECASE)
_NO_COLUMN = frozenset({"constraint", "primary", "unique", "foreign", "check", "exclude", "like"})


def statements(text: str) -> list[str]:
    """Return a file's statements in order, without comments, semicolons, blank lines and psql commands."""
    return [one.text for one in script(text) if one.text]


def named_queries(text: str) -> dict[str, str]:
    """Return the queries of a file by the names in sqlc's ``-- name: X :many`` lines.

    Raises:
        ValueError: a name is given twice or is not followed by exactly one statement, or a statement has no
            name. The text says what to write, and where.

    """
    lines = [*_NAMED.finditer(text)]
    if statements(text[: lines[0].start() if lines else None]):
        raise ValueError("the first statement has no name: write a line `-- name: X :many` before it")
    queries: dict[str, str] = {}
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        named = _NAME.fullmatch(line[0])
        if named is None:
            raise ValueError(f"the line `{line[0].strip()}`: write it as `-- name: X :many`")
        name = named[1]
        if name in queries:
            raise ValueError(f"there are two queries {name}")
        found = statements(text[line.end() : following.start() if following else None])
        if len(found) > 1:
            raise ValueError(
                f"the statement after the query {name}, `{' '.join(found[1].split())[:40]}...`, has no name:"
                " write a line `-- name: X :many` before it"
            )
        if not found:
            raise ValueError(f"the query {name} has no statement")
        queries[name] = found[0]
    return queries


def parameters(query: str) -> set[str]:
    """Return the names of the ``@parameters`` of a query."""
    return {token.text[1:] for token in tokens(query) if token.kind == "parameter"}


def bind(query: str, name: str | None = None) -> str:
    """Return a query in psycopg2's form: ``@x`` becomes ``%(x)s`` or ``%(name)s``, and ``%`` is doubled.

    Execute it with a dict of parameters, which is empty if there are none.
    """
    bound, last = "", 0
    for token in tokens(query):
        if token.kind == "parameter":
            bound += query[last : token.start].replace("%", "%%") + f"%({name or token.text[1:]})s"
            last = token.end
    return bound + query[last:].replace("%", "%%")


def columns(query: str) -> tuple[str, ...]:
    """Return the names of the columns that a query returns. A name is the last word of an item, before any
    cast.

    A ``*`` is not expanded.
    """
    listing, cast, depth = False, False, 0
    names, words = list[str](), list[str]()
    for token in tokens(query):
        depth += (token.text == "(") - (token.text == ")")
        if depth or token.kind not in {"word", "name", "mark"}:
            continue
        keyword = token.text.upper() if token.kind == "word" else ""
        if not listing:
            listing = keyword == "SELECT"
        elif token.text == "," or (keyword == "FROM" and words[-1:] != ["distinct"]):
            names, words, cast = names + words[-1:], [], False
            if keyword:
                break
        else:
            cast = (cast or token.text == "::") and keyword != "AS"
            if not cast and token.stored is not None:
                words.append(token.stored)
    return (*names, *words[-1:])


def tables(schema: str) -> dict[str, frozenset[str]]:
    """Return the columns of each table that a schema creates, with their names in the catalog."""
    found: dict[str, frozenset[str]] = {}
    for table, definitions in _created(schema):
        first = (re.match(_WORD_OR_QUOTED, definition) for definition in definitions)
        found[table] = frozenset(stored(name[0]) for name in first if name) - _NO_COLUMN
    return found


def keys(schema: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield (table, columns) for each primary key and UNIQUE constraint of a schema's tables."""
    added = (_KEY.fullmatch(statement) for statement in statements(schema))
    of_tables = [*_created(schema), *((stored(one[1]), [one[2]]) for one in added if one)]
    for table, definitions in of_tables:
        for definition in definitions:
            listed = _KEY_OF_TABLE.search(definition)
            if listed:
                yield table, frozenset(stored(part.strip()) for part in listed[1].split(","))
            elif _KEY_OF_COLUMN.search(definition) and (column := re.match(_WORD_OR_QUOTED, definition)):
                yield table, frozenset({stored(column[0])})


def indexes(setup: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (name, table, columns) for each index that a ``setup.sql`` creates."""
    for statement in statements(setup):
        index = _INDEX.fullmatch(statement)
        if index:
            yield (
                index[1].lower(),
                index[2].lower(),
                tuple(part.strip().lower() for part in index[3].split(",")),
            )


def stored(name: str) -> str:
    """Return a name as it is in the catalog."""
    return unquoted(name) if name.startswith('"') else name.lower()


def quote_name(name: str) -> str:
    """Quote the name of a role, schema or table."""
    return '"' + name.replace('"', '""') + '"'


def _created(schema: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each table that a schema creates, with the items in its parentheses."""
    for statement in statements(schema):
        table = _TABLE.match(statement)
        if table:
            yield stored(table[1]), _listed(statement[table.end() :])


def _listed(text: str) -> list[str]:
    """Split at commas outside of inner parentheses, up to the parenthesis that closes the list."""
    parts, depth, last = list[str](), 0, 0
    for token in tokens(text):
        depth += (token.text == "(") - (token.text == ")")
        if depth < 0 or (token.text == "," and depth == 0):
            parts.append(text[last : token.start].strip())
            last = token.end
        if depth < 0:
            break
    return parts
