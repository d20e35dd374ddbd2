"""The demo's callers through Envoy: some use right and wrong keys, and one uses each key that is taken away.

A key that is rotated, revoked or deleted is used again and again, beginning before its commit, until Envoy
refuses it. The time from the commit to this answer is the time during which a thief could still have used the
key.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

    from server.commands.demo.workload import WorkloadCommit

_PROBERS: Final = 3
"""Number of keys that are tried at the same time."""
_PAUSE: Final = 0.01
"""Seconds between two calls of the other callers."""
_TRY_SECONDS: Final = 10.0
"""A key that is still admitted this many seconds after the commit that took it away is a failure."""
_ANSWER_SECONDS: Final = 5.0
_KINDS: Final = frozenset({"key rotated", "key revoked", "application deleted"})


@dataclass(frozen=True)
class RefusedKey:
    """A key that Envoy has refused."""

    number: int
    """The number of the commit that took the key away."""
    code: int
    seconds: float
    """Seconds from the return of COMMIT to the first refusal."""


@dataclass
class _Watch:
    number: int
    endpoint_id: str
    key: str
    tried: threading.Event
    """Set once the key was admitted, which proves that it was tried before its commit."""
    committed: threading.Event
    committed_at: float = 0.0


class Callers:
    """Calls Envoy on a port of this machine while its context lasts."""

    def __init__(self, port: int, endpoints: Mapping[str, GatewayEndpoint]) -> None:
        """``endpoints`` are the endpoints at the start, with the keys that the callers use."""
        self._port = port
        self._known = [(each, _key(endpoint)) for each, endpoint in endpoints.items()]
        self._watches: SimpleQueue[_Watch] = SimpleQueue()
        self._busy: dict[int, _Watch] = {}
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._answers: Counter[int] = Counter()
        self._refusals: list[RefusedKey] = []
        self.faults: list[str] = []
        """Failures: keys that were admitted after they had been refused, or for too long."""
        self._threads = [
            threading.Thread(target=self._call, name="callers", daemon=True),
            *(threading.Thread(target=self._probe, name="prober", daemon=True) for _ in range(_PROBERS)),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(_ANSWER_SECONDS)

    @property
    def answers(self) -> dict[int, int]:
        """The number of answers by code."""
        with self._lock:
            return dict(sorted(self._answers.items()))

    def take(self) -> list[RefusedKey]:
        """Return the refusals since the last call."""
        with self._lock:
            taken, self._refusals = self._refusals, []
        return taken

    def expect(self, commit: WorkloadCommit) -> None:
        """Begin to use the key that a commit will take away, if there is one.

        Returns once the key is in use.
        """
        if commit.kind not in _KINDS or len(commit.before) != 1 or len(self._busy) >= _PROBERS:
            return
        [(endpoint_id, before)] = commit.before.items()
        if not (key := _key(before)):
            return
        watch = _Watch(commit.number, endpoint_id, key, threading.Event(), threading.Event())
        self._busy[commit.number] = watch
        self._watches.put(watch)
        watch.tried.wait(_ANSWER_SECONDS)

    def committed(self, commit: WorkloadCommit, at: float) -> None:
        """Record the time at which the COMMIT returned."""
        if (watch := self._busy.get(commit.number)) is not None:
            watch.committed_at = at
            watch.committed.set()

    def _probe(self) -> None:
        connection = _Connection(self._port)
        while not self._ending.is_set():
            with suppress(Empty):
                watch = self._watches.get(timeout=0.1)
                try:
                    self._try(connection, watch)
                finally:
                    watch.tried.set()
                    self._busy.pop(watch.number, None)
        connection.close()

    def _try(self, connection: _Connection, watch: _Watch) -> None:
        deadline = time.monotonic() + _TRY_SECONDS
        while not self._ending.is_set():
            code = self._asked(connection, watch.endpoint_id, watch.key)
            at = time.monotonic()
            if code in (401, 404):
                break
            if code == 200:  # noqa: PLR2004 (what the upstream answers)
                watch.tried.set()
            if at > deadline:
                self.faults.append(
                    f"{watch.endpoint_id} was let in {_TRY_SECONDS:.0f} s after its key had gone"
                )
                return
        else:
            return
        if not watch.tried.is_set():
            return  # an earlier commit had already taken the key away
        watch.committed.wait(_ANSWER_SECONDS)
        with self._lock:
            self._refusals.append(RefusedKey(watch.number, code, max(0.0, at - watch.committed_at)))
        again = self._asked(connection, watch.endpoint_id, watch.key)
        if again == 200:  # noqa: PLR2004 (Envoy answers 503 when the authorizer is late)
            self.faults.append(f"{watch.endpoint_id} was let in again after its key had been refused")

    def _call(self) -> None:
        random = Random()  # noqa: S311 - nothing depends on its being unpredictable
        connection = _Connection(self._port)
        while not self._ending.wait(_PAUSE):
            endpoint_id, key = random.choice(self._known)
            match random.randrange(10):
                case 0:
                    key = "wrong"
                case 1:
                    endpoint_id = f"{endpoint_id}_unknown"
            self._asked(connection, endpoint_id, key)
        connection.close()

    def _asked(self, connection: _Connection, endpoint_id: str, key: str) -> int:
        code = connection.get(f"/v1/{endpoint_id}/", key)
        if code:
            with self._lock:
                self._answers[code] += 1
        return code


class _Connection:
    """An HTTP connection that is kept open, and reconnects when it breaks."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)

    def get(self, path: str, key: str) -> int:
        """Return the answer's code, or 0 if there is no answer."""
        try:
            self._connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0
        return answer.status

    def close(self) -> None:
        self._connection.close()


def _key(endpoint: GatewayEndpoint | None) -> str:
    return "" if endpoint is None else endpoint.auth.static_api_key.api_key
