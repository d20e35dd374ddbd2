"""The record of a run, as JSON: the machine, the versions, and every sample."""

from __future__ import annotations

import os
import platform
import time
import timeit
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from bench.results import Result  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER: Final = Path(__file__).with_name("results")
_STEPS: Final = 1_000_000
_REPEATS: Final = 5


@dataclass(frozen=True)
class Record:
    """The record of a run."""

    size: str
    made: str
    """The date, in UTC."""
    minutes: float
    """Duration in minutes."""
    machine: str
    postgres: str
    results: tuple[Result, ...]
    loop: float = 0.0
    """Millions of steps per second of an empty loop in Python, to compare the records of two machines."""

    def write(self, path: Path) -> None:
        """Write the record to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read(path: Path) -> Record:
    """Read a record from a file."""
    return msgspec.json.decode(path.read_bytes(), type=Record)


def make(size: str, postgres: str, seconds: float, results: Iterable[Result]) -> Record:
    """Return the record of a run that has just ended."""
    return Record(
        size=size,
        made=time.strftime("%Y-%m-%d", time.gmtime()),
        minutes=round(seconds / 60, 1),
        machine=f"{os.cpu_count()} cores ({_processor()}), Python {platform.python_version()}",
        postgres=postgres,
        results=tuple(results),
        loop=round(_loop(), 1),
    )


def _loop() -> float:
    best = min(timeit.repeat(f"for _ in range({_STEPS}): pass", number=1, repeat=_REPEATS))
    return _STEPS / best / 1e6


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, grpcio {version('grpcio')}"
