"""Answers for Envoy as serialized ``CheckResponse`` messages. They are made once for each endpoint and kept.

Serialized protobuf messages can be concatenated: the fields of the second message are added to the first. So
the parts that change with time (a staleness, a ``Retry-After``) are appended to a kept answer.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from pads_cdc_client.pb.gateway_endpoint_pb2 import CapacityLimitPeriod, GatewayEndpoint

from authz.check import ANSWERS, Outcome, Requirement

if TYPE_CHECKING:
    from authz.config import UpstreamHeaders

_KEPT: Final = 10_000
"""Maximum number of endpoints whose answers are kept. An answer has about 2 kB, and making one takes 15 us.
"""
_NO_HEADER: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]|^\s|\s$")
"""Matches values that would end a header, or that proxies would change."""
_CODES: Final = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    404: Code.NOT_FOUND,
    429: Code.RESOURCE_EXHAUSTED,
    503: Code.UNAVAILABLE,
}
"""The gRPC code for each HTTP status.

It matters only for logs, since Envoy refuses the request with any of them.
"""
_PERIODS: Final = {
    number: name.removeprefix("CAPACITY_LIMIT_PERIOD_")
    for name, number in CapacityLimitPeriod.items()
    if number
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An endpoint with the answer that lets its callers in."""

    endpoint: GatewayEndpoint = field(repr=False)
    allowed: bytes | None = field(repr=False)
    """The answer; None if the endpoint has values that a header cannot contain."""
    required: Requirement


class Answers:
    """Makes answers. Only one thread may call it."""

    def __init__(self, upstream: UpstreamHeaders, staleness_header: str | None) -> None:
        self._upstream = upstream
        self._staleness_header = staleness_header
        self._refused = {outcome: _refused(outcome) for outcome in ANSWERS}
        self.prepared = lru_cache(_KEPT)(self._prepare)
        """Returns the `Prepared` for an endpoint's bytes. After a change of the endpoint the bytes differ, so
        an outdated answer is never found.
        """

    def refused(self, outcome: Outcome, prepared: Prepared | None = None, retry_after: int = 0) -> bytes:
        """Return the answer that refuses a request.

        ``outcome`` is the reason, which must not be "allowed".
        """
        answer = self._refused[outcome]
        if prepared is not None:
            answer += _bytes(CheckResponse(dynamic_metadata=_described(prepared.endpoint)))
        if retry_after:
            header = _header("retry-after", str(retry_after))
            answer += _bytes(CheckResponse(denied_response=DeniedHttpResponse(headers=[header])))
        return answer

    def with_staleness(self, answer: bytes, outcome: Outcome, staleness: float) -> bytes:
        """Add the response header with the maximum age of the map in seconds, if it is known."""
        if self._staleness_header is None or math.isinf(staleness):
            return answer
        header = _header(self._staleness_header, f"{staleness:.1f}")
        if outcome is Outcome.ALLOWED:
            ok = OkHttpResponse(response_headers_to_add=[header])
            return answer + _bytes(CheckResponse(ok_response=ok))
        return answer + _bytes(CheckResponse(denied_response=DeniedHttpResponse(headers=[header])))

    def _prepare(self, serialized: bytes) -> Prepared:
        endpoint = GatewayEndpoint.FromString(serialized)
        return Prepared(endpoint, self._allowed(endpoint), Requirement.of(endpoint.auth))

    def _allowed(self, endpoint: GatewayEndpoint) -> bytes | None:
        given = self._upstream
        limit = endpoint.rate_limiting.throughput_limit
        values = (
            (given.endpoint, endpoint.endpoint_id),
            (given.account, endpoint.metadata.account_id),
            (given.limited, endpoint.endpoint_id if limit > 0 else ""),
            (given.throughput, str(limit) if limit > 0 else ""),
        )
        if any(name and _NO_HEADER.search(value) for name, value in values):
            return None
        answer = CheckResponse(status=Status(code=Code.OK), dynamic_metadata=_described(endpoint))
        answer.dynamic_metadata.fields["outcome"].string_value = Outcome.ALLOWED.value
        ok = answer.ok_response
        ok.headers.extend([_header(name, value) for name, value in values if name and value])
        # A header that we set replaces the client's own header of this name. If we do not set it, it is
        # removed.
        ok.headers_to_remove.extend([name for name, value in values if name and not value])
        if given.remove_authorization:
            ok.headers_to_remove.append("authorization")
        return _bytes(answer)


def _refused(outcome: Outcome) -> bytes:
    status, message = ANSWERS[outcome]
    denied = DeniedHttpResponse(
        status=HttpStatus(code=status),
        headers=[_header("content-type", "application/json")],
        body=json.dumps({"code": status, "message": message}),
    )
    if status == 401:  # noqa: PLR2004 (RFC 9110 requires the scheme)
        denied.headers.append(_header("www-authenticate", "Bearer"))
    answer = CheckResponse(status=Status(code=_CODES[status]), denied_response=denied)
    answer.dynamic_metadata.fields["outcome"].string_value = outcome.value
    return _bytes(answer)


def _described(endpoint: GatewayEndpoint) -> Struct:
    """Return an endpoint's values for access logs and rate limit descriptors, without its key."""
    limits = endpoint.rate_limiting
    described = Struct()
    fields = described.fields
    fields["endpoint_id"].string_value = endpoint.endpoint_id
    fields["account_id"].string_value = endpoint.metadata.account_id
    fields["plan_type"].string_value = endpoint.metadata.plan_type
    fields["throughput_limit"].number_value = limits.throughput_limit
    fields["capacity_limit"].number_value = limits.capacity_limit
    fields["capacity_limit_period"].string_value = _PERIODS.get(limits.capacity_limit_period, "")
    if limits.throughput_limit > 0:  # Envoy overrides a descriptor's limit by this
        override = fields["rate_limit"].struct_value.fields
        override["requests_per_unit"].number_value = limits.throughput_limit
        override["unit"].string_value = "SECOND"
    return described


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value),
        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _bytes(answer: CheckResponse) -> bytes:
    serialized: bytes = answer.SerializeToString()
    return serialized
