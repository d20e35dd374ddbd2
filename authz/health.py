"""Decides whether an authorizer is ready and whether it is healthy, which are two different questions.

*Ready* means that it can authorize requests. It stays ready while no feed server is reachable, unless
``MAX_STALENESS`` sets a limit. *Healthy* means that there is nothing that a person has to look at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from authz.check import Outcome

if TYPE_CHECKING:
    from authz.held import Held

_STALE_SECONDS: Final = 30.0
"""Staleness beyond which the authorizer reports itself unhealthy, in seconds, independently of
``MAX_STALENESS``.
"""


class Reason(NamedTuple):
    """A reason why a server or an authorizer is not ready, or not healthy."""

    code: str
    """A word for machines, such as ``not_ready`` or ``stale``, or the key of a lasting trouble."""
    message: str
    """One line for people."""


class AuthorizerHealth:
    """The health of an authorizer. Not thread-safe: it belongs to one event loop."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._troubles: dict[str, str] = {}
        self._stopping = False
        """Whether the process is being stopped. It is then not ready, but still answers checks."""

    def stop(self) -> None:
        """Record that the process is being stopped, so that it is no longer ready."""
        self._stopping = True

    def trouble(self, key: str, message: str | None) -> None:
        """Record a lasting condition, or its end if ``message`` is None."""
        if message is None:
            self._troubles.pop(key, None)
        else:
            self._troubles[key] = message

    def unready(self) -> tuple[Reason, ...]:
        """Return the reasons why Envoy should not send checks. Empty if the authorizer is ready."""
        if self._stopping:
            return (Reason("stopping", "it is being stopped"),)
        match self._held.unready():
            case Outcome.NOT_READY:
                return (Reason("not_ready", "no complete map has come from the feed yet"),)
            case Outcome.TOO_STALE:
                return (Reason("too_stale", f"{self._known()}: beyond MAX_STALENESS everything is refused"),)
        return ()

    def reasons(self) -> tuple[Reason, ...]:
        """Return everything that a person should look at. Empty if the authorizer is healthy."""
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
