"""A poller, which fetches everything at an interval and compares it."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2

from bench.following import now
from cdc.mapping.mapping import load

if TYPE_CHECKING:
    from bench.following import Notebook


def follow(notebook: Notebook, url: str, interval: float) -> None:
    """Poll every ``interval`` seconds."""
    held: dict[str, tuple[Any, ...]] = {}
    query = load("grove").queries["Endpoints"]
    pause = threading.Event()
    with closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        session.autocommit = True
        while True:
            began = time.monotonic()
            cursor.execute(query)
            found = {row[0]: row for row in cursor.fetchall()}
            if held:
                changed = [endpoint for endpoint, row in found.items() if held.get(endpoint) != row]
                notebook.arrived([*changed, *(held.keys() - found.keys())], now())
            else:
                notebook.following()
            held = found
            pause.wait(interval - (time.monotonic() - began))
