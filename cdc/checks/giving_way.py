"""Reads the whole mapping for a command. As in a server, a read ends when another session waits for its
locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

from cdc.errors import gives_way
from cdc.postgres.lock_watch import LockWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.postgres.database import Database

_Result = TypeVar("_Result")

_TRIES: Final = 20
"""Maximum number of attempts. Together with the pauses, they last longer than most migrations."""
_PAUSE: Final = 0.4
"""Seconds between two attempts."""


class _Nobody:
    """Ignores reports, because the error of a read already says what ended it."""

    def trouble(self, key: str, message: str | None) -> None:
        """Do nothing."""


def giving_way(database: Database, blocked: str, read: Callable[[], _Result]) -> _Result:
    """Return the result of ``read``. When another session waits for its locks, it is ended and repeated.

    ``database`` is the database that ``read`` reads, and ``blocked`` is the text of the query `Blocked`.

    Raises:
        SourceError, Refusal: the database cannot be read, or every attempt was ended.

    """
    patiently = Retrying(
        retry=retry_if_exception(gives_way),
        stop=stop_after_attempt(_TRIES),
        wait=wait_fixed(_PAUSE),
        reraise=True,
    )
    watch = LockWatch(database.connections, blocked, _Nobody())
    watch.start()
    try:
        return patiently(read)
    finally:
        watch.stop()
        watch.join()
