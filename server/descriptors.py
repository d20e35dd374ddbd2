"""File descriptors: raises their limit, and divides them between the ports.

Each connection takes one descriptor. If clients took all of them, the metrics port would refuse its callers,
and the server could not reconnect to the database. So gRPC and HTTP have limits that leave a reserve.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_MOST: Final = 1_048_576
"""Maximum number of descriptors that Linux allows a process, unless fs.nr_open was raised."""
_OWN: Final = 48
"""Number of descriptors for the server itself: connections to the database, the state file, the log, files
that are read again, and the internal descriptors of gRPC and asyncio.
"""
_HTTP: Final = 128
"""Maximum number of connections to the metrics port."""
_LEAST: Final = 4
"""Minimum number of connections of each port, even if the limit of descriptors is too low for them."""


@dataclass(frozen=True)
class Shares:
    """The maximum number of connections of each port."""

    grpc: int
    http: int


def shares() -> Shares:
    """Raise the soft limit to the hard limit, as Go does, and divide the descriptors between the ports."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    limit = _MOST if soft == resource.RLIM_INFINITY else soft
    http = max(_LEAST, min(_HTTP, limit // 16))
    return Shares(grpc=max(_LEAST, limit - _OWN - http), http=http)
