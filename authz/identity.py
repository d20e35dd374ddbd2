"""Which endpoint a request means: one pure function of its path and one header.

A request passes proxies and servers that read a path differently: one decodes percent signs, one merges
slashes, one resolves dots. If two of them see different endpoints, a client can show one endpoint's key and
use another endpoint. So an id counts only where every reading gives the same one; whatever else a request
says is refused, never guessed. The table of cases is tests/authz/requests.toml.

Why the rules below are enough:

- An id is 1 to 255 unreserved characters of RFC 3986, without any percent sign. No reader changes those.
- Behind the literal prefix and such an id, only dot segments can lead to another id. They are looked for in
  the path as it is when nothing is left to decode: a dot segment that shows up earlier is still there then.
- A path without the literal prefix must not get one by decoding, merging slashes, dropping ``;parameters`` or
  ignoring case.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_ID: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]{1,255}"
_NAMEABLE: Final = re.compile(_ID)
_VISIBLE: Final = re.compile(r"[!-~]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOTS: Final = re.compile(rb"(?:^|[/\\])\.{1,2}(?=[/\\;?#\0- ]|$)")
"""A dot segment, also with what some readers cut off behind it: parameters, a query, blanks, a NUL."""
_TAIL: Final = re.compile(rb"[;\0- ][^/\\]*")
"""What some readers cut off a segment: parameters, and what begins with a blank."""
_SLASHES: Final = re.compile(rb"[/\\]+")
_DECODINGS: Final = 4
"""Times that a path may be percent-encoded; nobody needs more, and each costs a pass over the path."""


class Unidentified(enum.Enum):
    """Why a request means no endpoint."""

    MISSING = enum.auto()
    """It names none."""
    UNCLEAR = enum.auto()
    """It can be read in two ways, or names what cannot be an id."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a request may name its endpoint."""

    header: str | None = "portal-application-id"
    """The header's name in lower case; None where headers do not count."""
    prefix: str | None = "/v1/"
    """The path segment behind it is the id; None where the path does not count. See `is_prefix`."""


def is_prefix(given: str) -> bool:
    """Whether this can be `Places.prefix`: it begins and ends with a slash, and is read in one way only."""
    return re.fullmatch(rf"/(?:{_ID}/)*", given) is not None


def is_nameable(endpoint_id: str) -> bool:
    """Whether a request can name this id at all."""
    return _NAMEABLE.fullmatch(endpoint_id) is not None


def identify(path: str, named: Sequence[str], places: Places) -> str | Unidentified:
    """Return the id of the endpoint that a request means.

    ``path`` is what Envoy routes by (``:path``), ``named`` has every value of the header.
    """
    in_header = None if places.header is None else _from_header(named)
    in_path = None if places.prefix is None else _from_path(path, places.prefix)
    if Unidentified.UNCLEAR in (in_header, in_path):
        return Unidentified.UNCLEAR
    if in_header is not None and in_path is not None and in_header != in_path:
        return Unidentified.UNCLEAR
    return in_header or in_path or Unidentified.MISSING


def _from_header(named: Sequence[str]) -> str | Unidentified | None:
    """Envoy hands doubled headers over joined by commas, or one by one; both are refused."""
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
    if cut[1:2] in (b"/", b"\\"):  # //host/path is an address to some
        return Unidentified.UNCLEAR
    if literal.startswith(prefix):
        segment = literal[len(prefix) :].partition("/")[0]
        if not segment and literal == prefix:
            return None
        return segment if is_nameable(segment) else Unidentified.UNCLEAR
    lenient = _SLASHES.sub(b"/", cut).lower()
    return Unidentified.UNCLEAR if lenient.startswith(prefix.lower().encode()) else None


def _decoded(literal: str) -> bytes | None:
    """Decode until nothing is left to decode; None where that is not well-formed UTF-8, or takes too long.

    Strict UTF-8 keeps out overlong forms, by which ``%c0%ae`` is a dot to some.
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
