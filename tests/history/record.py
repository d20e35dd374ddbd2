"""The oracle for a history with one writer: every state that there was, in order, and whether somebody saw it
go back.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

if TYPE_CHECKING:
    from collections.abc import Mapping


class Record:
    """Of each endpoint, the payloads that it has had (None where there was none) and since when."""

    def __init__(self) -> None:
        self._moments = count(1)
        self._states: dict[str, list[tuple[int, bytes | None]]] = {}

    def add(self, state: Mapping[str, bytes]) -> None:
        """Add the map that the database holds now, after a commit."""
        moment = next(self._moments)
        for endpoint_id in {*state, *self._states}:
            states = self._states.setdefault(endpoint_id, [(0, None)])
            payload = state.get(endpoint_id)
            if states[-1][1] != payload:
                states.append((moment, payload))

    def states(self, endpoint_id: str) -> list[tuple[int, bytes | None]]:
        """Return the states of one endpoint, oldest first."""
        return self._states.get(endpoint_id, [(0, None)])


class Log:
    """One client's observations, to be held against the record once that is complete."""

    def __init__(self) -> None:
        self._observed: list[tuple[str, bytes | None]] = []
        self._reached: dict[str, int] = {}

    def __call__(self, endpoint_id: str, payload: bytes | None) -> None:
        """Take the next observation."""
        self._observed.append((endpoint_id, payload))

    def judge(self, record: Record) -> list[str]:
        """Return what cannot be: states that never were, or that were older than one seen before.

        Each observation is taken for the oldest state that it can be, so that nothing is held against the
        client which another reading would excuse.
        """
        observed, self._observed = self._observed, []
        faults: list[str] = []
        for endpoint_id, payload in observed:
            states = record.states(endpoint_id)
            reached = self._reached.get(endpoint_id, 0)
            for index in range(reached, len(states)):
                if states[index][1] == payload:
                    self._reached[endpoint_id] = index
                    break
            else:
                earlier = any(state == payload for _, state in states[:reached])
                now = (
                    "absent"
                    if payload is None
                    else str(GatewayEndpoint.FromString(payload)).replace("\n", " ")
                )
                faults.append(f"{endpoint_id} {'went back' if earlier else 'never was'}: {now}")
        return faults
