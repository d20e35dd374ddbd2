"""Limits calls with a token bucket for each endpoint, which holds the calls of one second.

A bucket is stored as one number, the moment at which it is full again (the generic cell rate algorithm). A
call moves this moment by the call's share of a second. The call is refused if the moment would then be more
than a second ahead. The caller passes the limit with each call, so a changed plan takes effect with the next
call.

    limit 2: two calls at 0.0 empty the bucket, one at 0.4 is refused, one at 0.5 passes.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BURST: Final = 1.0
"""A bucket holds the calls of this number of seconds."""
_SWEEP_SECONDS: Final = 10.0
"""Interval at which buckets that are full again are removed, in seconds."""


class RateLimits:
    """The buckets of one process. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._swept_at = clock()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, endpoint_id: str, limit: int) -> float:
        """Count a call of an endpoint that may be called ``limit`` times a second.

        Returns 0.0 if the call may pass, otherwise the number of seconds until a call may pass. A limit of 0
        or less means no limit.
        """
        if limit <= 0:
            return 0.0
        now = self._clock()
        if now - self._swept_at > _SWEEP_SECONDS:
            self._sweep(now)
        full_at = max(now, self._full_at.get(endpoint_id, now)) + 1 / limit
        wait = full_at - now - _BURST
        if wait > 1e-9:  # noqa: PLR2004 - the rounding error of a sum of fractions
            return wait
        self._full_at[endpoint_id] = full_at
        return 0.0

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        self._full_at = {each: full_at for each, full_at in self._full_at.items() if full_at > now}


def retry_after(wait: float) -> int:
    """Return the value of ``Retry-After``, which is a number of whole seconds and at least one."""
    return max(1, math.ceil(wait))
