"""The method of PADS: triggers fill a table of changes, and a listener queries each endpoint in it."""

from __future__ import annotations

import select
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg2

from bench.following import now
from bench.references.mapping_query import ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.following import Notebook
    from bench.rig import Database

_CREATE: Final = Path(__file__).with_name("triggers.sql")
_TABLES: Final = {
    "portal_applications": "note_application",
    "portal_application_settings": "note_settings",
    "accounts": "note_account",
    "pay_plans": "note_plan",
}
_CHANGES: Final = "SELECT id, portal_app_id FROM portal_application_changes ORDER BY id"
_FORGET: Final = "DELETE FROM portal_application_changes WHERE id = ANY(%s)"


@contextmanager
def installed(database: Database) -> Iterator[None]:
    """Install the triggers while the context lasts."""
    database.execute(_CREATE.read_text())
    try:
        yield
    finally:
        for function in _TABLES.values():
            database.execute(f"DROP FUNCTION {function} CASCADE")


def follow(notebook: Notebook, url: str) -> None:
    """Listen, take the waiting changes, and query their endpoints one by one."""
    with closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        session.autocommit = True
        cursor.execute(f"PREPARE endpoint(text) AS {ENDPOINT}")
        cursor.execute("LISTEN portal_application_changes")
        notebook.following()
        while True:
            cursor.execute(_CHANGES)
            changes = cursor.fetchall()
            for endpoint in dict.fromkeys(endpoint for _, endpoint in changes):
                cursor.execute("EXECUTE endpoint(%s)", (endpoint,))
                cursor.fetchall()
                notebook.arrived((endpoint,), now())
            if changes:
                cursor.execute(_FORGET, ([number for number, _ in changes],))
            else:
                select.select([session], [], [])
                session.poll()
            session.notifies.clear()
