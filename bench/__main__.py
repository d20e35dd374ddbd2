"""``python -m bench``: all benchmarks, or those that are named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import backlog, latency, ripple, start
from bench.report import table
from bench.rig import rig
from bench.sizes import FULL, QUICK, TINY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.results import Result
    from bench.rig import Rig
    from bench.sizes import Sizes

BENCHMARKS: Final[dict[str, Callable[[Rig], Iterator[Result]]]] = {
    "backlog": backlog.run,
    "ripple": ripple.run,
    "latency": latency.run,
    "start": start.run,
}
_SIZES: Final = {sizes.name: sizes for sizes in (TINY, QUICK, FULL)}

_WIDTH: Final = 150
"""Of a table that goes to a file."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--size", type=click.Choice(list(_SIZES)), default=QUICK.name, show_default=True)
def main(names: Sequence[str], size: str) -> None:
    """Run benchmarks, all of them unless some are NAMED, and show what they found."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    results = measure(names or list(BENCHMARKS), _SIZES[size], console)
    console.print(table(results, f"Size: {size}"))


def measure(names: Sequence[str], sizes: Sizes, console: Console) -> list[Result]:
    """Run these benchmarks in one cluster, with a bar that shows how far it is."""
    results: list[Result] = []
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        bar = progress.add_task("the cluster starts", total=len(names))
        with rig(sizes, Path(folder), lambda text: progress.update(bar, description=text)) as shared:
            for name in names:
                results += BENCHMARKS[name](shared)
                progress.advance(bar)
    return results


if __name__ == "__main__":
    main()
