"""The open streams and their progress. The gRPC services update them; the metrics and the status page show
them.

A subscriber is counted from the opening of its stream to its end. Only its address and counts are kept.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cdc.units import Revision

if TYPE_CHECKING:
    from collections.abc import Callable

Protocol = Literal["gateway_endpoints", "endpoint_feed"]
"""The service that a subscriber uses, which is the label of ``pads_cdc_subscribers``."""
PROTOCOLS: Final[tuple[Protocol, ...]] = ("gateway_endpoints", "endpoint_feed")


@dataclass(frozen=True)
class SubscriberSeen:
    """One subscriber at one moment."""

    peer: str
    protocol: Protocol
    since: float
    """The time at which the stream was opened, in Unix seconds."""
    client_id: str
    """The name that the client has given itself; empty for the legacy contract, which has no such field."""
    revision: int
    """The subscriber has been sent, or on the feed has acknowledged, everything up to this revision."""
    sent: int
    """Number of messages that were sent on the stream."""
    behind: int
    """Number of published revisions that the subscriber lacks."""
    lag_seconds: float
    """Seconds for which the subscriber has lacked a publication; 0.0 if it lacks none. For a new subscriber
    the time begins when its stream is opened.
    """


class Subscriber:
    """One open stream.

    Only the stream's servicer changes it, one field at a time, so readers need no lock.
    """

    __slots__ = ("client_id", "opened", "peer", "protocol", "revision", "sent", "since")

    def __init__(self, peer: str, protocol: Protocol, client_id: str, since: float, opened: float) -> None:
        self.peer = peer
        self.protocol = protocol
        self.client_id = client_id
        self.since = since
        self.opened = opened
        self.revision = Revision(0)
        self.sent = 0

    def count(self) -> None:
        """Count a message that was sent."""
        self.sent += 1

    def reached(self, revision: Revision) -> None:
        """Record that the subscriber has everything up to ``revision``."""
        self.revision = revision


class Subscribers:
    """All open streams. `published` must be called for every publication, to compute lags."""

    _GRAIN: Final = 0.1
    """Publications within this number of seconds count as one, at the time of the first one. This is the
    precision of lags.
    """
    _KEEP: Final = 36_000
    """Number of publications that are remembered, which covers at least an hour. A longer lag is reported as
    the remembered time.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._lock = threading.Lock()
        self._open: set[Subscriber] = set()
        self._published: deque[tuple[Revision, float]] = deque(maxlen=self._KEEP)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, peer: str, protocol: Protocol, client_id: str = "") -> Subscriber:
        """Register a stream that was opened. The caller must remove it in a ``finally``."""
        subscriber = Subscriber(peer, protocol, client_id, self._wall(), self._monotonic())
        with self._lock:
            self._open.add(subscriber)
        return subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a stream that has ended. It may be called twice."""
        with self._lock:
            self._open.discard(subscriber)

    def published(self, head: Revision) -> None:
        """Record that everything up to revision ``head`` has been published. Repeated calls are ignored."""
        now = self._monotonic()
        with self._lock:
            if self._published:
                newest, at = self._published[-1]
                if head <= newest:
                    return
                if now - at < self._GRAIN:
                    self._published[-1] = (head, at)
                    return
            self._published.append((head, now))

    def snapshot(self) -> tuple[SubscriberSeen, ...]:
        """Return all open streams, the oldest first."""
        now = self._monotonic()
        with self._lock:
            published = tuple(self._published)
            subscribers = sorted(self._open, key=lambda subscriber: subscriber.since)
        head = published[-1][0] if published else 0
        seen = []
        for subscriber in subscribers:
            revision = subscriber.revision
            missing = bisect_right(published, revision, key=lambda publication: publication[0])
            lag = max(0.0, now - published[missing][1]) if missing < len(published) else 0.0
            if not revision:  # publications before the stream was opened do not count as late
                lag = min(lag, now - subscriber.opened)
            seen.append(
                SubscriberSeen(
                    peer=subscriber.peer,
                    protocol=subscriber.protocol,
                    client_id=subscriber.client_id,
                    since=subscriber.since,
                    revision=revision,
                    sent=subscriber.sent,
                    behind=max(0, head - revision),
                    lag_seconds=lag,
                )
            )
        return tuple(seen)
