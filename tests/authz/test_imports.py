"""The authorizer stands on the client alone: a database's outage, or code for one, cannot reach it."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.support import ROOT


def test_authz_imports_neither_cdc_nor_server() -> None:
    for file in sorted((ROOT / "authz").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"cdc", "server"}, file.name


def test_the_modules_run_without_them() -> None:
    modules = [f"authz.{file.stem}" for file in (ROOT / "authz").glob("*.py") if file.stem != "__init__"]
    unwanted = "[name for name in ('cdc', 'server', 'psycopg2') if name in sys.modules]"
    asked = f"import sys, {', '.join(modules)}; print({unwanted})"
    ran = subprocess.run([sys.executable, "-P", "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
