"""The map that checks are made against: the feed's, and whether it may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.check import Outcome
from authz.identity import is_nameable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pads_cdc_client import Change, EndpointFeed


class Held:
    """What this process holds; for any thread, without waiting."""

    def __init__(
        self, feed: Callable[[Callable[[Change], object]], EndpointFeed], max_staleness: float | None
    ) -> None:
        """``feed`` makes the client, given what it is to call at each change."""
        self.feed = feed(self._changed)
        self._endpoints = self.feed.endpoints
        self._max_staleness = max_staleness
        self.unnameable = 0
        """Endpoints whose id no request can name."""

    def __len__(self) -> int:
        return len(self.feed)

    @property
    def ready(self) -> bool:
        """Whether the map has been complete, once."""
        return self.feed.ready

    def get(self, endpoint_id: str) -> bytes | None:
        """Return an endpoint, a serialized ``proto.GatewayEndpoint``."""
        return self._endpoints.get(endpoint_id)

    def staleness(self) -> float:
        """Return for how many seconds at most the map has not been the database's."""
        return self.feed.staleness()

    def unready(self) -> Outcome | None:
        """Say why nobody can be let in now; None where the map may be used."""
        if not self.feed.ready:
            return Outcome.NOT_READY
        if self._max_staleness is not None and self.feed.staleness() > self._max_staleness:
            return Outcome.TOO_STALE
        return None

    def _changed(self, change: Change) -> None:
        """Count; called in the feed's thread."""
        if not is_nameable(change.endpoint_id):
            self.unnameable += (change.after is not None) - (change.before is not None)
