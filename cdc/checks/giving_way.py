"""Reads of the whole mapping by a command. As in a server, they end when somebody waits for their locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cdc.errors import SourceError, gives_way
from cdc.postgres.lock_watch import LockWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.postgres.database import Database

_Result = TypeVar("_Result")

_TRIES: Final = 20
"""A try that meets a lock takes 0.4 s: together they outlast most migrations."""


class _Nobody:
    """Receives no reports: what ends a read is in its error."""

    def trouble(self, key: str, message: str | None) -> None:
        """Do nothing."""


def giving_way(database: Database, blocked: str, read: Callable[[], _Result]) -> _Result:
    """Return what ``read`` returns. It is ended and repeated when somebody waits for its locks.

    ``database`` is the one that it reads, ``blocked`` the text of the query `Blocked`.

    Raises:
        SourceError, Refusal: it cannot be read, or others went first again and again.

    """
    watch = LockWatch(database.connections, blocked, _Nobody())
    watch.start()
    try:
        for _ in range(_TRIES - 1):
            try:
                return read()
            except SourceError as error:
                if not gives_way(error):
                    raise
        return read()
    finally:
        watch.stop()
        watch.join()
