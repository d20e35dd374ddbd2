"""A stream is begun anew where its tables or its rules are others by now."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.lsn import Lsn
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as QueryServer
from cdc.replication import schema_watch
from cdc.replication.assembler import Transaction
from cdc.replication.catalog import Catalog
from cdc.replication.schema_watch import SchemaWatch
from cdc.units import Xid
from server.payload import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

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


@pytest.fixture
def watch(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[SchemaWatch]:
    """Watch the tables as they are now, and look whenever asked to."""
    monkeypatch.setattr(schema_watch, "_LOOK", 0.0)
    monkeypatch.setattr(schema_watch, "_LATER", 0.0)
    monkeypatch.setattr(schema_watch, "_NAMED", 1)
    address, mapping = Address(database.url, "TEST"), load("grove")
    server = QueryServer(address, mapping, "public", encode)
    catalog = Catalog(server_queries(), mapping, "public")
    with closing(address.connect_replication()) as session, session.cursor() as cursor:
        catalog.assemble(cursor, "wal2json")
    yield SchemaWatch(catalog, server)
    server.close()


def begun(session: Connection, statement: str = "SELECT") -> Xid:
    """Begin a transaction in a session. Returns its id."""
    with session.cursor() as cursor:
        cursor.execute(f"{statement}; SELECT pg_current_xact_id()::text")
        [(xid,)] = cursor.fetchall()
    return Xid(int(xid))


ALTER = "ALTER TABLE portal_application_settings ADD COLUMN note TEXT"


def test_transactions_that_come_later_do_not_put_a_comparison_off_for_ever(
    database: Database, watch: SchemaWatch
) -> None:
    """There always is some transaction that runs, and that began after the first of those to be seen."""
    with closing(psycopg2.connect(database.url())) as one, closing(psycopg2.connect(database.url())) as other:

        def committed(end: int) -> None:
            xid = int(database.value("SELECT pg_current_xact_id()::text"))
            watch.note(Transaction(Xid(xid), end=Lsn(end), committed_at=0.0))

        committed(1)
        begun(one)
        database.execute(ALTER)
        committed(2)
        assert not watch.changed(None), "of very many transactions all between them must have ended"
        begun(other)
        committed(3)
        assert not watch.changed(None)
        one.rollback()
        begun(one)
        committed(4)
        assert watch.changed(None)


def test_transactions_that_come_during_a_comparison_are_compared_as_well(
    database: Database, watch: SchemaWatch
) -> None:
    with closing(psycopg2.connect(database.url())) as one, closing(psycopg2.connect(database.url())) as other:
        first = begun(one)
        watch.note(Transaction(first, end=Lsn(1), committed_at=0.0))
        assert not watch.changed(None), "it is delivered, and not visible yet"
        altering = begun(other, ALTER)
        watch.note(Transaction(altering, end=Lsn(2), committed_at=0.0))
        one.commit()
        assert not watch.changed(None)
        assert not watch.changed(None)
        other.commit()
        assert watch.changed(None)


def test_after_a_restore_from_a_backup_lower_positions_are_watched(
    database: Database, watch: SchemaWatch
) -> None:
    xid = Xid(int(database.value("SELECT pg_current_xact_id()::text")))
    watch.note(Transaction(Xid(xid + 1_000_000), end=Lsn(1 << 60), committed_at=0.0))
    assert not watch.changed(None)
    watch.rewind()
    database.execute(ALTER)
    watch.note(Transaction(xid, end=Lsn(100), committed_at=0.0))
    assert watch.changed(None)
