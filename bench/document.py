"""Writes the tables of docs/performance.md from the record of the full run: ``python -m bench.document``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.record import FOLDER, read
from bench.report import HEADS, growths, lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.record import Record
    from bench.report import Growth
    from bench.results import Result

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "performance.md"
RECORD: Final = FOLDER / "full.json"
_BEGIN: Final = "<!-- Made by `make bench-full` from bench/results/full.json; not written by hand. -->"
_END: Final = "<!-- The end of what is made. -->"
_PICTURE: Final = "![How far each target is, and how cost grows](../bench/results/full.png)"


def main() -> int:
    """Rewrite what stands between the marks; returns the exit code."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(renewed(text, read(RECORD)), encoding="utf-8")
    return 0


def renewed(text: str, record: Record) -> str:
    """Return the document with a record's tables in the place of those that it has.

    Raises:
        ValueError: the marks are not there.

    """
    begin, end = text.index(_BEGIN), text.index(_END)
    return text[:begin] + _BEGIN + "\n" + _made(record) + text[end:]


def _made(record: Record) -> str:
    what = (
        f"\nThe {record.size} run of {record.made}, {record.minutes:.0f} minutes on {record.machine}, "
        f"PostgreSQL {record.postgres}.{_loop(record)}\n\n{_PICTURE}\n\n"
    )
    return "".join([what, *_compared(record.results), *map(_growth, growths(record.results))])


def _loop(record: Record) -> str:
    """Say how fast the machine was, where the record knows."""
    return f" An empty loop of Python takes {record.loop:.0f} million steps a second." if record.loop else ""


def _compared(results: Sequence[Result]) -> Iterable[str]:
    """A table for each benchmark."""
    made = lines(results)
    for benchmark in dict.fromkeys(line.benchmark for line in made):
        yield f"### {benchmark.replace('_', ' ').capitalize()}\n\n"
        yield _row(HEADS[1:]) + _row(["---", "---", "---:", "---", "---:", "---", "---"])
        case = size = ""
        for line in made:
            if line.benchmark != benchmark:
                continue
            if line.size and line.size != size:
                size = line.size
                yield _row([f"*{size}*", *[""] * 6])
            met = {None: "", True: "yes", False: "**no**"}[line.met]
            of_case = "" if line.case == case else line.case
            case = line.case
            yield _row([of_case, line.contender, line.median, line.spread, line.ratio, line.target, met])
        yield "\n"


def _growth(growth: Growth) -> str:
    rows = "".join(_row(row) for row in growth.rows)
    align = _row(["---:"] * len(growth.heads))
    return f"### By {growth.heads[0]}\n\n" + _row(growth.heads) + align + rows + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
