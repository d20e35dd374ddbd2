"""The digest of one endpoint. The state digest is the sum of these digests."""

from __future__ import annotations

import struct
from hashlib import blake2b

DIGEST_BYTES = 16
_LENGTH = struct.Struct(">I")


def entry_digest(endpoint_id: str, payload: bytes) -> bytes:
    """Hash one endpoint: BLAKE2b-128 over the id's length (4 bytes, big-endian), the id in UTF-8 and the
    payload.

    This is part of the feed's contract. The state digest is the sum of these digests modulo 2^128, as a
    big-endian number.
    """
    key = endpoint_id.encode()
    return blake2b(_LENGTH.pack(len(key)) + key + payload, digest_size=DIGEST_BYTES).digest()
