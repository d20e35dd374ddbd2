"""A stream is begun anew where its tables or its rules are others by now."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from cdc.replication.assembler import Transaction
from cdc.replication.catalog import Catalog
from cdc.replication.schema_watch import SchemaWatch
from server.payload import encode

if TYPE_CHECKING:
    from tests.plugins.postgres import Database


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ("ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT", True),
        ("ALTER TABLE portal_applications REPLICA IDENTITY FULL", False),
        ("ALTER TABLE accounts ADD COLUMN note TEXT", False),
    ],
)
def test_a_reconcile_does_not_hide_that_a_row_names_its_parent_no_more(
    database: Database, change: str, anew: bool
) -> None:
    """It reads the tables as they are, and so covers their new shape; the stream's rules it does not mend."""
    database.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY FULL")
    mapping = load("grove")
    address = Address(database.url, "TEST")
    server = QueryServer(address, mapping, "public", encode)
    catalog = Catalog(server_queries(), mapping, "public")
    with closing(address.connect_replication()) as session, session.cursor() as cursor:
        catalog.assemble(cursor, "wal2json")
    assert not catalog.changed(catalog.ask(server))
    database.execute(change)
    catalog.look(server)
    assert catalog.changed(catalog.ask(server)) == anew
    server.close()


def test_of_very_many_transactions_the_first_is_waited_for_as_well(database: Database) -> None:
    """It may be the one that changed a table, and hang; those that came after it are visible."""
    database.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY FULL")
    address, mapping = Address(database.url, "TEST"), load("grove")
    server = QueryServer(address, mapping, "public", encode)
    catalog = Catalog(server_queries(), mapping, "public")
    with closing(address.connect_replication()) as session, session.cursor() as cursor:
        catalog.assemble(cursor, "wal2json")
    database.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT")
    over = int(database.value("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")) - 1
    for hanging, looks in ((over + 1_000_000, False), (over, True)):
        watch = SchemaWatch(catalog, server)
        for xid in (hanging, *[over] * 25_000):
            watch.note(Transaction(xid, end=1, committed_at=0.0))
        assert watch.changed(None) == looks
        assert len(watch._xids) <= 10_000
    server.close()
