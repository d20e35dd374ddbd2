"""The statements of a read (`cdc.postgres.read`), apart from the mapping's query.

Migrations go first. A read that held one lock and waited for another could complete a deadlock, and the
server could end the transaction of a migration, or of a writer that queues behind it. So a read does not wait
for a lock (`AT_ONCE`). If one is not available, it releases all of them, and waits for each lock while it
holds no other one (`cdc.postgres.database`). A running read is ended when another session waits for its locks
(`cdc.postgres.lock_watch`). If the reader is frozen or cut off, the server ends the read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdc import lsn
from cdc.errors import SourceError
from cdc.postgres import session
from cdc.postgres.gate import Evidence, Snapshot

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from cdc.postgres.encoding import Encoding

BEFORE = """
SELECT pg_catalog.set_config('pads_cdc.before', pg_catalog.concat_ws(' ',
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN '-'
         ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)
         END,
    extract(epoch FROM pg_catalog.pg_postmaster_start_time()),
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') END
), true)
"""

LIMITS = """
SELECT CASE WHEN pg_catalog.strpos(pg_catalog.version(), '-linux') > 0
    THEN pg_catalog.set_config('client_connection_check_interval', '1s', true) END
"""
"""On systems that notify a server of a closed connection, ends a statement within a second after its client
has gone.
"""
AT_ONCE = """
SELECT pg_catalog.set_config('lock_timeout', '1ms', true)
"""
"""Limits the wait for each lock of a read to the shortest time that a server can measure."""
IN_HASTE = """
SELECT pg_catalog.set_config('statement_timeout', '250ms', true)
"""
"""Sets a time limit for a prepared plan, which may have been made for smaller tables and may take minutes
instead of a millisecond.
"""


def begin(connection: Connection) -> str:
    """Return the first statements of a read, to be sent in one round trip with the next ones."""
    return f"{session.begin(connection)}{LIMITS};{BEFORE};"


def lock(tables: str) -> str:
    """Return the statements that lock the tables of a read. ``tables`` is `Mapping.locks`."""
    return f"{AT_ONCE};{tables};"


def declare(query: str) -> str:
    """Return the statement that opens the cursor of a read. The cursor takes the snapshot."""
    return f"DECLARE pads_cdc_read NO SCROLL CURSOR FOR {query};\n"


def fetch(rows: int) -> str:
    """Return the statement that fetches the next rows from the cursor."""
    return f"FETCH FORWARD {rows} FROM pads_cdc_read"


def unconverted(encoding: Encoding) -> str:
    """Return the statement that makes the server send this transaction's rows in the database's encoding."""
    return "" if encoding.utf8 else "SET LOCAL client_encoding = 'SQL_ASCII';"


def evidence(header: tuple[Any, ...]) -> Evidence:
    """Return the evidence in a statement's first row.

    Raises:
        SourceError: there is none, for example because the server has just been promoted.

    """
    if header[0] is None:
        raise SourceError("no_evidence", "a re-query returned no snapshot, so it cannot be trusted")
    snapshot, seen, before = (text.decode() for text in header[:3])
    system, timeline, instance, *replayed = before.split(" ")
    written, flushed, bound, shown, *within = seen.split(" ")
    return Evidence(
        system=system,
        timeline=None if timeline == "-" else int(timeline, 16),
        instance=instance,
        replayed=lsn.parse(replayed[0]) if replayed else None,
        snapshot=Snapshot.parse(snapshot),
        seen=lsn.parse(written),
        flushed=lsn.parse(flushed),
        bound=lsn.parse(bound),
        shown=lsn.parse(shown),
        flushed_within=float(within[0]) if within else 0.0,
    )
