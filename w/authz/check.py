"""Whether a request may pass: pure functions of the endpoint and of what the request shows."""

from __future__ import annotations

import enum
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pads_cdc_client.pb.gateway_endpoint_pb2 import Auth

_SCHEME: Final = b"bearer "


class Outcome(enum.StrEnum):
    """Every way in which a check ends; the values are labels of a metric."""

    ALLOWED = "allowed"
    MISSING_ID = "missing_id"
    UNCLEAR_ID = "unclear_id"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    NOT_READY = "not_ready"
    """No complete map yet: an unknown id proves nothing."""
    TOO_STALE = "too_stale"
    UNSENDABLE = "unsendable"
    """The endpoint has values that no header can carry."""
    FAULT = "fault"
    """A bug of ours; nobody gets in by it."""


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
"""HTTP status and message of everything that is refused. A caller learns nothing beyond that."""


def authorized(auth: Auth, authorization: Sequence[bytes], subject: Sequence[bytes]) -> bool:
    """Tell whether what a request shows is what its endpoint asks for.

    ``authorization`` has every value of that header, ``subject`` every value of the header by which Envoy
    tells whose token it has verified. A doubled one shows nothing.
    """
    match auth.WhichOneof("auth_type"):
        case "no_auth":
            return True
        case "static_api_key":
            return len(authorization) == 1 and _is_key(authorization[0], auth.static_api_key.api_key.encode())
        case "jwt":
            return len(subject) == 1 and _is_listed(subject[0], auth.jwt.authorized_users)
    return False  # also a kind that is newer than this server


def _is_key(shown: bytes, key: bytes) -> bool:
    """Compare with and without the scheme, in a time that does not depend on where the bytes differ."""
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
