"""A terminal for a command: what it draws, and keys that are typed into it."""

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
# Some library that the tests load has the size of their own terminal, or of none, exported.
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """``pads-cdc`` with some arguments on a pseudo-terminal, as its controlling terminal."""

    def __init__(self, *arguments: str, width: int = 120, height: int = 40, **environment: str) -> None:
        self.text = ""
        """Everything that it wrote, escape sequences included."""
        self._written = threading.Condition()
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process = subprocess.Popen(
            # setsid --ctty: so that Ctrl-C in this terminal reaches the command, and nobody else.
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
        """Press keys."""
        os.write(self._ours, keys.encode())

    def wait(self, text: str) -> None:
        """Return when ``text`` has been written."""
        with self._written:
            assert self._written.wait_for(lambda: text in self.text, DEADLINE), (text, self.text)

    def frames(self) -> list[str]:
        """Return what was drawn on the whole screen, each time, with its colours; the last may be torn."""
        screen = self.text.partition(_SCREEN)[2].partition(_SCREEN_END)[0]
        return screen.split(_HOME)[1:]

    def frame(self) -> str:
        """Return the last whole frame as plain text, without the spaces that end its lines."""
        plain = _CONTROL.sub("", self.frames()[-2])
        return "\n".join(line.rstrip() for line in plain.splitlines())

    def after(self) -> str:
        """Return what was written once the screen was gone, as plain text."""
        return _CONTROL.sub("", self.text.partition(_SCREEN_END)[2])

    def end(self) -> int:
        """Wait for its end, which has been asked for, and return the exit code."""
        code = self.process.wait(DEADLINE)
        self._reading.join(DEADLINE)
        return code

    def _read(self) -> None:
        while True:
            try:
                written = os.read(self._ours, 65_536)
            except OSError:  # EIO: nobody has the other side open any more
                return
            with self._written:
                self.text += written.decode(errors="replace")
                self._written.notify_all()
