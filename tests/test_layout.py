"""How the packages may import each other, read from the code, with the imports that only the types need."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = (ROOT / "cdc", ROOT / "server", ROOT / "client" / "pads_cdc_client")


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


def imports(module: str) -> Iterator[str]:
    """Yield the modules that one imports, anywhere in it: ours by their full names."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
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


@pytest.mark.parametrize(
    ("importer", "never"),
    [
        ("cdc", {"server", "pads_cdc_client", "grpc", "prometheus_client", "google"}),
        ("pads_cdc_client", {"server", "cdc", "psycopg2", "pydantic"}),
    ],
)
def test_inner_packages_import_nothing_of_outer_ones(importer: str, never: set[str]) -> None:
    ours = [module for module in MODULES if module.split(".")[0] == importer]
    assert len(ours) > 3
    for module in ours:
        assert not never & {name.split(".")[0] for name in imports(module)}, module
