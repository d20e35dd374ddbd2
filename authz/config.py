"""What an operator chose, as `serve` takes it; whoever starts it has judged the values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from authz.identity import Places

if TYPE_CHECKING:
    from pathlib import Path

RateLimit = Literal["headers", "local"]


@dataclass(frozen=True, kw_only=True)
class UpstreamHeaders:
    """Headers that go upstream, by name; None leaves one out. A client's own of these names never pass."""

    endpoint: str | None = "Portal-Application-ID"
    account: str | None = "Portal-Account-ID"
    limited: str | None = "Rl-Endpoint-Id"
    """The endpoint's id once more, only where it has a limit: a descriptor for Envoy's rate limits."""
    throughput: str | None = "Rl-Throughput"
    """The limit, calls a second."""
    remove_authorization: bool = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that one process needs to know."""

    host: str = "127.0.0.1"
    port: int = 10001
    """0 takes any free one."""
    unix_socket: Path | None = None
    """Also listened on."""
    share_port: bool = False
    """Whether other processes listen on the same port (SO_REUSEPORT)."""
    places: Places = field(default_factory=Places)
    subject_header: str | None = None
    """In lower case; None refuses every endpoint that asks for a JWT's subject."""
    upstream: UpstreamHeaders = field(default_factory=UpstreamHeaders)
    rate_limit: RateLimit = "headers"
    max_staleness: float | None = None
    """Seconds beyond which everything is refused."""
    staleness_header: str | None = None
    """Response header that says how many seconds the map may be behind."""
    drain_seconds: float = 3.0
    """How long calls go on being answered after SIGTERM."""
