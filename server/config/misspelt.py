"""Finds names in the environment that look like mistyped names of our settings."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_ALIKE: Final = 0.88
"""Minimum similarity (1 is equal) of a mistyped name. It allows one or two wrong letters in a name of a dozen
letters.
"""
_SHORTEST: Final = 6
"""Minimum length of a setting's name that other names are compared with. A short name such as PORT resembles
too many names.
"""
_PREFIXES: Final = ("PADS_CDC_", "PADS_")
_OTHERS: Final = frozenset(
    f"{name}{suffix}"
    for name in ("ADMIN_CONNECTION_STRING", "SLOT_CONNECTION_STRING")
    for suffix in ("", "_FILE")
)
"""Names that `pads-cdc setup` and `teardown` read."""


def misspelt(environment: Iterable[str], settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a name in the environment and the setting that was probably meant. Both are in upper
    case.

    If a setting is given under its own name, no other name is taken for it.
    """
    known, given = frozenset(settings), frozenset(environment)
    rightly = {name.upper() for name in given}
    for name in sorted(given):
        if name.upper() in known | _OTHERS:
            continue
        meant = _meant(name.upper(), known)
        if meant is not None and meant not in rightly:
            yield name, meant


def _meant(name: str, settings: Collection[str]) -> str | None:
    for prefix in _PREFIXES:
        if name.startswith(prefix) and name.removeprefix(prefix) in settings:
            return name.removeprefix(prefix)
    alike = [(_likeness(name, setting), setting) for setting in settings if len(setting) >= _SHORTEST]
    best, setting = max(alike, default=(0.0, ""))
    return setting if best >= _ALIKE else None


def _likeness(name: str, setting: str) -> float:
    if name.replace("_", "") == setting.replace("_", ""):
        return 1.0
    return SequenceMatcher(None, name, setting, autojunk=False).ratio()
