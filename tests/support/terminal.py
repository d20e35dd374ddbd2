"""Runs ``pads-cdc`` in a pseudo-terminal: types keys, and reads what is drawn."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from typing import Self

from tests.plugins.server import DEADLINE
from tests.support.command import PADS_CDC

_SCREEN = "\x1b[?1049h"
_SCREEN_END = "\x1b[?1049l"
_HOME = "\x1b[H"
# A library that the tests load exports the size of the tests' own terminal, which would apply here too.
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """``pads-cdc`` with some arguments, and a pseudo-terminal as its controlling terminal."""

    def __init__(self, *arguments: str, width: int = 120, height: int = 40, **environment: str) -> None:
        self.text = ""
        """All output of the command, with its escape sequences."""
        self._written = threading.Condition()
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process = subprocess.Popen(
            # With setsid --ctty, Ctrl-C in this terminal reaches only the command.
            ["setsid", "--ctty", "--wait", PADS_CDC, *arguments],  # noqa: S607 - wherever util-linux is
            env=_ENVIRONMENT | {"TERM": "xterm-256color"} | environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.type("\x1c")  # Ctrl-\: SIGQUIT
        self.end()
        os.close(self._ours)

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self._ours, keys.encode())

    def wait(self, text: str) -> None:
        """Wait until the command has written ``text``."""
        with self._written:
            assert self._written.wait_for(lambda: text in self.text, DEADLINE), (text, self.text)

    def frames(self) -> list[str]:
        """Return each frame drawn on the full screen, with its colours. The last one may be incomplete."""
        screen = self.text.partition(_SCREEN)[2].partition(_SCREEN_END)[0]
        return screen.split(_HOME)[1:]

    def frame(self) -> str:
        """Return the last complete frame as plain text, without trailing spaces."""
        plain = _CONTROL.sub("", self.frames()[-2])
        return "\n".join(line.rstrip() for line in plain.splitlines())

    def after(self) -> str:
        """Return the text that was written after the full screen had ended, without escape sequences."""
        return _CONTROL.sub("", self.text.partition(_SCREEN_END)[2])

    def end(self) -> int:
        """Wait until the command has ended, and return the exit code. Does not ask it to end."""
        code = self.process.wait(DEADLINE)
        self._reading.join(DEADLINE)
        return code

    def _read(self) -> None:
        while True:
            try:
                written = os.read(self._ours, 65_536)
            except OSError:  # EIO: no process has the other side open any more
                return
            with self._written:
                self.text += written.decode(errors="replace")
                self._written.notify_all()
