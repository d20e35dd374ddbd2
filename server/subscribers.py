"""Who is subscribed and how far each one is: kept by the gRPC side, read by the metrics and the status page.

A subscriber is counted from its opening to its end; what is remembered of it are a peer address and counts.
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
"""Which service a subscriber speaks; the label of ``pads_cdc_subscribers``."""
PROTOCOLS: Final[tuple[Protocol, ...]] = ("gateway_endpoints", "endpoint_feed")


@dataclass(frozen=True)
class SubscriberSeen:
    """One subscriber at one moment."""

    peer: str
    protocol: Protocol
    since: float
    """Unix seconds of its opening."""
    client_id: str
    """What it calls itself; empty where the protocol has no such thing."""
    revision: int
    """It has been sent, or where the protocol has acknowledgements: it holds, everything up to here."""
    sent: int
    """Messages handed to its stream."""
    behind: int
    """Revisions that are published and that it lacks."""
    lag_seconds: float
    """Since when it lacks something: 0.0 when it has all there is; at most since it opened, if it had nothing
    then.
    """


class Subscriber:
    """One open stream. Its servicer alone writes to it: plain assignments, so that readers need no lock."""

    __slots__ = ("client_id", "opened", "peer", "protocol", "revision", "sent", "since")

    def __init__(self, peer: str, protocol: Protocol, client_id: str, since: float, opened: float) -> None:
        self.peer = peer
        self.protocol = protocol
        self.client_id = client_id
        self.since = since
        self.opened = opened
        self.revision = Revision(0)
        self.sent = 0


class Subscribers:
    """The register. ``published`` is told of every new head, to know since when a subscriber is behind."""

    _GRAIN: Final = 0.1
    """Publications closer together than this (seconds) count as one, from the first: lag is exact to that."""
    _KEEP: Final = 36_000
    """Publications remembered: at least an hour of them; a lag beyond that is told as what is remembered."""

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
        """Register a stream that has opened; the caller removes it in a ``finally``."""
        subscriber = Subscriber(peer, protocol, client_id, self._wall(), self._monotonic())
        with self._lock:
            self._open.add(subscriber)
        return subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a stream that has ended; doing it twice is fine."""
        with self._lock:
            self._open.discard(subscriber)

    def published(self, head: Revision) -> None:
        """Note that everything up to revision ``head`` can be sent from now on; repeats are ignored."""
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
        """All that are open, the longest subscribed first."""
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
            if not revision:  # what was published before it came was never late
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
