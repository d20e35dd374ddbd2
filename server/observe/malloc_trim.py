"""Returns memory to the system after a read of the whole mapping.

glibc keeps freed memory that is between blocks that are still in use. After a restart in which a million
endpoints were compared with the state file, this memory is a fifth of the process. With another C library
nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from server.observe.fanout import Listener

if TYPE_CHECKING:
    from cdc.observer import ReconcileSeen


class MallocTrim(Listener):
    """Trims the heap after a reconcile, but not after audits and polls, which are frequent."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        """Trim the heap, which takes some milliseconds."""
        if self._trim is not None and reconcile.reason not in ("audit", "polling"):
            self._trim(0)
