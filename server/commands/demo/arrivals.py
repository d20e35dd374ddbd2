"""How long it took: each commit is followed until the last endpoint that it changed is at the subscriber."""

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
    """A commit of which everything is at the subscriber."""

    commit: WorkloadCommit
    committed_at: float
    """When its COMMIT had returned, by ``time.monotonic``."""
    seconds: float | None
    """From then to its last endpoint's arrival; None where it changed none, 0 where that came first."""
    alone: bool
    """Whether everything before it had arrived: it did not wait behind thousands of endpoints of a plan."""


@dataclass
class _Awaited:
    commit: WorkloadCommit
    missing: int
    alone: bool
    committed_at: float | None = None
    arrived_at: float | None = None


class Arrivals:
    """Matches what arrives with what was expected, by value. Threads: workload, subscriber and view."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: dict[int, _Awaited] = {}
        self._expected: dict[str, deque[tuple[_Awaited, GatewayEndpoint | None]]] = {}
        self._delivered: list[Delivery] = []

    def expect(self, commit: WorkloadCommit) -> None:
        """Note what a commit will change; to be called before it, since the news may overtake its answer."""
        with self._lock:
            awaited = _Awaited(commit, len(commit.changes), alone=not self._awaited)
            self._awaited[commit.number] = awaited
            for endpoint_id, endpoint in commit.changes.items():
                self._expected.setdefault(endpoint_id, deque()).append((awaited, endpoint))

    def committed(self, commit: WorkloadCommit, at: float) -> None:
        """Note when its COMMIT had returned."""
        with self._lock:
            awaited = self._awaited[commit.number]
            awaited.committed_at = at
            self._settle(awaited)

    def arrived(self, update: EndpointUpdate) -> None:
        """Note an endpoint that the subscriber has got."""
        with self._lock:
            expected = self._expected.get(update.endpoint_id)
            if expected is None:
                return
            # The newest that matches: a subscriber is owed the latest state, not each one on the way to it.
            newest = max((i for i, (_, value) in enumerate(expected) if value == update.after), default=-1)
            for _ in range(newest + 1):
                awaited, _ = expected.popleft()
                awaited.missing -= 1
                awaited.arrived_at = update.at
                self._settle(awaited)
            if not expected:
                del self._expected[update.endpoint_id]

    def take(self) -> list[Delivery]:
        """Return the deliveries since the last time."""
        with self._lock:
            taken, self._delivered = self._delivered, []
        return taken

    @property
    def awaited(self) -> int:
        """Commits that are not at the subscriber yet."""
        return len(self._awaited)

    def _settle(self, awaited: _Awaited) -> None:
        if awaited.missing or awaited.committed_at is None:
            return
        del self._awaited[awaited.commit.number]
        seconds = None
        if awaited.arrived_at is not None:
            seconds = max(0.0, awaited.arrived_at - awaited.committed_at)
        self._delivered.append(Delivery(awaited.commit, awaited.committed_at, seconds, awaited.alone))
