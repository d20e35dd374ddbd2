"""The errors that we raise ourselves::

    PadsCdcError              one line for people; exit code 1
    ├── ConfigurationError    a setting or an argument is wrong; exit code 2
    ├── Refusal               the database or the machine cannot do what we need, and a retry does not help
    ├── SourceError           the database cannot answer now; retried by the applier
    │   └── SlotHeld          another process reads our slot
    ├── MessageError          the plugin sent a message that cannot be handled; a reconcile replaces it
    └── StateFileError        the state file cannot be read, written or locked

Driver errors are translated in one place (`cdc.postgres.errors`), always with ``from``. No text contains a
connection string, a key or a row.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath


class PadsCdcError(Exception):
    """Root of the tree; its text is one line that says what is wrong, where, and what to do."""


class ConfigurationError(PadsCdcError):
    """A setting or an argument is wrong; the text says what to type instead."""


class Refusal(PadsCdcError):  # noqa: N818 - it is not an error of ours
    """The server cannot do what we need until somebody changes it; the text says what to type."""


class SourceError(PadsCdcError):
    """The database cannot answer now. ``reason`` is from a small closed set, for labels."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def gives_way(error: BaseException) -> bool:
    """Return whether the query failed because another session holds a lock or ended the query. Retry soon."""
    return isinstance(error, SourceError) and error.reason in _GIVES_WAY


_GIVES_WAY = frozenset({"cancelled", "deadlock", "gave_way", "locked"})


class SlotHeld(SourceError):  # noqa: N818 - it is the state of the slot
    """Another process reads our slot; ``pid`` is its backend on the slot's server, or None if unknown."""

    def __init__(self, text: str, pid: int | None) -> None:
        super().__init__("slot_held", text)
        self.pid = pid


class MessageError(PadsCdcError):
    """A message that cannot be handled; ``reason`` is from a small closed set, for labels."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class StateFileError(PadsCdcError):
    """The state file cannot be read, written or locked."""


def fault_of_ours(fault: Exception) -> SourceError:
    """Turn an unexpected exception into a `SourceError` whose text says where the exception happened.

    The exception's own text is left out, since it may contain values of a row.
    """
    place = traceback.extract_tb(fault.__traceback__)[-1]
    where = f"{place.name} ({PurePath(place.filename).name}:{place.lineno})"
    error = SourceError("fault", f"this is a bug, please report it: {type(fault).__name__} in {where}")
    error.__cause__ = fault
    return error
