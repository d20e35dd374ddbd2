"""A bare psycopg2 reader: the best that Python can do with a slot, and the cost of re-reading."""

from __future__ import annotations

import select
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from bench.following import now
from bench.references.mapping_query import ENDPOINT
from bench.references.recvlogical import options
from cdc.changes import Update
from cdc.replication import wal2json

if TYPE_CHECKING:
    from psycopg2.extras import ReplicationCursor

    from bench.following import Notebook

_WAIT: Final = 1.0


def follow(notebook: Notebook, url: str, slot: str) -> None:
    """Record each update of settings when its row arrives, before its commit does."""
    with closing(psycopg2.connect(url, connection_factory=LogicalReplicationConnection)) as connection:
        cursor = connection.cursor()
        cursor.start_replication(slot_name=slot, decode=False, options=options())
        notebook.following()
        while True:
            raw = _next(cursor)
            at = now()
            if (application := _application(raw)) is not None:
                notebook.arrived((application,), at)


def follow_and_query(notebook: Notebook, url: str, slot: str) -> None:
    """After each commit, read its endpoint again with a prepared statement, without checking the snapshot."""
    with (
        closing(psycopg2.connect(url, connection_factory=LogicalReplicationConnection)) as connection,
        closing(psycopg2.connect(url)) as session,
    ):
        session.autocommit = True
        query, cursor = session.cursor(), connection.cursor()
        query.execute(f"PREPARE endpoint(text) AS {ENDPOINT}")
        cursor.start_replication(slot_name=slot, decode=False, options=options())
        notebook.following()
        affected: set[str] = set()
        while True:
            raw = _next(cursor)
            if (application := _application(raw)) is not None:
                affected.add(application)
            elif raw.startswith(b'{"action":"C"'):
                for endpoint in affected:
                    query.execute("EXECUTE endpoint(%s)", (endpoint,))
                    query.fetchall()
                    notebook.arrived((endpoint,), now())
                affected.clear()


def read(url: str, slot: str, end: int, plugin: str) -> float:
    """Read a slot up to a position and discard the messages; return the seconds that this took."""
    began = time.monotonic()
    with closing(psycopg2.connect(url, connection_factory=LogicalReplicationConnection)) as connection:
        cursor = connection.cursor()
        cursor.start_replication(slot_name=slot, decode=False, options=options(plugin))
        while cursor.wal_end < end:
            # A keepalive is not a message, but it reports the stream's position too.
            if cursor.read_message() is None and cursor.wal_end < end:
                select.select([cursor], [], [], _WAIT)
        cursor.send_feedback(flush_lsn=end, force=True)
    return time.monotonic() - began


def _next(cursor: ReplicationCursor) -> bytes:
    while (message := cursor.read_message()) is None:
        select.select([cursor], [], [], _WAIT)
    payload: bytes = message.payload
    return payload


def _application(raw: bytes) -> str | None:
    match wal2json.parse(raw):
        case Update(table="portal_application_settings", columns=columns):
            return next(str(one.value) for one in columns if one.name == "application_id")
    return None
