"""SQL as text: named queries, single statements and parameters, read out of .sql files without running them.

Only as much of SQL's grammar is known as it takes not to be fooled by a semicolon or an at sign inside a
string, a quoted name or a comment. Backslash escapes (``E'...'``) are not: write ``''`` for a quote.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<quoted> '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$ .*? \$(?P=tag)\$ )
    | (?P<end> ; )
    | (?<![\w<>@!~&|\#*/+=%^?-]) @(?P<parameter>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(
    r"""
      (?P<text> '(?:[^']|'')*' | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$ .*? \$(?P=tag)\$ )
    | (?P<word> "(?:[^"]|"")+" | [^\W\d]\w* )
    | (?P<mark> [(),] | :: )
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r"^-- name: (\w+) :many[ \t]*$", re.MULTILINE)
_TABLE = re.compile(
    r"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)\s*\((.*)\)", re.IGNORECASE | re.DOTALL
)
_NO_COLUMN = frozenset({"constraint", "primary", "unique", "foreign", "check", "exclude", "like"})


def statements(text: str) -> list[str]:
    """Return the statements of a file in order, without comments, semicolons and blank lines."""
    found, current, last = [], "", 0
    for token in _TOKEN.finditer(text):
        if token["comment"] or token["end"]:
            current += text[last : token.start()]
            last = token.end()
        if token["end"]:
            found.append(current)
            current = ""
    found.append(current + text[last:])
    tidy = ("\n".join(line.rstrip() for line in one.splitlines() if line.strip()).strip() for one in found)
    return [one for one in tidy if one]


def named_queries(text: str) -> dict[str, str]:
    """Return the queries of a file by the names in sqlc's ``-- name: X :many`` lines.

    Raises:
        ValueError: a name is given twice, or does not stand before exactly one statement.

    """
    _, *parts = _NAME.split(text)
    queries: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in queries:
            raise ValueError(f"the query {name} is there twice")
        found = statements(body)
        if len(found) != 1:
            raise ValueError(f"the query {name} has {len(found)} statements instead of one")
        queries[name] = found[0]
    return queries


def parameters(query: str) -> set[str]:
    """Return the names of the ``@parameters`` of a query."""
    return {token["parameter"] for token in _TOKEN.finditer(query) if token["parameter"]}


def bind(query: str, name: str | None = None) -> str:
    """Write a query the way psycopg2 reads it: ``@x`` as ``%(x)s`` or ``%(name)s``, any other ``%`` doubled.

    It is to be executed with a dict of parameters, an empty one if there are none.
    """
    bound, last = "", 0
    for token in _TOKEN.finditer(query):
        if token["parameter"]:
            bound += query[last : token.start()].replace("%", "%%") + f"%({name or token['parameter']})s"
            last = token.end()
    return bound + query[last:].replace("%", "%%")


def columns(query: str) -> tuple[str, ...]:
    """Return the names of the columns in a query's list: the last word of each, or the last before a cast.

    What ``*`` stands for is not known here.
    """
    listing, cast, depth = False, False, 0
    names, words = list[str](), list[str]()
    for token in _WORD.finditer(query):
        word, mark = token["word"] or "", token["mark"]
        depth += (mark == "(") - (mark == ")")
        if depth or mark == ")" or token["text"]:
            continue
        keyword = word.upper()
        if not listing:
            listing = keyword == "SELECT"
        elif mark == "," or (keyword == "FROM" and words[-1:] != ["distinct"]):
            names, words, cast = names + words[-1:], [], False
            if keyword:
                break
        else:
            cast = (cast or mark == "::") and keyword != "AS"
            if not cast:
                words.append(word[1:-1].replace('""', '"') if word.startswith('"') else word.lower())
    return (*names, *words[-1:])


def tables(schema: str) -> dict[str, frozenset[str]]:
    """Return the columns of each table that a schema creates: names as they are stored, in lower case."""
    found: dict[str, frozenset[str]] = {}
    for statement in statements(schema):
        table = _TABLE.match(statement)
        if table:
            words = (part.split() for part in _split_columns(table[2]))
            names = (of_column[0].strip('"').lower() for of_column in words if of_column)
            found[table[1].lower()] = frozenset(names) - _NO_COLUMN
    return found


def quote_name(name: str) -> str:
    """Quote the name of a role, schema or table."""
    return '"' + name.replace('"', '""') + '"'


def _split_columns(body: str) -> list[str]:
    """Split at commas that are in no parentheses."""
    parts, depth = [""], 0
    for character in body:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
