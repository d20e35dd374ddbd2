"""Decides which endpoint a request is for: a pure function of its path and one header.

A request passes through proxies and servers that read a path in different ways: some decode percent signs,
some merge slashes, some resolve dots. If two of them see different endpoints, a client can present one
endpoint's key and use another endpoint. So an id is accepted only if every reading gives the same id. Every
other request is refused. The table of cases is tests/authz/requests.toml.

The rules below are sufficient for these reasons:

- An id consists of 1 to 255 unreserved characters of RFC 3986, without any percent sign. No reader changes
  such characters.
- After the literal prefix and such an id, only dot segments can lead to another id. They are searched for in
  the fully decoded path, which still contains dot segments that appear after fewer decodings.
- A path without the literal prefix must not get one by decoding, merging slashes, dropping ``;parameters`` or
  ignoring case.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_ID: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]{1,255}"
_NAMEABLE: Final = re.compile(_ID)
_VISIBLE: Final = re.compile(r"[!-~]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOTS: Final = re.compile(rb"(?:^|[/\\])\.{1,2}(?=[/\\;?#\0- ]|$)")
"""Matches a dot segment, possibly followed by a part that some readers drop: parameters, a query, blanks, or
a NUL.
"""
_TAIL: Final = re.compile(rb"[;\0- ][^/\\]*")
"""Matches the parts of a segment that some readers drop: parameters, and everything after a blank."""
_SLASHES: Final = re.compile(rb"[/\\]+")
_DECODINGS: Final = 4
"""Maximum number of layers of percent-encoding. No client needs more, and each layer costs a pass over the
path.
"""
_RECALLED: Final = 10_000
"""Maximum number of paths whose ids are cached."""
_SHORT: Final = 256
"""Paths with more than this number of characters are not cached."""


class Unidentified(enum.Enum):
    """The reason why a request names no endpoint."""

    MISSING = enum.auto()
    """It contains no id."""
    UNCLEAR = enum.auto()
    """It can be read in two ways, or its id is malformed."""


@dataclass(frozen=True, slots=True)
class Places:
    """The places where a request may name its endpoint."""

    header: str | None = "portal-application-id"
    """The header's name in lower case; None if headers are ignored."""
    prefix: str | None = "/v1/"
    """The path segment after this prefix is the id; None if paths are ignored. See `is_prefix`."""


def is_prefix(given: str) -> bool:
    """Return whether this can be `Places.prefix`: it must have slashes at both ends, and between them only
    segments that every proxy reads alike.
    """
    return re.fullmatch(rf"/(?:{_ID}/)*", given) is not None


def is_nameable(endpoint_id: str) -> bool:
    """Return whether any request can name this id."""
    return _NAMEABLE.fullmatch(endpoint_id) is not None


def identify(path: str, named: Sequence[str], places: Places) -> str | Unidentified:
    """Return the id of the endpoint that a request is for, or the reason why there is none.

    ``path`` is the path by which Envoy routes (``:path``). ``named`` are all values of the header.
    """
    in_header = None if places.header is None else _from_header(named)
    read = _recalled if len(path) <= _SHORT else _from_path
    in_path = None if places.prefix is None else read(path, places.prefix)
    if in_header is None or in_path is None or in_header == in_path:
        return in_header or in_path or Unidentified.MISSING
    return Unidentified.UNCLEAR


def _from_header(named: Sequence[str]) -> str | Unidentified | None:
    """Read the id in the header. A repeated header is refused, whether Envoy has joined its values or lists
    them.
    """
    if not named:
        return None
    return named[0] if len(named) == 1 and is_nameable(named[0]) else Unidentified.UNCLEAR


def _from_path(path: str, prefix: str) -> str | Unidentified | None:
    if path in ("", "*"):  # CONNECT and OPTIONS
        return None
    if not path.startswith("/") or "#" in path or _VISIBLE.fullmatch(path) is None:
        return Unidentified.UNCLEAR
    literal = path.partition("?")[0]
    decoded = _decoded(literal)
    if decoded is None or _DOTS.search(decoded):
        return Unidentified.UNCLEAR
    cut = _TAIL.sub(b"", decoded)
    if cut[1:2] in (b"/", b"\\"):  # some readers take //host/path for an address
        return Unidentified.UNCLEAR
    if literal.startswith(prefix):
        segment = literal[len(prefix) :].partition("/")[0]
        if not segment and literal == prefix:
            return None
        return segment if is_nameable(segment) else Unidentified.UNCLEAR
    lenient = _SLASHES.sub(b"/", cut).lower()
    return Unidentified.UNCLEAR if lenient.startswith(prefix.lower().encode()) else None


_recalled: Final = lru_cache(_RECALLED)(_from_path)


def _decoded(literal: str) -> bytes | None:
    """Decode all layers of percent-encoding. Return None if the result is not UTF-8, or if there are too many
    layers.

    Strict UTF-8 excludes overlong forms, such as ``%c0%ae``, which some readers decode to a dot.
    """
    if _BAD_ESCAPE.search(literal):
        return None
    decoded = literal.encode()
    for _ in range(_DECODINGS):
        further = unquote_to_bytes(decoded)
        if further == decoded:
            break
        decoded = further
    else:
        return None
    try:
        decoded.decode()
    except UnicodeDecodeError:
        return None
    return decoded
