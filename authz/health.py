"""May Envoy send checks here, and is there anything for a person to look at? Two questions.

*Ready* means that requests can be let in: it stays good while the feed is away, unless ``MAX_STALENESS``
is set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from authz.check import Outcome

if TYPE_CHECKING:
    from authz.held import Held

_STALE_SECONDS: Final = 30.0
"""Staleness that people are told of, whatever ``MAX_STALENESS`` says; the server has the same."""


class Reason(NamedTuple):
    """One thing that is wrong with a server or an authorizer."""

    code: str
    """A word for machines, such as ``not_ready`` or ``stale``, or the key of a lasting trouble."""
    message: str
    """One line for people."""


class AuthorizerHealth:
    """Answers from what is held; belongs to one event loop."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._troubles: dict[str, str] = {}
        self._stopping = False
        """Set when no new connections should come; checks go on being answered."""

    def stop(self) -> None:
        """Note that the process is being stopped: it is not ready any more."""
        self._stopping = True

    def trouble(self, key: str, message: str | None) -> None:
        """Note a condition that lasts, or its end (None)."""
        if message is None:
            self._troubles.pop(key, None)
        else:
            self._troubles[key] = message

    def unready(self) -> tuple[Reason, ...]:
        """Say why nobody should connect; nothing where all is well."""
        if self._stopping:
            return (Reason("stopping", "it is being stopped"),)
        match self._held.unready():
            case Outcome.NOT_READY:
                return (Reason("not_ready", "no complete map has come from the feed yet"),)
            case Outcome.TOO_STALE:
                return (Reason("too_stale", f"{self._known()}: beyond MAX_STALENESS everything is refused"),)
        return ()

    def reasons(self) -> tuple[Reason, ...]:
        """Say what a person should look at, too."""
        found = list(self.unready())
        if not found and self._held.staleness() > _STALE_SECONDS:
            found.append(Reason("stale", f"{self._known()}: a key that was revoked since then still works"))
        found.extend(Reason(key, message) for key, message in self._troubles.items())
        return tuple(found)

    def _known(self) -> str:
        staleness = self._held.staleness()
        if math.isinf(staleness):
            return "the map was never known to be exact"
        return f"the map was last known to be exact {staleness:.0f} s ago"
