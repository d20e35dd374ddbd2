"""Make docs/demo.svg anew: the demo is run on a terminal, and its last whole screen is drawn.

``make picture``, or ``python -m tests.picture docs/demo.svg``; more arguments are the demo's.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT  # has no public name; the template of export_svg
from rich.console import Console
from rich.text import Text

from tests.plugins.server import wait_until
from tests.support.terminal import Terminal

WIDTH: Final = 100
HEIGHT: Final = 36
FRAMES: Final = 40
"""Drawn in some eight seconds."""
_FONTS: Final = re.compile(r"\s*@font-face \{\{.*?\n\s*\}\}", re.DOTALL)
"""Of the template: fonts from another site, which a picture in a README may not fetch anyway."""


def main() -> int:
    """Run the demo, check that it ended well, and write the picture; returns the exit code."""
    path, *options = sys.argv[1:]
    with Terminal("demo", *options, width=WIDTH, height=HEIGHT) as terminal:
        terminal.wait("plan changed")
        wait_until(lambda: len(terminal.frames()) > FRAMES, "enough commits")
        terminal.type("\x03")
        code = terminal.end()
        frame = terminal.frames()[-2]
    if code:
        return code
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in frame.splitlines()[:HEIGHT]:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop", crop=True)
    svg = console.export_svg(
        title=" ".join(["pads-cdc demo", *options]),
        code_format=_FONTS.sub("", CONSOLE_SVG_FORMAT),
        unique_id=Path(path).stem,
    )
    Path(path).write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
