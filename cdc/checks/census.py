"""Reads all rows of the mapping once, as a server does, and makes the counts that `check` reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cdc.checks.giving_way import giving_way
from cdc.mapping.row_rule import OddRow, flag
from cdc.postgres.database import Database

if TYPE_CHECKING:
    from cdc.mapping.row_rule import Oddity

_NAMED: Final = 10
"""Maximum number of odd rows of each kind whose ids are kept."""


@dataclass
class Some:
    """A number of endpoints, and the id of the first one."""

    number: int = 0
    first: str = ""

    def add(self, endpoint_id: bytes) -> None:
        """Count one more endpoint."""
        self.number += 1
        self.first = self.first or endpoint_id.decode()


@dataclass
class Census:
    """Counts of the mapping's rows."""

    endpoints: int = 0
    open_to_all: Some = field(default_factory=Some)
    """Endpoints whose settings do not say whether a key is required."""
    without_key: Some = field(default_factory=Some)
    """Endpoints that require a key and have none."""
    odd: dict[str, Oddity] = field(default_factory=dict)
    """The first odd rows, by id; see `cdc.mapping.row_rule`."""
    odd_rows: Counter[bool] = field(default_factory=Counter)
    """The number of odd rows that are served (True), and the number of those that are left out (False)."""

    @classmethod
    def take(cls, database: Database, blocked: str) -> Census:
        """Read the whole mapping. ``blocked`` is the text of the query `Blocked`; see `giving_way`.

        Raises:
            SourceError, Refusal: the mapping cannot be read.

        """

        def encode(row: tuple[Any, ...]) -> bytes:
            try:
                payload = database.encode(row)
            except OddRow as odd:
                if odd.payload is not None:
                    census._count(row)
                raise
            census._count(row)
            return payload

        reading = Database(database.address, database.mapping, database.schema, encode)
        census = cls()

        def read_all() -> None:
            nonlocal census
            census = cls()
            with reading.read() as read:
                for _ in read.chunks():
                    for name, oddity in read.odd.items():
                        if oddity is not None:
                            census._keep(name, oddity)

        try:
            giving_way(reading, blocked, read_all)
        finally:
            reading.close()
        return census

    def _count(self, row: tuple[Any, ...]) -> None:
        endpoint_id, secret_key, required, users, *_ = row
        self.endpoints += 1
        if required is None:
            self.open_to_all.add(endpoint_id)
        elif users is None and not secret_key and flag("secret_key_required", required):
            self.without_key.add(endpoint_id)

    def _keep(self, name: str, oddity: Oddity) -> None:
        self.odd_rows[oddity.served] += 1
        if self.odd_rows[oddity.served] <= _NAMED:
            self.odd[name] = oddity
