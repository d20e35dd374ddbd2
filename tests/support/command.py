"""Runs ``pads-cdc`` as people do: as a process whose lines of output are read as they are written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Self

from tests.plugins.server import DEADLINE

PADS_CDC = str(Path(sys.executable).parent / "pads-cdc")


class Command:
    """``pads-cdc`` with some arguments, in a session of its own; killed when its context ends."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        """The lines of standard output, without line ends."""
        self.errors: list[str] = []
        """The lines of standard error."""
        self._written = threading.Condition()
        self.process = subprocess.Popen(
            [PADS_CDC, *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=of)
            for of in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()

    def wait_line(self, pattern: str, after: int = 0) -> int:
        """Wait for a line that matches, from index ``after`` on. Return the index of the line after it."""

        def find() -> int | None:
            found = (i for i, line in enumerate(self.lines) if i >= after and re.search(pattern, line))
            return next(found, None)

        with self._written:
            assert self._written.wait_for(lambda: find() is not None, DEADLINE), self.told(pattern)
            index = find()
        assert index is not None
        return index + 1

    def interrupt(self) -> None:
        """Send Ctrl-C as a terminal does, to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, deadline: float = DEADLINE) -> int:
        """Wait until the process has ended, and return the exit code. Does not ask it to end."""
        code = self.process.wait(deadline)
        for reader in self._readers:
            reader.join(deadline)
        return code

    def told(self, what: str = "") -> str:
        """Return all output of the process, for the message of a failed test."""
        return "\n".join([f"not found: {what}" if what else "", *self.lines, "--- stderr", *self.errors])

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._written:
                    lines.append(line.rstrip("\n"))
                    self._written.notify_all()


def processes_of(marker: str) -> list[int]:
    """Return the ids of the processes, without zombies, whose environment or command line has the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if marker.encode() in text:
            found.append(int(entry.name))
    return found
