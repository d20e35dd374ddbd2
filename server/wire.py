"""The little of protobuf's wire format that is written by hand: varints, and fields that a length precedes.

A message's bytes may be concatenated, so what is serialized once is sent as it is ever after.
"""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Seven bits a byte, least significant first; the eighth bit says that more follow."""
    groups = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


SHORT = tuple(varint(length) for length in range(1024))
"""The lengths of nearly all fields, looked up."""


def field(tag: bytes, content: bytes) -> bytes:
    """Serialize a field with a length: text, bytes or a message."""
    length = len(content)
    return b"".join((tag, SHORT[length] if length < len(SHORT) else varint(length), content))
