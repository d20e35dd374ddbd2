"""Envoy's ``Authorization/Check``: takes a request apart, calls the pure modules, and counts the outcome.

It never waits: the map is in memory, so a check is answered before the event loop does anything else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from authz.answer import Answers
from authz.check import Outcome
from authz.identity import Unidentified, identify
from authz.rate_limit import RateLimits, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
    from google.protobuf.descriptor import ServiceDescriptor

    from authz.config import Config
    from authz.held import Held
    from authz.metrics import CheckMetrics

_log = structlog.get_logger(__name__)

DESCRIPTOR: Final[ServiceDescriptor] = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"]
SERVICE: Final = DESCRIPTOR.full_name

_ALLOWED: Final = Outcome.ALLOWED  # finding an attribute of an enum takes longer than finding the endpoint
_UNIDENTIFIED: Final = {
    Unidentified.MISSING: Outcome.MISSING_ID,
    Unidentified.UNCLEAR: Outcome.UNCLEAR_ID,
}


class Authorization:
    """The servicer for Envoy's checks. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self,
        config: Config,
        held: Held,
        metrics: CheckMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = held
        self._metrics = metrics
        self._places = config.places
        self._answers = Answers(config.upstream, config.staleness_header)
        self._says_staleness = config.staleness_header is not None
        self._limits = RateLimits(clock) if config.rate_limit == "local" else None
        self._subject_header = config.subject_header
        self._read = frozenset(
            name
            for name in ("authorization", config.places.header, config.subject_header)
            if name is not None
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register with a gRPC server."""
        check: grpc.RpcMethodHandler[CheckRequest, bytes] = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=CheckRequest.FromString,
            response_serializer=None,  # answers are bytes already
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Check": check})

    async def _check(self, request: CheckRequest, _: object) -> bytes:
        began = time.perf_counter()
        try:
            outcome, answer = self._decide(request.attributes.request.http)
        except Exception:  # noqa: BLE001 - the last boundary: a bug of ours must refuse the request
            _log.exception("a check failed: this is a bug, please report it")
            outcome, answer = Outcome.FAULT, self._answers.refused(Outcome.FAULT)
        if self._says_staleness and self._held.ready:
            answer = self._answers.with_staleness(answer, outcome, self._held.staleness())
        self._metrics.checked(outcome, time.perf_counter() - began)
        return answer

    def _decide(self, http: AttributeContext.HttpRequest) -> tuple[Outcome, bytes]:
        answers = self._answers
        if (unready := self._held.unready()) is not None:
            return unready, answers.refused(unready)
        shown = _values(http, self._read)
        named = [value.decode("latin-1") for value in shown.get(self._places.header, ())]
        endpoint_id = identify(http.path, named, self._places)
        if not isinstance(endpoint_id, str):
            outcome = _UNIDENTIFIED[endpoint_id]
            return outcome, answers.refused(outcome)
        serialized = self._held.get(endpoint_id)
        if serialized is None:
            return Outcome.NOT_FOUND, answers.refused(Outcome.NOT_FOUND)
        prepared = answers.prepared(serialized)
        endpoint = prepared.endpoint
        if not prepared.required.met_by(shown.get("authorization", ()), shown.get(self._subject_header, ())):
            return Outcome.UNAUTHORIZED, answers.refused(Outcome.UNAUTHORIZED, prepared)
        if prepared.allowed is None:
            return Outcome.UNSENDABLE, answers.refused(Outcome.UNSENDABLE, prepared)
        if self._limits is not None:
            wait = self._limits.take(endpoint_id, endpoint.rate_limiting.throughput_limit)
            if wait:
                return Outcome.RATE_LIMITED, answers.refused(
                    Outcome.RATE_LIMITED, prepared, retry_after(wait)
                )
        return _ALLOWED, prepared.allowed


def _values(http: Any, names: frozenset[str]) -> dict[str | None, list[bytes]]:
    """Return all values of these headers. Envoy sends headers in one of two fields.

    In ``headers`` the values of a repeated header are joined by commas, and bytes that are not UTF-8 become
    ``!``. With Envoy's ``encode_raw_headers`` the field is ``header_map``, which contains each value
    unchanged.
    """
    found: dict[str | None, list[bytes]] = {}
    joined = http.headers
    for name in joined:
        if (lower := name.lower()) in names:
            found.setdefault(lower, []).append(joined[name].encode())
    for header in http.header_map.headers:
        if (lower := header.key.lower()) in names:
            found.setdefault(lower, []).append(header.raw_value or header.value.encode())
    return found
