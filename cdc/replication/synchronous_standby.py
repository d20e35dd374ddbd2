"""Finds out whether Postgres would take us for a synchronous standby, so that commits would wait for our
confirmations.

A wal sender counts as a synchronous standby if ``synchronous_standby_names`` contains its
``application_name`` or ``*``, and if its client has reported a flush position. We report one only to confirm
the slot, and withdraw it with the next message (`cdc.replication.feedback`), so that Postgres shows us as
``async``, like pg_receivewal. But for a moment at each confirmation we could count as one, and Postgres would
acknowledge commits that no real standby has.

So the slot is not read while the setting would choose us. A position is confirmed only after the setting has
been queried, and the query must begin after the position was received (`SlotReader.judge`). If a commit is
made while the setting chooses us, it is beyond every confirmed position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

REASON = "synchronous_standby"
"""The reason of the error, the key of the trouble in `/healthz`, and the name of the check."""

_TOKEN = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[A-Za-z0-9_$\x80-\U0010ffff]+|\*)|(?P<mark>[(),])')
"""The tokens of the setting, as in Postgres' own scanner (``syncrep_scanner.l``)."""


@dataclass(frozen=True)
class Sender:
    """A session that may read the slot, as its server describes it."""

    pid: int
    """The server process of the session."""
    application: str
    """The session's ``application_name``."""
    synchronous_names: str
    """``synchronous_standby_names``; empty on a standby, whose wal senders never count as synchronous."""

    @classmethod
    def of(cls, rows: list[tuple[Any, ...]]) -> Sender:
        """Make a value from the rows of the query `Sender`."""
        [row] = rows
        return cls(*row)


def names(setting: str) -> tuple[str, ...]:
    """Return the names in a valid ``synchronous_standby_names``, such as ``a, b``, ``2 (a, b)`` or ``ANY 1
    (*)``.
    """
    tokens = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(setting)]
    start = tokens.index(("mark", "(")) + 1 if ("mark", "(") in tokens else 0
    return tuple(
        text[1:-1].replace('""', '"') if kind == "quoted" else text
        for kind, text in tokens[start:]
        if kind != "mark"
    )


def chosen(setting: str, application: str) -> bool:
    """Return whether Postgres would choose a wal sender of this name. Postgres ignores the case of ASCII
    letters.
    """
    return any(name == "*" or name.lower() == application.lower() for name in names(setting))


def refusal(sender: Sender) -> str | None:
    """Return an error text with its remedy; None if Postgres would not choose us."""
    if not chosen(sender.synchronous_names, sender.application):
        return None
    return (
        f"synchronous_standby_names is '{sender.synchronous_names}', so Postgres would take us"
        f" ({sender.application}) for a synchronous standby, and commits would wait for us: the slot is not"
        " read, and the mapping is polled; name the physical standbys in it, and only them, and reload;"
        " SELECT application_name FROM pg_stat_replication; lists who is connected"
    )
