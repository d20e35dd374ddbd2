"""What a benchmark finds, and what is kept of it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS: Final = "pads-cdc"
"""The contender that all others are compared with."""


class Point(NamedTuple):
    """A place on a curve."""

    grows: str
    """What there is more and more of: endpoints, subscribers, affected."""
    much: int
    """How much of it there was."""
    line: str
    """What is measured along the curve."""


@dataclass(frozen=True)
class Result:
    """One contender in one case, measured as often as ``samples`` are many."""

    benchmark: str
    case: str
    """The same in a quick and in a full run; how much it was stands in ``size``."""
    contender: str
    unit: str
    """``s``, ``ms``, ``/s``, ``bytes``, ``MiB``, ``%``: of each sample."""
    samples: tuple[float, ...]
    size: str = ""
    point: Point | None = None
    """Where it stands on a curve, if it does."""

    @property
    def along(self) -> bool:
        """Whether it is there for a curve alone: nothing of it stands in the table."""
        return self.case.startswith("growth")

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest sample."""
        return min(self.samples), max(self.samples)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all values do not exceed.

    Raises:
        ValueError: there are no values.

    """
    if not values:
        raise ValueError("nothing was measured")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
