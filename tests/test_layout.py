"""How the packages may import each other, read from the code, with the imports that only the types need."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = (ROOT / "authz", ROOT / "cdc", ROOT / "server", ROOT / "client" / "pads_cdc_client")


def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name; a package's own `__init__` has the package's name."""
    found = {}
    for folder in FOLDERS:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            if "pb" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def tree(module: str) -> ast.Module:
    """Return the code of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Yield the modules that one imports, anywhere in it: ours by their full names."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def below(module: str) -> str:
    """Return the package right below the root that a module is in, or the module itself."""
    return ".".join(module.split(".")[:2])


def graph(root: str) -> dict[str, set[str]]:
    """Return which package below a root imports which."""
    arrows: dict[str, set[str]] = {}
    for module in MODULES:
        if module.startswith(f"{root}."):
            package = ".".join(module.split(".")[:2])
            targets = {
                ".".join(name.split(".")[:2]) for name in imports(module) if name.startswith(f"{root}.")
            }
            arrows.setdefault(package, set()).update(targets - {package})
    return arrows


@pytest.mark.parametrize("root", ["cdc", "server"])
def test_the_imports_between_packages_form_no_circle(root: str) -> None:
    arrows = graph(root)
    assert len(arrows) > 5
    assert any(arrows.values())
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_imports_between_modules_form_no_circle() -> None:
    """Imports for types alone count as well: two modules that need each other's types are one."""
    arrows = {
        module: {name for name in imports(module) if name in MODULES and name != module} for module in MODULES
    }
    assert sum(map(len, arrows.values())) > len(MODULES)
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("importer", "never"),
    [
        ("cdc", {"server", "pads_cdc_client", "grpc", "prometheus_client", "google"}),
        ("authz", {"server", "cdc", "psycopg2"}),
        ("pads_cdc_client", {"server", "cdc", "authz", "psycopg2", "pydantic"}),
    ],
)
def test_inner_packages_import_nothing_of_outer_ones(importer: str, never: set[str]) -> None:
    ours = [module for module in MODULES if module.split(".")[0] == importer]
    assert len(ours) > 3
    for module in ours:
        assert not never & {name.split(".")[0] for name in imports(module)}, module


def drawn() -> dict[str, set[str]]:
    """Return the arrows of the picture in ARCHITECTURE.md, between the packages that it names."""
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
    names = dict(re.findall(r"(\w+)\[([\w.]+)\]", picture))
    arrows: dict[str, set[str]] = {name: set() for name in names.values()}
    for one, other in re.findall(r"^ +(\w+)(?:\[[\w.]+\])? --> (\w+)", picture, re.MULTILINE):
        arrows[names[one]].add(names[other])
    return arrows


def imported(packages: set[str]) -> dict[str, set[str]]:
    """Return which of these packages imports which."""

    def package_of(name: str) -> str | None:
        return next((each for each in packages if name == each or name.startswith(f"{each}.")), None)

    arrows: dict[str, set[str]] = {name: set() for name in packages}
    for module in MODULES:
        if (package := package_of(module)) is not None:
            arrows[package] |= {target for name in imports(module) if (target := package_of(name))}
            arrows[package].discard(package)
    return arrows


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    """Return what a walk along the arrows comes to."""
    found: set[str] = set()
    ahead = set(arrows[start])
    while ahead:
        found |= ahead
        ahead = set().union(*(arrows[name] for name in ahead)) - found
    return found


def test_the_picture_in_the_document_is_the_import_graph() -> None:
    picture = drawn()
    real = imported(set(picture))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("[cs]*/*/__init__.py")}
    assert {name for name in folders if name.startswith(("cdc.", "server."))} <= set(picture)
    for name, arrows in picture.items():
        assert arrows <= real[name], f"{name} does not import {arrows - real[name]}"
        missing = real[name] - reachable(picture, name)
        assert not missing, f"{name} imports {missing}, which the picture does not show"
        for arrow in arrows:
            others = set().union(*(reachable(picture, other) for other in arrows - {arrow}))
            assert arrow not in others, f"the arrow from {name} to {arrow} is implied by others"


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:authz|cdc|server|tests|docs|sql)/[\w/]+\.\w+)`", text))
    assert len(named) > 50
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_the_architecture_names_every_module() -> None:
    """Whoever looks for the place of a decision finds it there, in words of the decision."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    files = {str(path.relative_to(ROOT)) for path in MODULES.values() if path.name != "__init__.py"}
    assert "server/commands/demo/" in named
    assert {
        file for file in files if file not in named and f"{file.rpartition('/')[0]}/" not in named
    } == set()


def test_the_architecture_says_why_each_dependency_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Dependencies")[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    explained = {
        name.strip()
        for row in re.findall(r"^\| ([\w, -]+) \|", text, re.MULTILINE)
        for name in row.split(",")
    }
    assert names <= explained


COMPONENTS = {"backlog", "database", "freshness", "ledger", "origin", "pair", "reader", "requery", "store"}
"""Names under which objects with a state of their own are handed around."""
OF_A_LIBRARY = {"server.rpc.unknown_methods: made._server"}
"""Attributes that have the name of one of ours, and belong to a class of grpcio's."""


def assigned(function: ast.AST) -> Iterator[ast.Attribute]:
    """Yield every attribute that a function assigns, also one by one in a tuple or with an operator."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def declared(kind: ast.ClassDef) -> set[str]:
    """Return the attributes that a class declares in its body, and those that its methods assign."""
    fields = {
        each.target.id
        for each in kind.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    return fields | {
        each.attr for each in assigned(kind) if isinstance(each.value, ast.Name) and each.value.id == "self"
    }


def made_in(module: str) -> set[str]:
    """Return the names of classes that a module calls, and so makes objects of."""
    calls = {node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return {name for name in names if name.lstrip("_")[:1].isupper()}


def messages_in(function: ast.AST) -> set[str]:
    """Return the variables of a function that hold generated messages, whose fields anybody sets."""
    return {
        name.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and "pb." in ast.unparse(node.value)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }


def test_only_a_modules_own_classes_change_their_state() -> None:
    """The state of an object is changed by its methods. Only a module that makes a value may fill it in."""
    owners: dict[str, dict[str, set[str]]] = {}
    for module in MODULES:
        for kind in ast.walk(tree(module)):
            if isinstance(kind, ast.ClassDef):
                for name in declared(kind):
                    owners.setdefault(name, {}).setdefault(module, set()).add(kind.name)
    found = set()
    for module in MODULES:
        made = made_in(module)
        for function in ast.walk(tree(module)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            ours = {"self", "cls"} | messages_in(function)
            for each in assigned(function):
                of, name = ast.unparse(each.value), each.attr
                foreign = of not in ours and name in owners and module not in owners[name]
                unmade = foreign and not made & set().union(*owners[name].values())
                if unmade or of.rpartition(".")[2].lstrip("_") in COMPONENTS:
                    found.add(f"{module}: {of}.{name}")
    assert found == OF_A_LIBRARY


def test_no_two_classes_have_one_name() -> None:
    """A name that two modules give to two things makes a reader look both up."""
    places: dict[str, list[str]] = {}
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_names_of_tests_have_fewer_than_80_characters() -> None:
    names = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    assert len(names) > 1000
    assert {name for name in names if len(name) >= 80} == set()
