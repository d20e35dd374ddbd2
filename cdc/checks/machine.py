"""Checks the machine that we run on: its clock, and the place of the state file."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cdc.checks.finding import fail, good, warn
from cdc.postgres.errors import translated
from cdc.postgres.session import ask
from cdc.state.place import find_fault
from cdc.state.state_file import is_foreign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Deployment, Finding

_TRIES = 3
_SKEW_SECONDS = 1.0
_EPHEMERAL = frozenset({"tmpfs", "ramfs", "overlay", "aufs"})
_MOUNTS = Path("/proc/self/mounts")


def clock(site: Deployment) -> Iterator[Finding]:
    """Compare the database's clock with ours: staleness and latencies are differences of the two."""
    skew, round_trip = _skew(site)
    if abs(skew) - round_trip / 2 > _SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        yield warn(
            f"the database's clock is {abs(skew):.1f} s {ahead} ours: latencies and staleness are wrong"
            " by as much",
            "synchronize both by NTP (chronyc tracking, timedatectl)",
        )
    else:
        yield good("the database's clock agrees with ours to within a second")


def state_file(site: Deployment) -> Iterator[Finding]:
    """Check whether the state file can be written, and will survive a restart."""
    path = site.state_file.absolute()
    fault = find_fault(path)
    if fault is not None:
        yield fail(f"STATE_FILE: {fault.text}", fault.remedy)
        return
    if path.exists() and is_foreign(path):
        yield fail(f"STATE_FILE: {path} is not a state file", "name another file in STATE_FILE")
        return
    folder = path.parent
    kind = filesystem(folder, _MOUNTS.read_text(encoding="utf-8")) if _MOUNTS.exists() else None
    if kind in _EPHEMERAL:
        yield warn(
            f"STATE_FILE: {folder} is on {kind}, which a restart of the container or the machine empties:"
            " the server would then not tell clients of the legacy contract which endpoints were deleted",
            "mount a volume and set STATE_FILE=/var/lib/pads-cdc/state there",
        )
    else:
        yield good(f"the state file {path} can be kept" + (f", on {kind}" if kind else ""))


def filesystem(folder: Path, mounts: str) -> str | None:
    """Return the type of the file system that a folder is on. ``mounts`` is the text of
    ``/proc/self/mounts``.
    """
    resolved = folder.resolve()
    best, kind = -1, None
    for line in mounts.splitlines():
        _, at, of, *_ = line.split(" ")
        mount = Path(re.sub(r"\\(\d{3})", lambda escaped: chr(int(escaped[1], 8)), at))
        # If several file systems are mounted at the same place, the last one hides the others.
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), of
    return kind


def _skew(site: Deployment) -> tuple[float, float]:
    """Return how far the server's clock is ahead, and the shortest round trip, both in seconds."""
    connection = site.source.connect()
    try:
        with translated(site.source.setting):
            asked = []
            for _ in range(_TRIES):
                before, started = time.time(), time.monotonic()
                [(theirs,)] = ask(connection, site.queries["Clock"])
                took = time.monotonic() - started
                asked.append((took, theirs - (before + took / 2)))
    finally:
        connection.close()
    round_trip, skew = min(asked)
    return skew, round_trip
