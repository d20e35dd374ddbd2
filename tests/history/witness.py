"""Clients of the legacy contract, of all three generations, that show all that they see to somebody who
judges it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import grpc
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdatesRequest, GatewayEndpoint

from tests.plugins.server import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable

    Observe = Callable[[str, bytes | None], None]

Generation = Literal["fetches_once", "fetches_until_it_works", "fetches_again"]
"""How the deployed clients come and go: after its first fetch only the last one ever fetches again."""
GENERATIONS: tuple[Generation, ...] = ("fetches_once", "fetches_until_it_works", "fetches_again")


class Witness(Gateway):
    """Calls ``observe`` with an id and what the client now holds for it, None for nothing, in the order of
    events.

    An id that a fetched map does not have is observed as well if the client has ever heard of it.
    """

    def __init__(self, port: int, generation: Generation, observe: Observe) -> None:
        self._observe = observe
        self.generation = generation
        self._known: set[str] = set()
        self._call: grpc.Call | None = None
        self.observations = 0
        super().__init__(port, refetch=generation == "fetches_again", fetch=generation == "fetches_once")

    def disconnect(self) -> None:
        """Cut the client's stream, if it has one; it comes back as its generation does."""
        call = self._call
        if call is not None:
            call.cancel()

    def _fetch(self) -> None:
        super()._fetch()
        with self._changed:
            self._known.update(self.map)
            for endpoint_id in self._known:
                self._see(endpoint_id, self.map.get(endpoint_id))
            self._changed.notify_all()

    def _run(self) -> None:
        fetched = self.generation == "fetches_once"
        while not self._stopped.is_set():
            try:
                if not fetched or self.generation == "fetches_again":
                    self._fetch()
                    fetched = True
                call = self._stub().StreamAuthDataUpdates(AuthDataUpdatesRequest())
                self._call = call
                for update in call:
                    self._apply(update.endpoint_id, None if update.delete else update.gateway_endpoint)
                self.ends.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                self.ends.append(error.code())
            except ValueError:  # so says gRPC when `stop` has closed the channel just before the call
                if not self._stopped.is_set():
                    raise
            self._stopped.wait(0.05)

    def _apply(self, endpoint_id: str, endpoint: GatewayEndpoint | None) -> None:
        self.updates.clear()  # a history may be long; whoever wants it observes
        with self._changed:
            self._known.add(endpoint_id)
            super()._apply(endpoint_id, endpoint)
            self._see(endpoint_id, self.map.get(endpoint_id))

    def _see(self, endpoint_id: str, payload: bytes | None) -> None:
        self.observations += 1
        self._observe(endpoint_id, payload)


class Versions:
    """Judges one client's observations by the versions in them: neither a key nor a plan's limit may ever go
    back.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self.faults: list[str] = []

    def __call__(self, endpoint_id: str, payload: bytes | None) -> None:
        """Take the next observation."""
        if payload is None:
            return
        endpoint = GatewayEndpoint.FromString(payload)
        key = endpoint.auth.static_api_key.api_key
        with self._lock:
            if key.startswith("v"):
                self._compare(endpoint_id, "key", int(key[1:]))
            plan, limit = endpoint.metadata.plan_type, endpoint.rate_limiting.throughput_limit
            if plan.startswith("p_") and limit:
                self._compare(endpoint_id, plan, limit)

    def _compare(self, endpoint_id: str, what: str, version: int) -> None:
        before = self._newest.get((endpoint_id, what), 0)
        if version < before:
            self.faults.append(f"{endpoint_id} went back from {what} version {before} to {version}")
        self._newest[endpoint_id, what] = max(before, version)
