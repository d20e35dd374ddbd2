"""Writes the tables of docs/performance.md from the record of the full run: ``python -m bench.document``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.record import FOLDER, read
from bench.report import HEADS, growths, lines, reached

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.record import Record
    from bench.report import Growth
    from bench.results import Result

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "performance.md"
RECORD: Final = FOLDER / "full.json"
_BEGIN: Final = "<!-- Made by `make bench-full` from bench/results/full.json; not written by hand. -->"
_END: Final = "<!-- The end of what is made. -->"
_BEGIN_TARGETS: Final = "<!-- The targets, made as the figures are. -->"
_END_TARGETS: Final = "<!-- The end of the targets. -->"
_PICTURE: Final = "![How far each target is, and how cost grows](../bench/results/full.png)"


def main() -> int:
    """Rewrite the text between the marks; return the exit code."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(renewed(text, read(RECORD)), encoding="utf-8")
    return 0


def renewed(text: str, record: Record) -> str:
    """Return the document with its tables replaced by those of a record.

    Raises:
        ValueError: the document lacks the marks.

    """
    figures = "".join(["\n", *_compared(record.results), *map(_growth, growths(record.results))])
    targets = "".join(_targets(record))
    for begin, made, end in ((_BEGIN_TARGETS, targets, _END_TARGETS), (_BEGIN, figures, _END)):
        before, rest = text[: text.index(begin)], text[text.index(end) :]
        text = f"{before}{begin}\n{made}{rest}"
    return text


def _targets(record: Record) -> Iterable[str]:
    """Yield one table: each measure with its reference, its target and its result."""
    yield (
        f"\nThe {record.size} run of {record.made}, {record.minutes:.0f} minutes on {record.machine}, "
        f"PostgreSQL {record.postgres}.{_loop(record)}\n\n"
    )
    yield _row(["what", "reference in the same run", "to be reached", "measured", "met"])
    yield _row(["---", "---", "---", "---:", "---"])
    for one in reached(record.results):
        met = {None: "", True: "yes", False: f"**no**: [why](#{one.why})" if one.why else "**no**"}[one.met]
        yield _row([one.what, one.reference, one.bound, one.measured or "not in this run", met])
    yield f"\n{_PICTURE}\n\n"


def _loop(record: Record) -> str:
    """Return a sentence about the machine's speed, if the record contains it."""
    return f" An empty loop of Python takes {record.loop:.0f} million steps a second." if record.loop else ""


def _compared(results: Sequence[Result]) -> Iterable[str]:
    """Yield a table for each benchmark."""
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
