"""The configuration of `serve`. The command line has checked the values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from authz.identity import Places

if TYPE_CHECKING:
    from pathlib import Path

RateLimit = Literal["headers", "local"]


@dataclass(frozen=True, kw_only=True)
class UpstreamHeaders:
    """Names of the headers for the upstream. A header whose name is None is left out. A client's own headers
    of these names are never passed on.
    """

    endpoint: str | None = "Portal-Application-ID"
    account: str | None = "Portal-Account-ID"
    limited: str | None = "Rl-Endpoint-Id"
    """Contains the endpoint's id if the endpoint has a limit. It is a descriptor for Envoy's rate limits."""
    throughput: str | None = "Rl-Throughput"
    """Contains the limit, in calls per second."""
    remove_authorization: bool = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of one process."""

    host: str = "127.0.0.1"
    port: int = 10001
    """The port for Envoy; 0 takes any free port."""
    unix_socket: Path | None = None
    """A Unix socket to listen on as well."""
    share_port: bool = False
    """Whether other processes listen on the same port (SO_REUSEPORT)."""
    places: Places = field(default_factory=Places)
    subject_header: str | None = None
    """The header with the subject of the token that Envoy has verified, in lower case. With None, every
    request for an endpoint that requires a JWT is refused.
    """
    upstream: UpstreamHeaders = field(default_factory=UpstreamHeaders)
    rate_limit: RateLimit = "headers"
    max_staleness: float | None = None
    """Staleness beyond which every request is refused, in seconds; None means no limit."""
    staleness_header: str | None = None
    """Name of the response header with the map's staleness in seconds."""
    drain_seconds: float = 3.0
    """Seconds for which checks are still answered after SIGTERM."""
