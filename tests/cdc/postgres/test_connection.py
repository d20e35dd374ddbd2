"""What is asked of a connection from another thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from psycopg2.errors import QueryCanceled

from cdc.postgres.connection import cancel_soon

if TYPE_CHECKING:
    from tests.plugins.postgres import Database


def test_a_statement_is_cancelled_that_is_sent_after_the_first_asking(database: Database) -> None:
    """Whoever stops cannot know whether the statement has arrived: the server ignores what comes before."""
    session = database.connect()
    asked, ended = threading.Event(), threading.Event()

    def look() -> bool:
        asked.set()
        return ended.is_set()

    cancel_soon(session, look)
    assert asked.wait(5)
    with pytest.raises(QueryCanceled, match="user request"), session.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(20)")
    ended.set()
