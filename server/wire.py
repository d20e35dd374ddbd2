"""The part of protobuf's wire format that we write by hand: varints, and fields with a length.

A message is the concatenation of its fields, so a field that is serialized once can be sent any number of
times.
"""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Serialize a number with seven bits in each byte, least significant first. The eighth bit is set in all
    bytes but the last.
    """
    groups = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


SHORT = tuple(varint(length) for length in range(1024))
"""The serialized lengths of nearly all fields."""


def field(tag: bytes, content: bytes) -> bytes:
    """Serialize a field with a length: text, bytes or a message."""
    length = len(content)
    return b"".join((tag, SHORT[length] if length < len(SHORT) else varint(length), content))
