"""Decides whether a request may pass: pure functions of the endpoint and the request's credentials."""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from pads_cdc_client.pb.gateway_endpoint_pb2 import Auth

_SCHEME: Final = b"bearer "


class Outcome(enum.StrEnum):
    """The outcome of a check. The values are labels of a metric."""

    __hash__ = str.__hash__  # each check hashes it, and Enum's own __hash__ is not in C

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
    """The endpoint has values that a header cannot contain."""
    FAULT = "fault"
    """An unexpected exception in our own code. The request is refused."""


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


@dataclass(frozen=True, slots=True)
class Requirement:
    """The credentials that the caller of an endpoint must present. The default authorizes nobody."""

    public: bool = False
    key: bytes = field(default=b"", repr=False)
    """The key, if the endpoint requires one."""
    users: Container[str] = field(default=(), repr=False)
    """The subjects whose tokens are accepted, if the endpoint requires a token."""

    @classmethod
    def of(cls, auth: Auth) -> Requirement:
        """Return the requirement of an endpoint. The result refers to ``auth``, which must not change."""
        match auth.WhichOneof("auth_type"):
            case "no_auth":
                return cls(public=True)
            case "static_api_key":
                return cls(key=auth.static_api_key.api_key.encode())
            case "jwt":
                return cls(users=auth.jwt.authorized_users)
        return cls()  # it is unset, or of a kind that this server does not know

    def met_by(self, authorization: Sequence[bytes], subject: Sequence[bytes]) -> bool:
        """Return whether a request's credentials satisfy this requirement.

        ``authorization`` has all values of that header. ``subject`` has all values of the header in which
        Envoy passes the subject of a verified token. A header with two values counts as missing.
        """
        if self.key:
            return len(authorization) == 1 and _is_key(authorization[0], self.key)
        return self.public or (len(subject) == 1 and _is_listed(subject[0], self.users))


def _is_key(shown: bytes, key: bytes) -> bool:
    """Compare the header's value, with and without ``Bearer``, in a time that does not depend on the key."""
    if hmac.compare_digest(shown, key):
        return True
    scheme = shown[: len(_SCHEME)].lower() == _SCHEME
    return scheme and hmac.compare_digest(shown[len(_SCHEME) :], key)


def _is_listed(subject: bytes, users: Container[str]) -> bool:
    try:
        name = subject.decode()
    except UnicodeDecodeError:
        return False
    return bool(name) and name in users
