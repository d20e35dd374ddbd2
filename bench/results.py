"""The results of a benchmark."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS: Final = "pads-cdc"
"""The contender with which all others are compared."""


class Point(NamedTuple):
    """A point on a curve."""

    grows: str
    """The quantity that grows: endpoints, subscribers, affected."""
    much: int
    """The value of the quantity that `grows`."""
    line: str
    """The name of the curve."""


@dataclass(frozen=True)
class Result:
    """The samples of one contender in one case."""

    benchmark: str
    case: str
    """The case's name, which is the same in a quick run and in a full run. The amounts are in ``size``."""
    contender: str
    unit: str
    """The unit of the samples: ``s``, ``ms``, ``/s``, ``bytes``, ``MiB``, ``%``."""
    samples: tuple[float, ...]
    size: str = ""
    point: Point | None = None
    """The result's point, if the result belongs to a curve."""

    @property
    def along(self) -> bool:
        """Whether the result belongs only to a curve, and not to the table."""
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
    """Return the smallest value that is at least as large as a ``share`` (0 to 1) of all values.

    Raises:
        ValueError: there are no values.

    """
    if not values:
        raise ValueError("nothing was measured")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
