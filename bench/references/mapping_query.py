"""The limit of re-querying: reads or copies the mapping's rows as fast as psycopg2 can, and discards them."""

from __future__ import annotations

import io
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg2

from cdc.mapping.mapping import load
from cdc.postgres.column_types import as_bytes

if TYPE_CHECKING:
    from bench.rig import Database

_MAPPING: Final = load("grove").queries["Endpoints"]
ENDPOINT: Final = f"SELECT * FROM ({_MAPPING}) AS mapping WHERE endpoint_id = $1"
_PLAN: Final = f"SELECT * FROM ({_MAPPING}) AS mapping WHERE plan_type = '{{plan}}'"


def fetch(database: Database, plan: str | None = None) -> float:
    """Fetch a plan's rows, or all rows; return the seconds that this took."""
    with closing(psycopg2.connect(database.url)) as session, session.cursor() as cursor:
        began = time.monotonic()
        cursor.execute(_query(plan))
        cursor.fetchall()
        return time.monotonic() - began


def rows(database: Database, plan: str) -> list[tuple[Any, ...]]:
    """Return a plan's rows with the mapping's columns, text as bytes."""
    with closing(psycopg2.connect(database.url)) as session, session.cursor() as cursor:
        as_bytes(cursor)
        cursor.execute(_query(plan))
        return cursor.fetchall()


def copy(database: Database, plan: str | None = None) -> float:
    """COPY a plan's rows, or all rows, and discard them; return the seconds that this took."""
    with closing(psycopg2.connect(database.url)) as session, session.cursor() as cursor:
        began = time.monotonic()
        cursor.copy_expert(f"COPY ({_query(plan)}) TO STDOUT", _Nowhere())
        return time.monotonic() - began


def _query(plan: str | None) -> str:
    return _MAPPING if plan is None else _PLAN.format(plan=plan)


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        return 0
