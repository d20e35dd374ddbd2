"""File descriptors: as many as the system allows, and how they are shared out.

Each connection takes one. When gateways and strangers took all of them, nobody could ask how the server is,
and the database could not be connected to again. So gRPC and HTTP have bounds that leave a reserve.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_MOST: Final = 1_048_576
"""What Linux allows a process unless fs.nr_open was raised."""
_OWN: Final = 48
"""For what is no client's: connections to the database, the state file, the log, files that are read again,
and what gRPC and asyncio have for themselves.
"""
_HTTP: Final = 128
"""Connections to the metrics port at most."""
_LEAST: Final = 4
"""Connections that each port takes however low the limit is."""


@dataclass(frozen=True)
class Shares:
    """Connections that each port takes at most."""

    grpc: int
    http: int


def shares() -> Shares:
    """Raise the soft limit to the hard one, as Go does, and share out what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    limit = _MOST if soft == resource.RLIM_INFINITY else soft
    http = max(_LEAST, min(_HTTP, limit // 16))
    return Shares(grpc=max(_LEAST, limit - _OWN - http), http=http)
