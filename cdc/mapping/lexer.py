"""Splits SQL into tokens, and scripts into statements, by the rules of psql's own lexer (``psqlscan.l``).

A semicolon ends a statement unless it is in a string, a quoted name, a comment, parentheses (as in a rule's
``DO ALSO (a; b)``) or the body ``BEGIN ATOMIC ... END`` of a function. Nothing is run or looked up here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["comment", "command", "text", "name", "word", "parameter", "number", "operator", "mark"]

_TOKEN: Final = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\* )
    | (?P<text>
          [eE]'(?:[^'\\]|''|\\.)* (?:'\s*\n\s*'(?:[^'\\]|''|\\.)*)* (?:'|\Z)
        | (?:[uU]&|[bBxXnN])? '(?:[^']|'')* (?:'|\Z)
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? (?:\$(?P=tag)\$|\Z)
      )
    | (?P<name> (?:[uU]&)? "(?:[^"]|"")* (?:"|\Z) )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<number> \$?\d[\w.]* )
    | (?P<command> \\[^\n]* )
    | (?P<parameter> (?<!\w)@[A-Za-z_]\w* )
    | (?P<mark> :: | [(),.;] )
    | (?P<operator> (?: (?!--|/\*) [-+*<>=~!@\#%^&|`?/] )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_ENDS: Final = re.compile(r"/\*|\*/")
_ESCAPED: Final = re.compile(r"\\(?:\+([0-9A-Fa-f]{6})|([0-9A-Fa-f]{4})|(\\))")
_BODY: Final = re.compile(r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\b")
_BODY_WORDS: Final = len(("CREATE", "OR", "REPLACE", "FUNCTION"))
_COPY: Final = re.compile(r"COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)
_DATA_ENDS: Final = re.compile(r"^\\\.\r?$\n?", re.MULTILINE)


class Lexeme(NamedTuple):
    """One token, and its place in the text."""

    kind: Kind
    """``text`` is a string constant, ``name`` a quoted name, ``word`` any other name or keyword,
    ``parameter`` sqlc's ``@x``, ``mark`` one of ``( ) , . ; ::``, and ``command`` a psql command.
    """
    text: str
    start: int
    end: int

    @property
    def stored(self) -> str | None:
        """The name as it is in the catalog; None if this token is not a name."""
        if self.kind == "word":
            return self.text.lower()
        return unquoted(self.text) if self.kind == "name" else None


class ScriptPart(NamedTuple):
    """A statement of a script, without comments and without its semicolon."""

    text: str
    data: str | None = None
    """The lines that follow a COPY ... FROM STDIN."""
    command: str | None = None
    """A psql command that takes the place of a statement; ``text`` is then empty."""


def tokens(text: str, start: int = 0) -> Iterator[Lexeme]:
    """Yield the tokens of SQL from a position on. A string or comment without an end extends to the end of
    the text.
    """
    while (found := _TOKEN.search(text, start)) is not None:
        kind: Kind = found.lastgroup  # type: ignore[assignment] # the pattern has these groups
        start = found.end()
        if found[0] == "/*":
            start = _comment_end(text, start)
        yield Lexeme(kind, text[found.start() : start], found.start(), start)


def unquoted(name: str) -> str:
    """Return a quoted name without its quotes, with its ``U&`` escapes decoded."""
    if name[0] == '"':
        return name[1:-1].replace('""', '"')
    return _ESCAPED.sub(
        lambda found: "\\" if found[3] else chr(int(found[1] or found[2], 16)),
        name[3:-1].replace('""', '"'),
    )


def script(text: str) -> Iterator[ScriptPart]:
    """Yield the statements and psql commands of a script, in their order."""
    start = 0
    while start < len(text):
        found, start = _statement(text, start)
        if found is not None:
            yield found


@dataclass
class _Nesting:
    """The parentheses and blocks that are open at a place in a statement."""

    parentheses: int = 0
    body: int = 0
    """Number of open blocks of a function's body. BEGIN and CASE open a block, and END closes one."""
    first_words: list[str] = field(default_factory=list)

    def take(self, token: Lexeme) -> None:
        """Step over a token."""
        if token.kind == "word":
            self._word(token.text.upper())
        elif token.text == "(":
            self.parentheses += 1
        elif token.text == ")":
            self.parentheses = max(0, self.parentheses - 1)

    def _word(self, word: str) -> None:
        if len(self.first_words) < _BODY_WORDS:
            self.first_words.append(word)
        if self.parentheses == 0 and _BODY.match(" ".join(self.first_words)):
            self.body += word == "BEGIN" or (word == "CASE" and self.body > 0)
            self.body -= word == "END" and self.body > 0


@dataclass
class _Copied:
    """The text of a statement without its comments, and without blanks at the ends of lines."""

    text: str
    last: int
    """The position in ``text`` up to which it is copied."""
    parts: list[str] = field(default_factory=list)
    plain: str = ""

    def step_over(self, token: Lexeme) -> None:
        """Leave out a token. A comment still separates the text before it from the text after it."""
        self.plain += self.text[self.last : token.start] + (" " if token.text.startswith("/*") else "")
        self.last = token.end

    def keep(self, token: Lexeme) -> None:
        """Copy a token unchanged."""
        self.parts += [self.upto(token.start), token.text]
        self.plain, self.last = "", token.end

    def upto(self, end: int) -> str:
        """Return the text between the last kept token and a position."""
        return re.sub(r"\s*\n", "\n", self.plain + self.text[self.last : end])

    def whole(self, end: int) -> str:
        """Return the statement, which ends at a position."""
        return "".join([*self.parts, self.upto(end)]).strip()


def _statement(text: str, start: int) -> tuple[ScriptPart | None, int]:
    """Return the statement that begins at a position, if any, and the position where the next one begins."""
    copied, nesting = _Copied(text, start), _Nesting()
    for token in tokens(text, start):
        nesting.take(token)
        if token.kind == "command":
            before = copied.whole(token.start)
            if not before or token.text.startswith("\\g"):  # \g and its variants run the statement so far
                return ScriptPart(before, command=token.text.rstrip()), token.end
        if token.kind in {"comment", "command"}:
            copied.step_over(token)
        elif token.kind in {"text", "name"}:
            copied.keep(token)
        elif token.text == ";" and nesting.parentheses == nesting.body == 0:
            return _with_data(text, copied.whole(token.start), token.end)
    return _with_data(text, copied.whole(len(text)), len(text))


def _with_data(text: str, statement: str, end: int) -> tuple[ScriptPart | None, int]:
    """Return a statement with the data that follows it, if any, and the position where the next one
    begins.
    """
    if not _COPY.match(statement):
        return ScriptPart(statement) if statement else None, end
    begins = text.find("\n", end) + 1 or len(text)
    ends = _DATA_ENDS.search(text, begins)
    data = text[begins : ends.start() if ends else len(text)]
    return ScriptPart(statement, data=data), ends.end() if ends else len(text)


def _comment_end(text: str, start: int) -> int:
    """Return the end of a comment, which may contain other comments."""
    depth = 1
    for found in _COMMENT_ENDS.finditer(text, start):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return len(text)
