"""Every constant in seconds is listed in tests/README.md, with what it is for and the test that shows it."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = ("cdc", "server", "authz", "client/pads_cdc_client")
NAMED = re.compile(r"SECONDS|INTERVAL|TIMEOUT|_MS$|seconds$")
SECONDS = re.compile(r"\b[Ss]econds?\b")
OPTION = re.compile(r"timeout|_ms$|_time_|^keepalives_")
DURATION = re.compile(r"[1-9]\d*(ms|s)")
IN_SQL = re.compile(r"'([1-9]\d*(?:ms|s))'|(?:least|greatest)\(\s*(\d[\d.]*)")
"""A time in a statement: text with a unit, or a bound of a number of seconds."""
WAITS = {"wait", "wait_lost", "wait_fixed", "stop_after_delay", "join", "result", "sleep", "Backoff"}
"""What takes a time as its argument."""
ROW = re.compile(
    r"^\| `(?P<place>[^`]+)` \| (?P<value>[^|]+) \| (?P<purpose>[^|]+) \| (?P<shown>[^|]+) \|$", re.MULTILINE
)
PACE = "pace"
"""Stands for a test where nothing ends, is given up or is reported by it: how often something is done."""
NOT_SHOWN = "not shown: "
_MOST_PARTS = 3
_TOO_LONG = 1_000_000


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules that run in production; the demo's own time-outs are nobody's."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if "/pb/" not in name and "commands/demo/" not in name:
                yield name, ast.parse(path.read_text())


def constants() -> dict[str, str]:
    """Return ``path: name`` to value of whatever is in seconds, or holds an option that is a time."""
    found: dict[str, str] = {}
    for path, tree in modules():
        bodies = [
            ("", tree.body),
            *((f"{one.name}.", one.body) for one in tree.body if isinstance(one, ast.ClassDef)),
        ]
        for prefix, body in bodies:
            for node, after in zip(body, [*body[1:], None], strict=True):
                if (assigned := _assigned(node)) is not None:
                    names, value = assigned
                    if _numbers(value) and (
                        SECONDS.search(_docstring(after)) or any(map(NAMED.search, names))
                    ):
                        found[f"{path}: {', '.join(prefix + name for name in names)}"] = ast.unparse(
                            value
                        ).strip("()")
                    if times := _times_in_sql(value):
                        found[f"{path}: {prefix}{names[0]}"] = ", ".join(times)
        found |= {f"{path}: {name}": value for name, value in _options(tree)}
    return found


def _assigned(node: ast.stmt) -> tuple[list[str], ast.expr] | None:
    match node:
        case (
            ast.Assign(targets=[target], value=value)
            | ast.AnnAssign(target=target, value=ast.expr() as value)
        ):
            return [
                ast.unparse(one) for one in (target.elts if isinstance(target, ast.Tuple) else [target])
            ], value
    return None


def _numbers(value: ast.expr) -> bool:
    """Tell whether it is one time or up to three: buckets of a histogram are more, a moment or "never" is
    larger.
    """
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    times = [
        one.value
        for one in parts
        if isinstance(one, ast.Constant)
        and isinstance(one.value, int | float)
        and not isinstance(one.value, bool)
    ]
    return 0 < len(times) == len(parts) <= _MOST_PARTS and max(times) < _TOO_LONG


def _docstring(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str() as text)):
            return text
    return ""


def _options(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what is an option of another program: libpq's, Postgres's or gRPC's."""
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys, values=values):
                pairs = [(key, value) for key, value in zip(keys, values, strict=True) if key is not None]
            case ast.Tuple(elts=[key, value]):
                pairs = [(key, value)]
            case ast.keyword(arg=str() as name, value=value):
                pairs = [(ast.Constant(name), value)]
            case ast.Call(func=ast.Name(id="Pin"), args=[key, value, *_]):
                pairs = [(key, value)]
            case _:
                continue
        for key, value in pairs:
            if (
                isinstance(key, ast.Constant)
                and isinstance(value, ast.Constant)
                and isinstance(key.value, str)
            ):
                number = type(value.value) is int and value.value > 0 and OPTION.search(key.value)
                if number or (isinstance(value.value, str) and DURATION.fullmatch(value.value)):
                    yield key.value, str(value.value)


def _times_in_sql(value: ast.expr) -> list[str]:
    match value:
        case ast.Constant(value=str() as text):
            return [one or other for one, other in IN_SQL.findall(text)]
    return []


def rows() -> list[re.Match[str]]:
    text = (ROOT / "tests/README.md").read_text()
    return list(ROW.finditer(text.partition("## Time-outs and paces")[2]))


def test_every_constant_in_seconds_is_listed_with_its_value() -> None:
    listed = {row["place"]: row["value"].strip() for row in rows()}
    assert len(listed) == len(rows()), "a constant is listed twice"
    assert listed == constants()


def test_no_time_is_written_where_it_is_used() -> None:
    """A name in the table stands there instead."""
    for path, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in WAITS:
                    times = [*node.args, *(one.value for one in node.keywords)]
                    assert not any(_numbers(one) and ast.literal_eval(one) for one in times), (
                        f"{path}:{node.lineno}: {ast.unparse(node)}"
                    )


def test_every_time_out_is_shown_by_a_test_that_is_there() -> None:
    written = names_of_tests()
    for row in rows():
        shown = re.findall(r"`(test_\w+)`", row["shown"])
        shows_nothing = row["shown"].strip() == PACE or row["shown"].startswith(NOT_SHOWN)
        assert shown or shows_nothing, row["place"]
        assert set(shown) <= written, f"{row['place']}: {sorted(set(shown) - written)}"


def test_every_test_that_the_page_names_is_there() -> None:
    page = _text(ROOT / "tests/README.md")
    assert set(re.findall(r"`(test_\w+)(?:\[\w+\])?`", page)) <= names_of_tests()
    for file in re.findall(r"`((?:\w+/)*test_\w+\.py)`", page):
        assert list((ROOT / "tests").rglob(file.removeprefix("tests/"))), file


def names_of_tests() -> set[str]:
    """Return the names of all tests."""
    return {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", _text(path), re.MULTILINE)
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
