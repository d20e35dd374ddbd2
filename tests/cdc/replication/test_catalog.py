"""A stream is begun anew where its tables or its rules are others by now."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cdc.mapping.mapping import load, server_queries
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from cdc.replication.catalog import Catalog
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
    catalog = Catalog(server_queries()["Relations"], mapping, "public")
    with closing(address.connect_replication()) as session, session.cursor() as cursor:
        catalog.assemble(cursor)
    assert not catalog.changed(server)
    database.execute(change)
    catalog.look(server)
    assert catalog.changed(server) == anew
    server.close()
