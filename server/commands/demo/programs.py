"""PostgreSQL's server programs: finds them, runs them as the right user, and finds out their features."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWNER = "postgres"


class ClusterError(RuntimeError):
    """The cluster could not be made, or an action on it failed. The message is one line, without secrets."""


@dataclass(frozen=True)
class Programs:
    """The ``bin`` folder of an installation. Its programs refuse to run as root, so root runs them as the
    user postgres.
    """

    folder: Path

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return the command line that runs ``name`` as the owner of the data."""
        as_owner = (
            ["setpriv", f"--reuid={_OWNER}", f"--regid={_OWNER}", "--init-groups"]
            if os.geteuid() == 0
            else []
        )
        return [*as_owner, str(self.folder / name), *arguments]

    def run(self, name: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
        """Run ``name`` in ``cwd``, which the owner must be able to enter, and return its output.

        ``environment`` is added to our own environment, from which the variables ``PG*`` are removed, since
        they are meant for other servers. Raises ClusterError with the last line that the program wrote.
        """
        ours = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and nothing in the command comes from outside
                self.command(name, *arguments),
                cwd=cwd,
                env=ours | {"LC_ALL": "C"} | dict(environment or {}),
                check=False,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise ClusterError(f"cannot run {name}: {error.strerror}") from error
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise ClusterError(f"{name} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
        return done.stdout

    def has_wal2json(self) -> bool:
        """Return whether the plugin is installed for this server."""
        try:
            library = Path(self.run("pg_config", "--pkglibdir", cwd=Path("/")).strip())
        except ClusterError:
            library = (
                self.folder.parent / "lib"
            )  # Debian's folder; pg_config is not always installed with the server
        return self.complete and (library / "wal2json.so").exists()

    @property
    def complete(self) -> bool:
        """Whether all programs that a cluster needs are there."""
        return (self.folder / "initdb").exists()

    def knows_setting(self, name: str) -> bool:
        """Return whether this minor release has the setting. With an unknown setting, the server would not
        start.
        """
        described = self.run("postgres", "--describe-config", cwd=Path("/"))
        return any(line.startswith(f"{name}\t") for line in described.splitlines())


def find_programs() -> Programs:
    """Find the programs: first in ``PADS_PG_BIN``, then in Debian's newest installation with wal2json, then
    in Debian's newest installation.

    Raises:
        ClusterError: no programs were found. The text contains the remedy.

    """
    if named := os.environ.get("PADS_PG_BIN"):
        programs = Programs(Path(named).absolute())
        if not programs.complete:
            raise ClusterError("PADS_PG_BIN does not name a folder with PostgreSQL's initdb")
        return programs
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    newest = sorted(installed, key=lambda path: int(path.parent.name), reverse=True)
    complete = [programs for programs in map(Programs, newest) if programs.complete]
    for programs in (*filter(Programs.has_wal2json, complete), *complete):
        return programs
    raise ClusterError(
        "PostgreSQL is not installed: apt-get install postgresql-15 (or another version's), or name its bin"
        " folder in PADS_PG_BIN"
    )


def give_to_owner(path: Path) -> None:
    """If we are root, make the user that runs the programs the owner of a file or folder."""
    if os.geteuid() == 0:
        try:
            shutil.chown(path, _OWNER, _OWNER)
        except LookupError:
            raise ClusterError(
                "there is no user postgres to run the server as: install PostgreSQL's package"
            ) from None
