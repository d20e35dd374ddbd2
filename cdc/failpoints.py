"""Failpoints, as in etcd and TiKV: places where a test can kill the process, to show that nothing is lost.

``PADS_CDC_FAILPOINT=written:3`` ends the process with SIGKILL when it reaches the point ``written`` for the
third time. Without the variable a point costs one comparison. Operators have no use for it.
"""

from __future__ import annotations

import os
import signal

POINTS = ("received", "read", "prepared", "written", "published", "noted", "confirming", "confirmed")
"""The points between reading a transaction and confirming the slot, in their order."""
PUBLISHER_POINTS = ("page_made", "page_stored", "snapshot_complete", "snapshot_purged", "head_stored")
"""The points at which a leader publishes pages to the broker."""
RELAY_POINTS = ("page_received", "page_applied", "head_received")
"""The points at which a relay applies pages."""

_armed, _, _count = os.environ.get("PADS_CDC_FAILPOINT", "").partition(":")
_left = [int(_count or 1)]


def reach(point: str) -> None:
    """Kill the process if ``PADS_CDC_FAILPOINT`` names this visit to the point; otherwise return."""
    if point == _armed:
        _left[0] -= 1
        if _left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
