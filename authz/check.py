"""Decides whether a request may pass: pure functions of the endpoint and the request's credentials."""

from __future__ import annotations

import enum
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pads_cdc_client.pb.gateway_endpoint_pb2 import Auth

_SCHEME: Final = b"bearer "


class Outcome(enum.StrEnum):
    """The outcome of a check. The values are labels of a metric."""

    ALLOWED = "allowed"
    MISSING_ID = "missing_id"
    UNCLEAR_ID = "unclear_id"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    NOT_READY = "not_ready"
    """There is no complete map yet, so an unknown id proves nothing."""
    TOO_STALE = "too_stale"
    UNSENDABLE = "unsendable"
    """The endpoint has values that no header can carry."""
    FAULT = "fault"
    """A bug of ours. The request is refused."""


ANSWERS: Final = {
    Outcome.MISSING_ID: (400, "the request does not name one endpoint"),
    Outcome.UNCLEAR_ID: (400, "the request does not name one endpoint"),
    Outcome.UNAUTHORIZED: (401, "unauthorized"),
    Outcome.NOT_FOUND: (404, "endpoint not found"),
    Outcome.RATE_LIMITED: (429, "rate limit exceeded"),
    Outcome.NOT_READY: (503, "authorization is not available"),
    Outcome.TOO_STALE: (503, "authorization is not available"),
    Outcome.UNSENDABLE: (503, "authorization is not available"),
    Outcome.FAULT: (503, "authorization is not available"),
}
"""HTTP status and message of each refusal. A caller learns no more than this."""


def authorized(auth: Auth, authorization: Sequence[bytes], subject: Sequence[bytes]) -> bool:
    """Return whether a request's credentials satisfy its endpoint.

    ``authorization`` has all values of that header. ``subject`` has all values of the header in which Envoy
    passes the subject of a verified token. A header with two values counts as missing.
    """
    match auth.WhichOneof("auth_type"):
        case "no_auth":
            return True
        case "static_api_key":
            return len(authorization) == 1 and _is_key(authorization[0], auth.static_api_key.api_key.encode())
        case "jwt":
            return len(subject) == 1 and _is_listed(subject[0], auth.jwt.authorized_users)
    return False  # unset, or of a kind that this server does not know


def _is_key(shown: bytes, key: bytes) -> bool:
    """Compare the key with and without the scheme, in constant time."""
    bare = hmac.compare_digest(shown, key)
    scheme = shown[: len(_SCHEME)].lower() == _SCHEME
    behind = hmac.compare_digest(shown[len(_SCHEME) :], key) and scheme
    return bool(key) and (bare or behind)


def _is_listed(subject: bytes, users: object) -> bool:
    try:
        name = subject.decode()
    except UnicodeDecodeError:
        return False
    return bool(name) and name in users  # type: ignore[operator] # protobuf's map
