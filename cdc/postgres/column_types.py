"""The types of the columns that a mapping reads.

Only `cdc.mapping.row_rule` judges values, row by row. If the driver converted values, one bad value would
make the read of all rows fail. So the driver converts only integers and booleans, which cannot fail. Text
arrives as the bytes that the server sends, and the statement itself casts all other types to text
(`KeyType.sent`). A conversion function registered with the driver would not help: it would get text that the
driver has decoded already.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from psycopg2.extensions import BYTES, BYTESARRAY, register_type

from cdc.mapping.key_types import TEXT, KeyType
from cdc.mapping.row_rule import MESSAGE_BYTES

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
"""Returns one row even if the mapping has no endpoints."""
_CHARACTER: Final = 4
"""Maximum bytes of a character, in all encodings."""


@dataclass(frozen=True)
class ColumnTypes:
    """The types of the columns of `Endpoints`; plain text until the catalog has been read."""

    id_type: KeyType = TEXT
    """The type of the column ``endpoint_id``."""
    columns: Mapping[str, KeyType] = field(default_factory=dict)
    """The types of all columns of `Endpoints`, by column."""
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For each column of `Endpoints` that is a column of a table, the table's oid and the column's number."""
    listed: Mapping[str, Sequence[KeyType]] = field(default_factory=dict)
    """The types of the row id and of the key, by the query that lists them."""

    def list_as_printed(self, query: str) -> str:
        """Return a query that lists row ids and keys, with both printed as the slot prints them.

        Rows with a row id or a key that is longer than a message are left out, so they count as unknown.
        """
        row, key = self.listed.get(query, (TEXT, TEXT))
        short = [
            f"({of_column.is_long(name)}) IS NOT TRUE"
            for of_column, name in ((row, "listed.row_id"), (key, "listed.parent"))
            if of_column.can_be_long
        ]
        where = f"\nWHERE {' AND '.join(short)}" if short else ""
        return (
            f"SELECT {row.printed('listed.row_id')} AS row_id, {key.printed('listed.parent')} AS parent\n"
            f"FROM (\n{query}\n) AS listed (row_id, parent){where}"
        )


def as_bytes(cursor: Cursor) -> None:
    """Make a cursor return text as the bytes that the server sends."""
    register_type(BYTES, cursor)
    register_type(BYTESARRAY, cursor)


def as_printed(value: Any) -> bytes:
    """Return a value as the server prints it, even if the driver has converted it."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode()


def describe(mapping: EndpointMapping, cursor: Cursor) -> ColumnTypes:
    """Ask the server for the types of a mapping's queries, within a transaction. Reads no row of a table."""
    query = mapping.queries["Endpoints"]
    rules = (rule for of_table in mapping.rules.values() for rule in of_table)
    lists = sorted({mapping.queries[rule.parents] for rule in rules if rule.parents is not None})
    endpoints, listed = _described(cursor, query), {one: _described(cursor, one) for one in lists}
    described = [*endpoints, *(column for columns in listed.values() for column in columns)]
    found = _found(mapping, cursor, [column.type_code for column in described])
    ids = [column for column in endpoints if column.name == "endpoint_id"]
    return ColumnTypes(
        id_type=_id_type(mapping, cursor, ids[0]) if ids else TEXT,
        columns={column.name: _of_column(found[column.type_code], column) for column in endpoints},
        sources={
            column.name: (column.table_oid, column.table_column)
            for column in endpoints
            if column.table_oid is not None
        },
        listed={
            one: [_of_column(found[column.type_code], column) for column in columns]
            for one, columns in listed.items()
        },
    )


def _described(cursor: Cursor, query: str) -> Sequence[Column]:
    cursor.execute(_DESCRIBED.format(query), {})
    return cursor.description or ()


def _of_column(of_type: KeyType, column: Column) -> KeyType:
    """Return the type of a column, with what the server says of its length and where it comes from.

    A column of unlimited length has a negative size. Other types than Postgres' own may count otherwise.
    """
    counted = of_type.built_in and of_type.category != "A"
    limited = counted and 0 <= column.internal_size <= MESSAGE_BYTES // _CHARACTER
    return replace(of_type, limited=limited, computed=column.table_oid is None)


def _id_type(mapping: EndpointMapping, cursor: Cursor, column: Column) -> KeyType:
    """Return the type of ids, with the length and the collation that decide how ids compare."""
    code, length = column.type_code, column.internal_size
    of_ids = _found(mapping, cursor, [code], length)[code]
    if of_ids.category != "S":
        return _of_column(of_ids, column)
    cursor.execute(_COLLATION.format(mapping.queries["Endpoints"]), {})
    [(collation,)] = cursor.fetchall()
    return _of_column(_found(mapping, cursor, [code], length, collation)[code], column)


def _found(
    mapping: EndpointMapping,
    cursor: Cursor,
    types: Sequence[int],
    length: int | None = None,
    collation: str | None = None,
) -> dict[int, KeyType]:
    cursor.execute(mapping.types, {"types": [*types], "length": length, "collation": collation})
    return {oid: KeyType(*of_type) for oid, *of_type in cursor.fetchall()}
