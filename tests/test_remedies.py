"""Everything that a message tells people to type is in tests/remedies.toml, with the test that types it."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import TYPE_CHECKING

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDERS = ("cdc", "server", "authz", "client")
STATEMENT = re.compile(
    r"\b(?:ALTER|CREATE|DROP|GRANT|REVOKE|ROLLBACK|SELECT|SHOW)\b [^;]*;"
    r"|^(?:[^:]*: )?ALTER SYSTEM SET|type SELECT "
)
COMMAND = re.compile(
    r"\b(?:add to pg_hba\.conf|chmod|chown|chronyc|head -c|install -d|openssl"
    r"|pads-cdc (?:check|setup|teardown)|configure tls|give another BROKER_STREAM|permit our user"
    r"|raise its max_bytes|set max_payload|take it out of its subjects|turn it on there)\b"
)
SETTING = re.compile(r"\b[A-Z]+_[A-Z_]+=\S|\b[a-z]+_[a-z_]+ = ")
OURS = re.compile(r"\n|CREATE TABLE IF|NOT EXISTS|PRAGMA|ROLLBACK TO|SAVEPOINT|SET ")
"""Begins what is run by us."""
NONE = "none: "
"""Stands before what a text is that looks like a remedy, and is none."""
NOT_TYPED = "not typed: "
"""Stands before the reason why no test can type one."""


def literals(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module, with {} for their gaps."""
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant() as docstring):
                passed.add(docstring)
            case ast.keyword(arg="description" | "help", value=value):
                passed.update(ast.walk(value))
            case ast.JoinedStr(values=parts):
                passed.update(parts)
    for node in ast.walk(tree):
        if node not in passed and (text := _text(node)) is not None:
            yield text


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    return None


def remedies() -> dict[str, set[str]]:
    """Return all texts with something to type, by module. The demo is for nobody's database."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if "commands/demo/" in path or path == "server/config/settings_table.py":
                continue
            texts = set(filter(_is_typed, literals(ast.parse(file.read_text(encoding="utf-8")))))
            if texts:
                found[path] = texts
    return found


def _is_typed(text: str) -> bool:
    """Return whether a text has a statement, a command or a setting in it that is not run by us."""
    if "pg_catalog" in text or "%(" in text or OURS.match(text):
        return False
    return any(pattern.search(text) for pattern in (STATEMENT, COMMAND, SETTING))


def listed() -> dict[str, dict[str, str]]:
    return tomllib.loads((ROOT / "tests/remedies.toml").read_text(encoding="utf-8"))


def test_every_remedy_is_listed() -> None:
    said = {(path, text) for path, texts in remedies().items() for text in texts}
    known = {(path, text) for path, texts in listed().items() for text in texts}
    assert sorted(said - known) == [], "add them to tests/remedies.toml"
    assert sorted(known - said) == [], "take them out of tests/remedies.toml"


def test_every_remedy_is_tried_by_a_test_that_is_there() -> None:
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for path, texts in listed().items():
        for text, tried in texts.items():
            if not tried.startswith((NONE, NOT_TYPED)):
                assert set(tried.split()), f"{path}: {text}"
                assert set(tried.split()) <= written, f"{path}: {text}: {tried}"
