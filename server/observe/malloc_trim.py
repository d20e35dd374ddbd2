"""Gives memory back that a whole reading has left behind.

glibc keeps what was freed in between what is still in use: after a restart that compared a million endpoints
with the state file, a fifth of the process. Where the C library is another one, nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from server.observe.fanout import Listener

if TYPE_CHECKING:
    from cdc.observer import ReconcileSeen


class MallocTrim(Listener):
    """Tidies up after a whole reading; not after audits and polls, which come again and leave little."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Take some milliseconds for it."""
        if self._trim is not None and reconcile.reason not in ("audit", "polling"):
            self._trim(0)
