"""Finds out why a state file cannot be written at its place, and the remedy.

`pads-cdc check` uses this before a server is started, and a server uses it when its state file fails.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class PlaceFault(NamedTuple):
    """A fault of a place, and its remedy."""

    text: str
    remedy: str
    """The remedy: a shell command, or a setting to change."""


def find_fault(path: Path) -> PlaceFault | None:
    """Return why our user cannot write a state file at ``path``; None if it can.

    If we may not enter a folder on the path, `Path.is_dir` raises an error for the folder's content.
    """
    try:
        return _find_fault(path.absolute())
    except OSError as error:
        return PlaceFault(f"{path}: {error.strerror}", "choose another STATE_FILE")


def _find_fault(path: Path) -> PlaceFault | None:
    folder = path.parent
    if (closed := _first_closed(folder)) is not None:
        text, at = f"we may not enter {closed}", shlex.quote(str(closed))
        if closed.stat().st_uid == os.geteuid():
            return PlaceFault(text, f"chmod u+rwx {at}")
        return PlaceFault(
            text, f"choose another STATE_FILE, or let all users enter that folder: chmod o+x {at}"
        )
    if not folder.is_dir():
        if (
            other := next((one for one in path.parents if one.exists() and not one.is_dir()), None)
        ) is not None:
            return PlaceFault(f"{other} is not a folder", "choose another STATE_FILE")
        return PlaceFault(
            f"there is no folder {folder}", f"install -d -m 0700 -o {_our_user()} {shlex.quote(str(folder))}"
        )
    if path.exists() and not path.is_file():
        return PlaceFault(
            f"{path} is not a file",
            f"name a file in it, for example STATE_FILE={shlex.quote(str(path / 'state'))}",
        )
    # SQLite writes further files into the same folder.
    if not os.access(folder, os.W_OK | os.X_OK):
        return _not_writable(folder)
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return _not_writable(path)
    return None


def _first_closed(folder: Path) -> Path | None:
    """Return the outermost folder on the path to ``folder`` that we may not enter; None if there is none."""
    for one in (*reversed(folder.parents), folder):
        try:
            found = one.stat()
        except OSError:  # it does not exist
            return None
        if stat.S_ISDIR(found.st_mode) and not os.access(one, os.X_OK):
            return one
    return None


def _not_writable(refused: Path) -> PlaceFault:
    """Return the fault of a file or folder that we may not write to, with the remedy."""
    text, at = f"we may not write to {refused}", shlex.quote(str(refused))
    if os.statvfs(refused).f_flag & os.ST_RDONLY:
        return PlaceFault(
            f"{text}: it is on a read-only file system", "mount it for writing, or choose another STATE_FILE"
        )
    if refused.stat().st_uid == os.geteuid():
        return PlaceFault(f"{text}: its mode forbids it", f"chmod u+rw{'x' if refused.is_dir() else ''} {at}")
    return PlaceFault(f"{text}: it is another user's", f"chown {_our_user()} {at}")


def _our_user() -> str:
    """Return the name of our user, or its number if it has no name, as in many containers."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
