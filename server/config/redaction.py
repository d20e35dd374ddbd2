"""Keeps passwords and connection strings out of whatever people and machines get to read.

Two nets: what a secret *looks* like (a connection string, a ``password=`` pair, an ``Authorization`` value),
and what our own secrets *are* (every connection string that this process has read, and its password). The
second one needs no guess at the form in which a driver or the server quotes it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.config.connection_string import ConnectionString

HIDDEN = "[redacted]"

# A connection string goes as a whole: where the password ends is unknown if it holds an unescaped @ or quote.
# What our own messages tell people to type is none.
_URL = re.compile(r"\b(?i:postgres(?:ql)?)://(?!USER:PASSWORD@HOST:5432/DATABASE\b)\S*")
_USERINFO = re.compile(r"(?<=://)(?!USER:PASSWORD@)[^\s/]*@")
_PAIR = re.compile(
    r"""\b(pgpassword|password|passwd|sslpassword|secret_key|api_key|authorization)(["']?\s*[=:]\s*)"""
    r"""('(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|(?:bearer\s+|basic\s+)?[^\s,;}]+)""",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(
    r"password|passwd|secret|api_key|token|authorization|connection_string|dsn", re.IGNORECASE
)

_DISTINCTIVE = 6
"""Secrets of this length and up are hidden wherever they occur, shorter ones only where they stand alone."""


def names_a_secret(name: str) -> bool:
    """Tell whether a value called ``name`` is to be hidden whatever it is."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """Hide what looks like a secret."""
    text = _URL.sub(f"postgresql://{HIDDEN}", text)
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    return _PAIR.sub(rf"\g<1>\g<2>{HIDDEN}", text)


class Redactor:
    """Hides what looks like a secret and whatever the given connection strings have ever been read as."""

    def __init__(self, sources: Iterable[ConnectionString] = ()) -> None:
        self._sources = tuple(sources)

    def __call__(self, text: str) -> str:
        """Return ``text`` without secrets."""
        known = {secret for source in self._sources for secret in source.secrets()}
        # The longest first: a connection string before the password that is a part of it.
        for secret in sorted(known, key=len, reverse=True):
            if len(secret) >= _DISTINCTIVE:
                text = text.replace(secret, HIDDEN)
            elif secret in text:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
        return redact(text)
