"""``python -m bench.compare OLD NEW``: measures two commits in turns, in one run on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.record import read
from bench.report import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.results import Result

_ROOT: Final = Path(__file__).resolve().parents[1]
_WIDTH: Final = 150
"""Width of a table that is written to a file."""

Key = tuple[str, str, str]
"""Benchmark, case and contender."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("old")
@click.argument("new")
@click.argument("names", nargs=-1)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each commit.")
@click.option("--size", default="quick", show_default=True, help="As of `python -m bench`.")
def main(old: str, new: str, names: Sequence[str], rounds: int, size: str) -> None:
    """Run the NAMED benchmarks (or all) of the commits OLD and NEW in turns, and compare the results.

    Both run in this virtual environment, so their dependencies should be the same.
    """
    found: dict[str, dict[Key, Result]] = {old: {}, new: {}}
    with checked_out(old) as tree_of_old, checked_out(new) as tree_of_new:
        for number in range(rounds):
            for commit, tree in ((old, tree_of_old), (new, tree_of_new)):
                click.echo(f"round {number + 1} of {rounds}: {commit}", err=True)
                gather(found[commit], run(tree, names, size))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(compared(found[old], found[new], old, new))


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Write a commit's files into a temporary folder, which is removed at the end of the context.

    Raises:
        click.UsageError: there is no such commit.

    """
    with tempfile.TemporaryDirectory(prefix="pads-cdc-bench-") as folder:
        archive = subprocess.run(  # noqa: S603 - an argument, not a shell's line
            ["git", "archive", "--format=tar", "--end-of-options", commit],  # noqa: S607
            cwd=_ROOT,
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            last = archive.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise click.UsageError(f"git has no commit {commit!r}: {last}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)  # noqa: S603, S607
        yield Path(folder)


def run(tree: Path, names: Sequence[str], size: str) -> tuple[Result, ...]:
    """Return the results of a commit's own benchmarks."""
    results = tree / "bench/results"
    # All imports are from the tree: `-m` searches the working folder first, and PYTHONPATH names the client.
    subprocess.run(  # noqa: S603 - all of it is ours
        [sys.executable, "-m", "bench", *names, "--size", size, "--folder", str(results)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "client")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return read(results / f"{'some' if names else size}.json").results


def gather(found: dict[Key, Result], results: Sequence[Result]) -> None:
    """Add a round's samples to those of earlier rounds."""
    for one in results:
        if not one.along:
            key = (one.benchmark, one.case, one.contender)
            before = found[key].samples if key in found else ()
            found[key] = replace(one, samples=before + one.samples)


def compared(old: dict[Key, Result], new: dict[Key, Result], *names: str) -> Table:
    """Return both results side by side: medians of all samples, and NEW divided by OLD."""
    table = Table("", "case", "contender", *names, "new / old", box=SIMPLE_HEAD)
    for key, before in old.items():
        after = new.get(key)
        if after is not None:
            ratio = f"{after.median / before.median:.2f}" if before.median > 0 else ""
            figures = (shown(each.median, each.unit) for each in (before, after))
            table.add_row(*key, *figures, ratio)
    return table


if __name__ == "__main__":
    main()
