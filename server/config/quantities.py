"""Durations and sizes as people type them: a number with a unit, never a bare number.

Sizes are written as in Postgres (``64MB`` is 64 * 2**20, as in ``max_slot_wal_keep_size``), because they
limit its WAL. A bare number is refused, because Postgres would read it as megabytes or as milliseconds,
depending on the setting.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}
_NUMBER = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)


def seconds(given: object) -> float:
    """Read ``500ms``, ``30s``, ``5m``, ``2h`` or ``1d``.

    Raises:
        ValueError: the value is not a positive duration with a unit.

    """
    return _read(given, _SECONDS, "a duration", "ms, s, m, h or d")


def size(given: object) -> int:
    """Read ``64MB`` or ``1GB`` (also ``GiB``, which is the same here) as bytes.

    Raises:
        ValueError: the value is not a positive size with a unit.

    """
    return int(
        _read(
            given,
            _BYTES | {f"{unit[0]}ib": of for unit, of in _BYTES.items() if unit != "b"},
            "a size",
            "kB, MB, GB or TB",
        )
    )


def _read(given: object, units: dict[str, float] | dict[str, int], kind: str, allowed: str) -> float:
    match = _NUMBER.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f"is not {kind}: a number and one of {allowed}")
    number, unit = match.groups()
    if unit.lower() not in units:
        raise ValueError(
            f"has {'no' if not unit else 'an unknown'} unit: write one of {allowed} after the number"
        )
    value = float(number) * units[unit.lower()]
    if value <= 0:
        raise ValueError("must be more than zero")
    return value


Seconds = Annotated[float, BeforeValidator(seconds)]
Bytes = Annotated[int, BeforeValidator(size)]
