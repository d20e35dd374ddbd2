"""Every error that we raise ourselves::

    PadsCdcError              one line for people; exit code 1
    ├── ConfigurationError    what was typed or set is wrong; exit code 2
    ├── Refusal               the database or the machine is not fit for us, and waiting does not mend it
    ├── SourceError           the database cannot answer now; retried by the applier
    │   └── SlotHeld          another process reads our slot
    ├── MessageError          wal2json sent something that cannot be handled; answered with a reconcile
    └── StateFileError        the state file cannot be read, written or locked

Driver errors are translated in one place (`cdc.postgres.errors`), always with ``from``. No text ever holds a
connection string, a key or a row.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath


class PadsCdcError(Exception):
    """Root of the tree; its text is one line that says what is wrong, where, and what to do."""


class ConfigurationError(PadsCdcError):
    """What was typed or set is wrong; the text says what to type instead."""


class Refusal(PadsCdcError):  # noqa: N818 - a refusal is the word for it; it is not a fault of ours
    """The server cannot do what we need until somebody changes it; the text says what to type."""


class SourceError(PadsCdcError):
    """The database cannot answer now. ``reason`` is a small closed set, for labels."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def gives_way(error: BaseException) -> bool:
    """Tell whether somebody else goes first, by a lock or by ending what we ask: it will be our turn soon."""
    return isinstance(error, SourceError) and error.reason in _GIVES_WAY


_GIVES_WAY = frozenset({"cancelled", "deadlock", "gave_way", "locked"})


class SlotHeld(SourceError):  # noqa: N818 - the state of the slot, not a fault
    """Another process reads our slot; ``pid`` is its backend on the slot's server, where known."""

    def __init__(self, text: str, pid: int | None) -> None:
        super().__init__("slot_held", text)
        self.pid = pid


class MessageError(PadsCdcError):
    """A message that cannot be handled; ``reason`` is a small closed set, for labels."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class StateFileError(PadsCdcError):
    """The state file cannot be read, written or locked."""


def fault_of_ours(fault: Exception) -> SourceError:
    """Make an error of ours of one that we did not foresee: where it happened, and not what it says.

    Its own text may hold a row's content.
    """
    place = traceback.extract_tb(fault.__traceback__)[-1]
    where = f"{place.name} ({PurePath(place.filename).name}:{place.lineno})"
    error = SourceError("fault", f"a fault of ours, please report it: {type(fault).__name__} in {where}")
    error.__cause__ = fault
    return error
