"""Types whose operators are not in ``pg_catalog``, such as ``citext``, and how our queries find them.

Without its own operators a ``citext`` would be compared as text: an account on the plan "Pro" would not have
the limits of the plan "pro". So the schema of such a type is looked into as well, if nobody can put an
operator there but the owners of the mapped tables, the owner of the schema, and superusers. Otherwise the
mapping is refused, with what to type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc.mapping.sql_text import quote_name

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class OutsideType:
    """A row of the query ``OutsideTypes``."""

    schema: str
    column: str
    """With its table."""
    name: str
    fault: str | None
    """Other roles that can have put an operator there; None if there are none."""
    remedy: str | None
    """What to type against it."""

    def __str__(self) -> str:
        where = f"{self.column} is of type {self.name}, whose operators are in the schema {self.schema}"
        return f"{where}, where {self.fault}: they could run in our name" if self.fault else where


def search_path(types: Iterable[OutsideType]) -> str | None:
    """Return the search path in which the operators of these types are found, too; None if there are none."""
    schemas = dict.fromkeys(quote_name(one.schema) for one in types)
    return ", ".join(("pg_catalog", *schemas, "pg_temp")) if schemas else None
