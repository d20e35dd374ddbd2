"""Is the database fit for us? Asked before anything starts, so that a mistake is one line and not a retry for
ever.

Each question raises the error that names its remedy; a server that is only starting up is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from cdc.errors import Refusal
from cdc.postgres_errors import is_shutdown, translated

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.connection import Address
    from cdc.database import Database

_STARTING_SECONDS = 30.0
"""How long a server that says that it is starting up is waited for."""


def check(source: Address, database: Database, queries: dict[str, str], schema: str) -> None:
    """Look at the slot's server and at the server that is queried. Blocks while they answer.

    Raises:
        PadsCdcError: what is wrong, and what to type.

    """
    patiently = Retrying(
        retry=retry_if_exception(is_shutdown),
        stop=stop_after_delay(_STARTING_SECONDS),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    patiently(_check_source, source)
    patiently(_check_mapping, database, queries, schema)


def _check_source(source: Address) -> None:
    connection = source.connect()
    try:
        with translated(source.setting), connection.cursor() as cursor:
            _check_wal_level(cursor)
            _check_allow_list(cursor)
    finally:
        connection.close()
    # The right to replicate, and pg_hba.conf's opinion of it, show only in trying.
    source.connect_replication().close()


def _check_wal_level(cursor: Cursor) -> None:
    cursor.execute("SHOW wal_level")
    [level] = cursor.fetchone() or ("",)
    if level != "logical":
        raise Refusal(
            f"wal_level is {level}; set wal_level = logical in postgresql.conf"
            " (managed services: rds.logical_replication or its like) and restart the server"
        )


def _check_allow_list(cursor: Cursor) -> None:
    cursor.execute("SELECT setting FROM pg_settings WHERE name = 'output_plugin_libraries'")
    row = cursor.fetchone()
    if row is not None and "wal2json" not in [name.strip(' "') for name in row[0].split(",")]:
        raise Refusal(
            "this server loads only listed output plugins, and wal2json is not one of them; set"
            " output_plugin_libraries = 'pgoutput, test_decoding, wal2json' in postgresql.conf and reload"
        )


def _check_mapping(database: Database, queries: dict[str, str], schema: str) -> None:
    mapping = database.mapping
    ignored = [
        table
        for (table,) in database.query(
            queries["SoftDeleted"], {"schema": schema, "tables": list(mapping.tables)}
        )
        if table not in mapping.honours_deleted
    ]
    if ignored:
        raise Refusal(
            f"{schema}.{ignored[0]} has a column deleted, which the mapping {mapping.name} ignores: it would"
            " authorize what is deleted; use MAPPING=grove_soft_delete, or a mapping of your own"
        )
    for statement in mapping.queries.values():
        keys: dict[str, list[str]] = {name: [] for name in mapping.queries}
        database.query(f"SELECT * FROM ({statement}) probed LIMIT 0", keys)
