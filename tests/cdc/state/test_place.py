"""What forbids a state file, and the remedies typed in: as a user who is not root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from cdc.state.place import find_fault
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
LOOK = f"""
import json, os, sys
from pathlib import Path
from cdc.state.place import find_fault
from cdc.state.state_file import StateFile
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
path = Path(sys.argv[1])
try:
    StateFile(path).close()
    error = ""
except Exception as failed:
    error = f"{{type(failed).__name__}}: {{failed}}"
print(json.dumps([find_fault(path), error]))
"""
"""Look at a place, and try to use it, as a user who is not root."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    if os.geteuid() != 0:
        pytest.skip("changes users, as root alone may")
    with TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def look(path: Path) -> tuple[tuple[str, str] | None, str]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    fault, error = json.loads(done.stdout)
    return fault, error


@pytest.mark.parametrize(
    ("name", "of_root", "mode", "says", "typed"),
    [
        ("none/at all/state", None, 0, "there is no folder", "install -d"),
        ("roots/state", True, 0o755, "another user's", "chown"),
        ("it's ours/state", False, 0o500, "its mode forbids it", "chmod u+rwx"),
        ("ours/state", False, 0o600, "may not enter", "chmod u+rwx"),
        ("root's own/deeper/state", True, 0o700, "may not enter", "chmod o+x"),
    ],
)
def test_a_folder_that_is_in_the_way(
    folder: Path, name: str, of_root: bool | None, mode: int, says: str, typed: str
) -> None:
    path = folder / name
    if of_root is not None:
        outermost = folder / Path(name).parts[0]
        path.parent.mkdir(parents=True)
        os.chown(path.parent, NOBODY, NOBODY)
        os.chown(outermost, 0 if of_root else NOBODY, 0)
        outermost.chmod(mode)
    tried(path, says, typed)


@pytest.mark.parametrize(
    ("of_root", "mode", "says", "typed"),
    [
        (True, 0o644, "another user's", "chown"),
        (False, 0o400, "its mode forbids it", "chmod u+rw "),
    ],
)
def test_a_file_that_is_in_the_way(folder: Path, of_root: bool, mode: int, says: str, typed: str) -> None:
    (folder / "state").touch(mode)
    os.chown(folder, NOBODY, NOBODY)
    os.chown(folder / "state", 0 if of_root else NOBODY, 0)
    tried(folder / "state", says, typed)


def test_a_file_of_ours_in_a_folder_that_takes_no_others(folder: Path) -> None:
    """SQLite writes its journal beside it: to own the file is not enough."""
    (folder / "state").touch(0o600)
    os.chown(folder / "state", NOBODY, NOBODY)
    tried(folder / "state", "another user's", "chown")


def tried(path: Path, says: str, typed: str) -> None:
    """Look, type what is said, and look again."""
    fault, error = look(path)
    assert fault is not None
    assert says in fault[0]
    assert error.startswith("StateFileError")
    assert error.endswith("; ".join(fault)), "a server says the same"
    command = fault[1][fault[1].index(typed) :]
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - as a person would
    assert look(path) == (None, "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file/state", "file is not a folder"),
        ("file/deeper/state", "file is not a folder"),
        ("folder", "is not a file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_only_another_setting_mends(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    fault = find_fault(tmp_path / name)
    assert fault is not None
    assert says in fault.text
    assert "STATE_FILE" in fault.remedy
    assert find_fault(tmp_path / "state") is None
