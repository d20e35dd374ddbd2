"""One-row commits at a steady rate, without waiting for their arrival."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from bench.following import now
from bench.portal import endpoint_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bench.rig import Database

_ROTATE: Final = "EXECUTE rotate(%s, %s)"
_PREPARE: Final = """
PREPARE rotate(text, text) AS
UPDATE portal_application_settings SET secret_key = $1 WHERE application_id = $2
"""


class Commit(NamedTuple):
    """The times when a commit was sent and when it returned."""

    sent: float
    returned: float


class Rotation:
    """A thread that gives endpoints new keys, one after the other, until the context ends or no endpoint is
    left.

    After a slow commit the next ones follow at once, so that the rate stays the same.
    """

    def __init__(self, database: Database, numbers: Iterable[int], rate: float) -> None:
        """Rotate ``rate`` keys a second."""
        self._session = database.connect()
        self._numbers = numbers
        self._rate = rate
        self._done = threading.Event()
        self._stamp = f"{now():.6f}"
        self.commits: dict[str, Commit] = {}
        """The commits by endpoint."""
        self._thread = ThreadPoolExecutor(1)
        self._ended = self._thread.submit(self._rotate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def join(self) -> None:
        """Wait for the end of the thread. With an infinite number of endpoints, it ends only with the
        context.
        """
        self._ended.result()
        self._thread.shutdown()
        self._session.close()

    def key(self, endpoint: str) -> str:
        """Return the key that an endpoint gets, which is unique among endpoints and rotations."""
        return f"{self._stamp} {endpoint}"

    def _rotate(self) -> None:
        with self._session.cursor() as cursor:
            cursor.execute(_PREPARE)
            began = now()
            for place, number in enumerate(self._numbers):
                if self._done.wait(max(0.0, began + place / self._rate - now())):
                    break
                endpoint = endpoint_id(number)
                sent = now()
                cursor.execute(_ROTATE, (self.key(endpoint), endpoint))
                self.commits[endpoint] = Commit(sent, now())


def since_returned(commits: Mapping[str, Commit], arrived: Mapping[str, float]) -> list[float]:
    """Return milliseconds from each commit's return to the endpoint's arrival. They are negative if the
    endpoint arrived first.

    A slot delivers a commit as soon as it is flushed, often before the commit returns to its session.
    """
    return [1000 * (arrived[endpoint] - commit.returned) for endpoint, commit in commits.items()]


def since_sent(commits: Mapping[str, Commit], arrived: Mapping[str, float]) -> list[float]:
    """Return milliseconds from the sending of each commit to the endpoint's arrival."""
    return [1000 * (arrived[endpoint] - commit.sent) for endpoint, commit in commits.items()]
