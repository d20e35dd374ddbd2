"""Removes passwords and connection strings from logs and messages.

Two kinds of text are hidden: text that *looks* like a secret (a connection string, a ``password=`` pair, an
``Authorization`` value), and text that *is* one of our secrets (every connection string that this process has
read, and its password). The second kind is found in whatever form a driver or the server quotes the secret.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.config.connection_string import ConnectionString

HIDDEN = "[redacted]"

# A connection string is hidden as a whole, since the end of a password with an unescaped @ or quote is
# unknown. The placeholders in our own messages are not connection strings.
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
"""Secrets of this length or more are hidden everywhere. Shorter secrets are hidden only if they are whole
words.
"""


def names_a_secret(name: str) -> bool:
    """Return whether every value called ``name`` must be hidden."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """Hide text that looks like a secret."""
    text = _URL.sub(f"postgresql://{HIDDEN}", text)
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    return _PAIR.sub(rf"\g<1>\g<2>{HIDDEN}", text)


class Redactor:
    """Hides text that looks like a secret, and every text that the given connection strings have ever had."""

    def __init__(self, sources: Iterable[ConnectionString] = ()) -> None:
        self._sources = tuple(sources)

    def __call__(self, text: str) -> str:
        """Return ``text`` without secrets."""
        known = {secret for source in self._sources for secret in source.secrets()}
        # The longest secrets come first, so that a connection string is hidden before its password.
        for secret in sorted(known, key=len, reverse=True):
            if len(secret) >= _DISTINCTIVE:
                text = text.replace(secret, HIDDEN)
            elif secret in text:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
        return redact(text)
