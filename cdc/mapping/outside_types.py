"""Types whose operators are not in ``pg_catalog``, such as ``citext``, and how our queries find them.

Without its own operators a ``citext`` would be compared as text: an account on the plan "Pro" would not have
the limits of the plan "pro". So our queries also search the schema of such a type, if only the owners of the
mapped tables, the owner of the schema and superusers can create operators there. Otherwise the mapping is
refused, with an error that says what to type.
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
    """The column, with its table."""
    name: str
    fault: str | None
    """The other roles that may have created an operator there, as text; None if there are none."""
    remedy: str | None
    """The statement that revokes the privilege from them."""

    def __str__(self) -> str:
        where = f"{self.column} is of type {self.name}, whose operators are in the schema {self.schema}"
        return f"{where}, where {self.fault}: their code could run with our rights" if self.fault else where


def search_path(types: Iterable[OutsideType]) -> str | None:
    """Return the search path that has the operators of these types; None if there are no types."""
    schemas = dict.fromkeys(quote_name(one.schema) for one in types)
    return ", ".join(("pg_catalog", *schemas, "pg_temp")) if schemas else None
