"""Places where a test may have the process killed, to show that nothing is lost there (as etcd and TiKV do
it).

``PADS_CDC_FAILPOINT=written:3`` ends the process with SIGKILL when it reaches the point ``written`` for the
third time. Without the variable a point costs one comparison. No operator has a use for it.
"""

from __future__ import annotations

import os
import signal

POINTS = ("received", "read", "prepared", "written", "published", "noted", "confirming", "confirmed")
"""In the order of the way of the data: between reading a transaction and telling the slot to forget it."""
PUBLISHER_POINTS = ("page_made", "page_stored", "snapshot_complete", "snapshot_purged", "head_stored")
"""Likewise, of a leader's pages on their way to the broker."""
RELAY_POINTS = ("page_received", "page_applied", "head_received")
"""Likewise, at a relay."""

_armed, _, _count = os.environ.get("PADS_CDC_FAILPOINT", "").partition(":")
_left = [int(_count or 1)]


def reach(point: str) -> None:
    """Say that a point has been reached; does not return where a test wants the process to end there."""
    if point == _armed:
        _left[0] -= 1
        if _left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
