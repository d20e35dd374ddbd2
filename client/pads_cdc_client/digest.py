"""The state digest: a number that is equal for two maps only if the maps are equal.

It is the sum modulo 2^128 of a hash of each endpoint, so a change costs two hashes, however large the map is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_BYTES = 16
_EMPTY = hashlib.blake2b(digest_size=_BYTES)
"""An empty hash that is copied for each endpoint. A copy takes half the time of a new hash."""


class Digest:
    """The digest of a map that changes. It starts as the digest of the empty map."""

    def __init__(self) -> None:
        self._sum = 0

    @classmethod
    def of(cls, endpoints: Mapping[str, bytes]) -> Digest:
        """Compute the digest of a whole map, in about a microsecond for each endpoint."""
        digest = cls()
        for endpoint_id, endpoint in endpoints.items():
            digest.change(endpoint_id, None, endpoint)
        return digest

    def change(self, endpoint_id: str, before: bytes | None, after: bytes | None) -> None:
        """Record that an endpoint has changed from ``before`` to ``after``. None means that there is no
        endpoint.
        """
        key = endpoint_id.encode()
        key = len(key).to_bytes(4, "big") + key
        if before is not None:
            hashed = _EMPTY.copy()
            hashed.update(key + before)
            self._sum -= int.from_bytes(hashed.digest(), "big")
        if after is not None:
            hashed = _EMPTY.copy()
            hashed.update(key + after)
            self._sum += int.from_bytes(hashed.digest(), "big")

    def __bytes__(self) -> bytes:
        return (self._sum % (1 << 8 * _BYTES)).to_bytes(_BYTES, "big")
