"""The bearer tokens that clients authenticate with.

The file has one ``name:token`` on each line; empty lines and lines that begin with ``#`` are ignored. Logs
show the name. A name may have several tokens, so that a client can move from one to the next. Only digests
are kept in memory, so neither a repr nor a core dump reveals a token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cdc.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTING: Final = "AUTH_TOKENS_FILE"
MIN_LENGTH: Final = 32
"""Minimum length of a token in characters, which is 128 bits if it is hexadecimal. Make one with
`openssl rand -hex 32`.
"""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN: Final = re.compile(rf"[A-Za-z0-9._~+/-]{{{MIN_LENGTH},512}}=*")  # RFC 6750, section 2.1


@dataclass(frozen=True)
class AcceptedToken:
    """A valid token's name and digest."""

    name: str
    digest: bytes = field(repr=False)


class Tokens:
    """All valid tokens."""

    def __init__(self, tokens: Sequence[AcceptedToken]) -> None:
        self._tokens = tuple(tokens)
        self._digests = frozenset(token.digest for token in tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: AcceptedToken) -> bool:
        return token.digest in self._digests

    def find(self, presented: str) -> AcceptedToken | None:
        """Return the matching token, or None. The duration of the search reveals nothing about any token."""
        digest = _digest(presented)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def parse(content: bytes) -> Tokens:
    """Parse the file's content.

    Raises:
        ConfigurationError: a line is wrong (the text has the number of the first such line), or there is no
        token. A file without tokens would lock out all clients, and is probably still being written.

    """
    tokens: dict[bytes, AcceptedToken] = {}
    for number, raw in enumerate(content.split(b"\n"), 1):
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in line.partition(":"))
        where = f"{SETTING}: line {number}"
        if not colon or _NAME.fullmatch(name) is None:
            raise ConfigurationError(
                f"{where} is not name:token, the name being 1 to 64 of A-Z, a-z, 0-9, ., _ and -"
            )
        if len(token) < MIN_LENGTH:
            raise ConfigurationError(
                f"{where}: the token has fewer than {MIN_LENGTH} characters; make one with:"
                " openssl rand -hex 32"
            )
        if _TOKEN.fullmatch(token) is None:
            raise ConfigurationError(f"{where}: the token is not 32 to 512 of A-Z, a-z, 0-9 and ._~+/-")
        digest = _digest(token)
        if digest in tokens:
            raise ConfigurationError(f"{where}: the token is in the file twice; give each client its own")
        tokens[digest] = AcceptedToken(name, digest)
    if not tokens:
        raise ConfigurationError(f"{SETTING}: holds no token; add a line name:token for each client")
    return Tokens(tuple(tokens.values()))


def _digest(token: str) -> bytes:
    # Tokens are long and random, so a plain hash is enough. All digests have the same length.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
