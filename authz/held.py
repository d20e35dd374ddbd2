"""The map from the feed that checks use, and the decision whether it may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.check import Outcome
from authz.identity import is_nameable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pads_cdc_client import Change, EndpointFeed


class Held:
    """The map of this process. Thread-safe, and never blocks."""

    def __init__(
        self, feed: Callable[[Callable[[Change], object]], EndpointFeed], max_staleness: float | None
    ) -> None:
        """``feed`` makes the client. Its argument is the callback for changes."""
        self.feed = feed(self._changed)
        self._endpoints = self.feed.endpoints
        self._max_staleness = max_staleness
        self.unnameable = 0
        """Number of endpoints whose id no request can name."""

    def __len__(self) -> int:
        return len(self.feed)

    @property
    def ready(self) -> bool:
        """Whether the map has ever been complete."""
        return self.feed.ready

    def get(self, endpoint_id: str) -> bytes | None:
        """Return the endpoint with this id as a serialized ``proto.GatewayEndpoint``, or None."""
        return self._endpoints.get(endpoint_id)

    def staleness(self) -> float:
        """Return an upper bound of the map's age in seconds."""
        return self.feed.staleness()

    def unready(self) -> Outcome | None:
        """Return the outcome that every check has while the map must not be used; None if it may be used."""
        if not self.feed.ready:
            return Outcome.NOT_READY
        if self._max_staleness is not None and self.feed.staleness() > self._max_staleness:
            return Outcome.TOO_STALE
        return None

    def _changed(self, change: Change) -> None:
        """Update the number of unnameable endpoints. The event loop calls this."""
        more = (change.after is not None) - (change.before is not None)
        if more and not is_nameable(change.endpoint_id):
            self.unnameable += more
