"""Measures latencies: from each commit to the arrival of the last endpoint that it changed."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

    from server.commands.demo.workload import WorkloadCommit
    from server.commands.old_client import EndpointUpdate


@dataclass(frozen=True)
class Delivery:
    """A commit whose changes have all arrived at the subscriber."""

    commit: WorkloadCommit
    committed_at: float
    """The time at which its COMMIT returned, by ``time.monotonic``."""
    seconds: float | None
    """Seconds until the last endpoint arrived; 0 if it arrived before COMMIT returned, None if the commit
    changed no endpoint.
    """
    alone: bool
    """Whether all earlier commits had arrived, so that this commit did not wait behind a plan's endpoints."""


@dataclass
class _Awaited:
    commit: WorkloadCommit
    missing: int
    alone: bool
    committed_at: float | None = None
    arrived_at: float | None = None


class Arrivals:
    """Matches arriving endpoints with expected ones, by value. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: dict[int, _Awaited] = {}
        self._expected: dict[str, deque[tuple[_Awaited, GatewayEndpoint | None]]] = {}
        self._delivered: list[Delivery] = []

    def expect(self, commit: WorkloadCommit) -> None:
        """Record the changes of a commit.

        Call this before the commit, since its changes may arrive at once.
        """
        with self._lock:
            awaited = _Awaited(commit, len(commit.changes), alone=not self._awaited)
            self._awaited[commit.number] = awaited
            for endpoint_id, endpoint in commit.changes.items():
                self._expected.setdefault(endpoint_id, deque()).append((awaited, endpoint))

    def committed(self, commit: WorkloadCommit, at: float) -> None:
        """Record the time at which the COMMIT returned."""
        with self._lock:
            awaited = self._awaited[commit.number]
            awaited.committed_at = at
            self._settle(awaited)

    def arrived(self, update: EndpointUpdate) -> None:
        """Record an endpoint that the subscriber received."""
        with self._lock:
            expected = self._expected.get(update.endpoint_id)
            if expected is None:
                return
            # Take the newest match, because a subscriber may get only the latest state and not each earlier
            # one.
            newest = max((i for i, (_, value) in enumerate(expected) if value == update.after), default=-1)
            for _ in range(newest + 1):
                awaited, _ = expected.popleft()
                awaited.missing -= 1
                awaited.arrived_at = update.at
                self._settle(awaited)
            if not expected:
                del self._expected[update.endpoint_id]

    def take(self) -> list[Delivery]:
        """Return the deliveries since the last call."""
        with self._lock:
            taken, self._delivered = self._delivered, []
        return taken

    @property
    def awaited(self) -> int:
        """Number of commits whose changes have not all arrived yet."""
        return len(self._awaited)

    def _settle(self, awaited: _Awaited) -> None:
        if awaited.missing or awaited.committed_at is None:
            return
        del self._awaited[awaited.commit.number]
        seconds = None
        if awaited.arrived_at is not None:
            seconds = max(0.0, awaited.arrived_at - awaited.committed_at)
        self._delivered.append(Delivery(awaited.commit, awaited.committed_at, seconds, awaited.alone))
