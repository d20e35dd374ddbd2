"""``python -m bench``: runs all benchmarks, or the named ones."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import (
    authorize,
    backlog,
    fan_out,
    idle,
    latency,
    memory,
    reconnect,
    relay,
    revocation,
    ripple,
    ripple_old,
    start,
    takeover,
    writers,
)
from bench.plot import draw
from bench.record import FOLDER, make
from bench.report import growth_table, growths, missed, table
from bench.rig import rig
from bench.sizes import FULL, QUICK, TINY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.record import Record
    from bench.results import Result
    from bench.rig import Rig
    from bench.sizes import Sizes

BENCHMARKS: Final[dict[str, Callable[[Rig], Iterator[Result]]]] = {
    "backlog": backlog.run,
    "ripple": ripple.run,
    "ripple_old": ripple_old.run,
    "latency": latency.run,
    "reconnect": reconnect.run,
    "revocation": revocation.run,
    "writers": writers.run,
    "fan_out": fan_out.run,
    "start": start.run,
    "takeover": takeover.run,
    "relay": relay.run,
    "memory": memory.run,
    "idle": idle.run,
    "authorize": authorize.run,
}
_SIZES: Final = {sizes.name: sizes for sizes in (TINY, QUICK, FULL)}

_SOME: Final = "some"
"""Name of the results of a run that is partial or did not end."""
_WIDTH: Final = 150
"""Width of a table that is written to a file."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--size", type=click.Choice(list(_SIZES)), default=QUICK.name, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where JSON and PNG go.")
def main(names: Sequence[str], size: str, folder: Path) -> None:
    """Run the NAMED benchmarks, or all, and show the results.

    The results are also in the folder: under the name of the size, or as `some` if only some ran or one
    failed.
    """
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    record = measure(names or list(BENCHMARKS), _SIZES[size], console, folder / f"{_SOME}.json")
    stem = _SOME if names else size
    record.write(folder / f"{stem}.json")
    draw(record, folder / f"{stem}.png")
    console.print(table(record.results, f"Size: {size}"))
    for growth in growths(record.results):
        console.print(growth_table(growth))
    for target in missed(record.results):
        console.print(f"missed: {target.benchmark}, {target.case}", style="red")


def measure(names: Sequence[str], sizes: Sizes, console: Console, sofar: Path) -> Record:
    """Run these benchmarks in one cluster, with a progress bar.

    After each benchmark, all results are written to ``sofar``, because a run may take long and end early.
    """
    # A thousand subscribers need a thousand sockets, here and in the server, which inherits the limit.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results: list[Result] = []
    began = time.monotonic()
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        bar = progress.add_task("the cluster starts", total=len(names))

        def say(text: str) -> None:
            progress.update(bar, description=text)
            if not console.is_terminal:
                click.echo(f"{time.monotonic() - began:6.0f} s  {text}", err=True)

        with rig(sizes, Path(folder), say) as shared:
            for name in names:
                results += BENCHMARKS[name](shared)
                record = make(sizes.name, shared.version(), time.monotonic() - began, results)
                record.write(sofar)
                progress.advance(bar)
    return record
