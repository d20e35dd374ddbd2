"""The types of what a mapping reads.

What a value means is decided in one place, row by row (`cdc.mapping.row_rule`): a driver's conversion fails
for all rows at once. So text comes as the bytes that the server sends, integers and booleans, which cannot
fail, as what they are, and all other types are printed as text in the statement itself (`KeyType.sent`). A
conversion of our own would be called with text that the driver has decoded first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg2.extensions import BYTES, BYTESARRAY, register_type

from cdc.mapping.key_types import TEXT, KeyType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg2.extensions import Column
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.mapping.mapping import Mapping as EndpointMapping

_DESCRIBED: Final = "SELECT * FROM (\n{}\n) AS described LIMIT 0"
_COLLATION: Final = f"""
SELECT pg_catalog.pg_collation_for(described.endpoint_id)::TEXT
FROM (VALUES (1)) AS always
LEFT JOIN ({_DESCRIBED}) AS described ON true"""
"""Returns one row also where the mapping has no endpoints."""


@dataclass(frozen=True)
class ColumnTypes:
    """The types of the columns of `Endpoints`; plain text until the catalog has been read."""

    id_type: KeyType = TEXT
    """Of the column ``endpoint_id``."""
    columns: Mapping[str, KeyType] = field(default_factory=dict)
    """Of all columns of `Endpoints`."""
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The table (oid) and column (number) that a column of `Endpoints` is, where it is one."""
    listed: Mapping[str, Sequence[KeyType]] = field(default_factory=dict)
    """By the query that lists row ids and keys: the types of both."""

    def list_as_printed(self, query: str) -> str:
        """Return a query that lists row ids and keys so that it lists them as the slot names them."""
        row, key = self.listed.get(query, (TEXT, TEXT))
        return (
            f"SELECT {row.printed('listed.row_id')} AS row_id, {key.printed('listed.parent')} AS parent\n"
            f"FROM (\n{query}\n) AS listed (row_id, parent)"
        )


def as_bytes(cursor: Cursor) -> None:
    """Have a cursor return text as the bytes that the server sends."""
    register_type(BYTES, cursor)
    register_type(BYTESARRAY, cursor)


def as_printed(value: Any) -> bytes:
    """Return a value as the server prints it, however it came: before types are known, some are converted."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode()


def describe(mapping: EndpointMapping, cursor: Cursor) -> ColumnTypes:
    """Have a mapping's queries described, within a transaction. Reads no row of a table."""
    query = mapping.queries["Endpoints"]
    rules = (rule for of_table in mapping.rules.values() for rule in of_table)
    lists = sorted({mapping.queries[rule.parents] for rule in rules if rule.parents is not None})
    endpoints, listed = _described(cursor, query), {one: _described(cursor, one) for one in lists}
    described = [*endpoints, *(column for columns in listed.values() for column in columns)]
    found = _found(mapping, cursor, [column.type_code for column in described])
    return ColumnTypes(
        id_type=_id_type(mapping, cursor, endpoints[0]),
        columns={column.name: found[column.type_code] for column in endpoints},
        sources={
            column.name: (column.table_oid, column.table_column)
            for column in endpoints
            if column.table_oid is not None
        },
        listed={one: [found[column.type_code] for column in columns] for one, columns in listed.items()},
    )


def _described(cursor: Cursor, query: str) -> Sequence[Column]:
    cursor.execute(_DESCRIBED.format(query), {})
    return cursor.description or ()


def _id_type(mapping: EndpointMapping, cursor: Cursor, column: Column) -> KeyType:
    """Return the type of ids with all that decides how they compare."""
    code, length = column.type_code, column.internal_size
    of_ids = _found(mapping, cursor, [code], length)[code]
    if of_ids.category != "S":
        return of_ids
    cursor.execute(_COLLATION.format(mapping.queries["Endpoints"]), {})
    [(collation,)] = cursor.fetchall()
    return _found(mapping, cursor, [code], length, collation)[code]


def _found(
    mapping: EndpointMapping,
    cursor: Cursor,
    types: Sequence[int],
    length: int | None = None,
    collation: str | None = None,
) -> dict[int, KeyType]:
    cursor.execute(mapping.types, {"types": [*types], "length": length, "collation": collation})
    return {oid: KeyType(*of_type) for oid, *of_type in cursor.fetchall()}
