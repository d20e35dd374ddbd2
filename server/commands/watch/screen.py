"""The live screen of `pads-cdc watch` and of the demo: the current state at the top, the changes below."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from server.commands.watch.table import TableColumn, TableRow, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from server.commands.watch.lines import Line, Lines

_COLUMNS: Final = (
    TableColumn("at", 8),
    TableColumn("change", 6),
    TableColumn("endpoint", 12, folds=True),
    TableColumn("auth", 11),
    TableColumn("plan", 10, folds=True),
    TableColumn("calls/s", 7, right=True),
    TableColumn("capacity", 15, right=True),
)
_STYLES: Final = {"delete": "red", "upsert": ""}
_WORDS: Final = "yellow"
_KEPT: Final = 200
"""Number of lines that are kept, which is more than a screen has."""


class Watched(Protocol):
    """A subscriber and its events. One thread calls `read`, and another one shows the events."""

    target: str
    lines: Lines

    def read(self) -> None:
        """Follow the server until `close`, or until the view needs no more events."""

    def close(self) -> None:
        """End `read`. Returns at once."""

    def head(self) -> Text:
        """Return the current state for the top of the screen."""


@dataclass(frozen=True)
class Section:
    """A table between the current state and the changes."""

    columns: Sequence[TableColumn]
    rows: Sequence[TableRow]
    share: int
    """The table's share of the remaining lines, where the list of changes has a share of 1. A table with 0 is
    never cut.
    """


class Screen:
    """Takes the whole terminal while its context lasts."""

    def __init__(self, console: Console, watched: Watched, title: str | None = None) -> None:
        self._console = console
        self._watched = watched
        self._title = title or watched.target
        self._latest: deque[Line] = deque(maxlen=_KEPT)
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    @property
    def height(self) -> int:
        """Number of lines of the terminal."""
        return self._console.height

    def draw(self, more: Text | None = None, sections: Sequence[Section] = ()) -> None:
        """Redraw the screen with new events. ``more`` is shown below the current state."""
        self._latest.extendleft(self._watched.lines.take())
        head = self._watched.head()
        if more is not None:
            head = Text("\n").join((head, more))
        head.no_wrap, head.overflow = False, "fold"  # independent of the console's own setting
        panel = Panel(head, title=self._title, subtitle="Ctrl-C ends it")
        width = self._console.width
        room = self.height - len(self._console.render_lines(panel)) - len(sections)
        blocks = [(table(one.columns, one.rows, width), one.share) for one in sections]
        blocks.append((table(_COLUMNS, [_row(line) for line in list(self._latest)[: self.height]], width), 1))
        live: list[Text] = []
        for lines in _cut(blocks, room):
            live += [Text(""), *lines] if live else lines
        self._live.update(Group(panel, *live), refresh=True)


def _cut(blocks: Sequence[tuple[list[Text], int]], room: int) -> list[list[Text]]:
    """Cut the ends of blocks so that all blocks fit into ``room`` lines.

    Each keeps its heading and one row.
    """
    room -= sum(len(lines) for lines, share in blocks if not share)
    shares = sum(share for _, share in blocks)
    cut = []
    for lines, share in blocks:
        if not share:
            cut.append(lines)
            continue
        size = max(2, room * share // shares)
        cut.append(lines[:size])
        room, shares = room - len(cut[-1]), shares - share
    return cut


def _row(line: Line) -> TableRow:
    at = f"{line.at:%H:%M:%S}"
    if not line.cells:
        return TableRow((at, line.what), _WORDS, words=True)
    return TableRow((at, line.what, *line.cells), _STYLES[line.what])
