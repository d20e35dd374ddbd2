"""One-row commits at a steady rate, whatever becomes of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.following import now
from bench.portal import endpoint_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg2.extensions import connection

_ROTATE: Final = "EXECUTE rotate(%s, %s)"
_PREPARE: Final = """
PREPARE rotate(text, text) AS
UPDATE portal_application_settings SET secret_key = $1 WHERE application_id = $2
"""


class Commit(NamedTuple):
    """When a commit was asked for, and when its answer was here."""

    sent: float
    returned: float


def rotate(session: connection, numbers: Iterable[int], rate: float) -> dict[str, Commit]:
    """Give each of these endpoints a new key, ``rate`` a second; returns each one's commit.

    Commits that are late are made up for, so that a slow one does not lower the rate.
    """
    commits: dict[str, Commit] = {}
    with session.cursor() as cursor:
        cursor.execute(f"DEALLOCATE ALL; {_PREPARE}")
        began = now()
        for place, number in enumerate(numbers):
            time.sleep(max(0.0, began + place / rate - now()))
            endpoint = endpoint_id(number)
            sent = now()
            cursor.execute(_ROTATE, (f"{began:.9f}", endpoint))
            commits[endpoint] = Commit(sent, now())
    return commits


def since_returned(commits: Mapping[str, Commit], arrived: Mapping[str, float]) -> list[float]:
    """Return milliseconds from each commit's return to the endpoint's arrival: below 0 where that was first.

    A slot delivers a commit as soon as it is flushed, often before its session hears of it.
    """
    return [1000 * (arrived[endpoint] - commit.returned) for endpoint, commit in commits.items()]


def since_sent(commits: Mapping[str, Commit], arrived: Mapping[str, float]) -> list[float]:
    """Return milliseconds from the moment when each commit was asked for to the endpoint's arrival."""
    return [1000 * (arrived[endpoint] - commit.sent) for endpoint, commit in commits.items()]
