"""A table that is never cut. Columns are as wide as needed, and cells are folded if the table would be too
wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAPS: Final = (2, 1)
"""Number of cells between columns, normally and in a table that would be too wide."""
_NARROWEST: Final = 6
"""Minimum width of a folded column, in cells."""


@dataclass(frozen=True)
class TableColumn:
    """One column; widths are in a terminal's cells."""

    heading: str
    least: int = 0
    """Its minimum width, so that columns do not move when rows change."""
    right: bool = False
    """Whether it is aligned to the right."""
    folds: bool = False
    """Whether its cells may be folded."""


@dataclass(frozen=True)
class TableRow:
    """One row. It has a text for each column, or a text for the first column and one that takes the room of
    the others.
    """

    cells: tuple[str, ...]
    style: str = ""
    words: bool = False


def table(columns: Sequence[TableColumn], rows: Sequence[TableRow], width: int) -> list[Text]:
    """Return the lines of the heading and the rows, folded to at most ``width`` if possible."""
    full = [row.cells for row in rows if not row.words]
    needed = [
        max(cell_len(column.heading), *(cell_len(cells[i]) for cells in full), 0)
        for i, column in enumerate(columns)
    ]
    steady = [max(column.least, need) for column, need in zip(columns, needed, strict=True)]
    widths, gap = next(
        ((widths, gap) for widths in (steady, needed) for gap in _GAPS if _total(widths, gap) <= width),
        (needed, _GAPS[-1]),
    )
    while (over := _total(widths, gap) - width) > 0:
        widest = max(
            (i for i, column in enumerate(columns) if column.folds), key=widths.__getitem__, default=0
        )
        if not columns[widest].folds or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= min(over, max(1, widths[widest] // 8))
    heading = TableRow(tuple(column.heading for column in columns), "bold")
    return [line for row in (heading, *rows) for line in _lines(row, columns, widths, gap, width)]


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _lines(
    row: TableRow, columns: Sequence[TableColumn], widths: Sequence[int], gap: int, width: int
) -> list[Text]:
    if row.words:
        first, words = row.cells
        indent = widths[0] + gap
        folded = [chop_cells(words, max(_NARROWEST, width - indent)) or [""]]
        columns, widths = [TableColumn(""), TableColumn("")], [widths[0], 0]
        cells = [[first], *folded]
    else:
        cells = [
            chop_cells(cell, size) if size else [cell] for cell, size in zip(row.cells, widths, strict=True)
        ]
    return [
        # The cells are `Text`, because ids and plans are foreign strings that may look like markup.
        Text(
            (" " * gap).join(
                _aligned(cell, size, column)
                for cell, size, column in zip(parts, widths, columns, strict=True)
            ),
            style=row.style,
            no_wrap=True,
            overflow="ignore",
        )
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _aligned(cell: str, size: int, column: TableColumn) -> str:
    size = max(size, cell_len(cell))
    return " " * (size - cell_len(cell)) + cell if column.right else set_cell_size(cell, size)
