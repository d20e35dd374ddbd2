"""Statements that the server keeps: they read what any other would, whatever becomes of the tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from cdc.errors import Refusal, SourceError
from cdc.postgres.prepared import MOST_KEYS
from tests.cdc.postgres.test_database import OPEN, reading, rows
from tests.plugins.server import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.postgres.database import Database
    from tests.plugins import postgres
    from tests.plugins.pgbouncer import PoolerFactory

__all__ = ["reading"]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no plan be given up because the machine is busy."""
    monkeypatch.setattr(
        "cdc.postgres.statements.IN_HASTE", "SELECT set_config('statement_timeout', '60s', true)"
    )
    monkeypatch.setattr("cdc.postgres.read._SLOW", 60.0)


ONE = {"EndpointsOfApplications": {"app_1"}}


def kept(read: Database) -> list[tuple[Any, ...]]:
    """Return the statements that the one session keeps, with the count of executions."""
    connection = read.connections.take()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements ORDER BY prepare_time"
        )
        found = cursor.fetchall()
    read.connections.give_back(connection)
    return found


@pytest.mark.usefixtures("patient")
def test_a_few_keys_are_read_by_one_plan(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 200)
    read = reading()
    everything = rows(read)
    for number in range(1, 9):
        name = f"app_{number}"
        expected = {name: everything[name], "gone": None}
        assert rows(read, EndpointsOfApplications={name, "gone"}) == expected
    statements = kept(read)
    assert len(statements) == 6
    assert all(generic == 8 and custom == 0 for _, generic, custom in statements)
    many = {f"app_{number}" for number in range(1, MOST_KEYS + 2)}
    assert rows(read, EndpointsOfApplications=many).keys() == many
    assert len(kept(read)) == 6, "more keys are worth a plan of their own"


ALTERED = {
    "a length": "ALTER TABLE accounts ALTER plan_type TYPE VARCHAR(77)",
    "a type": "ALTER TABLE pay_plans ALTER throughput_limit TYPE BIGINT",
    "another table": """
        ALTER TABLE portal_applications RENAME TO former;
        CREATE TABLE portal_applications AS TABLE former;
        ALTER TABLE portal_applications ALTER account_id TYPE VARCHAR(88)""",
    "no index": """
        ALTER TABLE portal_application_settings
        DROP CONSTRAINT portal_application_settings_application_id_key""",
    "another column": """
        ALTER TABLE portal_application_settings RENAME secret_key TO former;
        ALTER TABLE portal_application_settings ADD secret_key VARCHAR(99);
        UPDATE portal_application_settings SET secret_key = former""",
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_table_that_is_altered_costs_no_read(
    database: postgres.Database, reading: Callable[..., Database], what: str
) -> None:
    """Postgres refuses a kept statement whose columns have other types now (0A000): it is read anew."""
    fill(database, 5)
    read = reading()
    before = rows(read, **ONE)
    database.execute(ALTERED[what])
    assert rows(read, **ONE) == before
    assert rows(read, **ONE) == before
    database.execute("UPDATE portal_application_settings SET secret_key = 'new'")
    assert b"|new|" in (rows(read, **ONE)["app_1"] or b"")
    assert database.value(OPEN) == 1


@pytest.mark.usefixtures("patient")
def test_a_table_that_is_no_longer_there_is_an_error_and_heals(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 3)
    read = reading()
    before = rows(read, **ONE)
    database.execute("ALTER TABLE accounts RENAME TO former")
    for _ in range(2):
        with pytest.raises(Refusal, match="accounts"):
            rows(read, **ONE)
    database.execute("CREATE VIEW accounts AS TABLE former")
    with pytest.raises(Refusal, match="view"):
        rows(read, **ONE)
    database.execute("DROP VIEW accounts; ALTER TABLE former RENAME TO accounts")
    assert rows(read, **ONE) == before
    assert len(kept(read)) == 6, "the same statement is kept again"


@pytest.mark.usefixtures("patient")
def test_a_session_that_has_forgotten_costs_no_read(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    """As if a pooler that repeats a server's process id gave us another session."""
    fill(database, 3)
    read = reading()
    before = rows(read, **ONE)
    connection = read.connections.take()
    connection.cursor().execute("DEALLOCATE ALL")
    read.connections.give_back(connection)
    for _ in range(3):
        assert rows(read, **ONE) == before
    assert kept(read) == [], "it is not tried again at once"
    read.forget_types()
    assert rows(read, **ONE) == before
    assert len(kept(read)) == 6


@pytest.mark.usefixtures("patient")
def test_statements_do_not_pile_up(database: postgres.Database, reading: Callable[..., Database]) -> None:
    fill(database, 3)
    read = reading()
    for length in range(30):
        keys = {f"EndpointsOfApplications::character varying({length + 10})": {"app_1"}}
        assert rows(read, **keys).keys() == {"app_1"}
    assert len(kept(read)) <= 17


def test_an_id_that_comes_very_often_is_read_to_its_end(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    database.execute(
        "ALTER TABLE accounts DROP CONSTRAINT accounts_pkey CASCADE;"
        "INSERT INTO pay_plans VALUES ('plan', 1, 1);"
        "INSERT INTO accounts SELECT 'acc', 'plan' FROM generate_series(1, 5000);"
        "INSERT INTO portal_applications VALUES ('app_1', 'acc')"
    )
    with reading().read(ONE) as read:
        found = [row for chunk in read.chunks() for row in chunk]
        assert read.complete
    assert {row[0] for row in found} == {"app_1"}
    assert len(found) > 1, "chunk by chunk, as for any read"


@pytest.mark.parametrize("before", [1, 100])
def test_a_plan_of_smaller_tables_is_given_up(
    database: postgres.Database, reading: Callable[..., Database], before: int
) -> None:
    """Nothing has analyzed the tables since: a plan that was made for small ones looks through all of them,
    and after one row any plan that is made without the key does, for minutes.
    """
    tables = ("pay_plans", "accounts", "portal_applications", "portal_application_settings")
    fill(database, before)
    for table in tables:
        database.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        database.execute(f"VACUUM ANALYZE {table}")
    read = reading()
    assert rows(read, **ONE)["app_1"]
    database.execute(
        "INSERT INTO portal_applications SELECT 'more_' || n, 'acc_0' FROM generate_series(1, 30000) AS n;"
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT 'more_' || n, 'key', true FROM generate_series(1, 30000) AS n"
    )
    began = time.monotonic()
    for _ in range(5):
        assert rows(read, **ONE)["app_1"]
    assert time.monotonic() - began < 60, "the server's own limit for a statement"
    connection = read.connections.take()
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE cardinality(parameter_types) = 1")
        for [name] in cursor.fetchall():
            cursor.execute(f"EXPLAIN EXECUTE {name} ('{{app_1}}')")
            assert not [line for [line] in cursor if "Seq Scan on portal_application" in line]
    read.connections.give_back(connection)


def test_nothing_is_kept_behind_a_pooler(
    database: postgres.Database, reading: Callable[..., Database], pooler: PoolerFactory
) -> None:
    fill(database, 3)
    read = reading(pooler(database, database.cluster.port))
    for _ in range(3):
        assert rows(read, **ONE)["app_1"]
    for _ in range(8):
        assert kept(read) == []


def test_a_kept_statement_waits_for_locks_no_longer_than_others(
    database: postgres.Database, reading: Callable[..., Database]
) -> None:
    fill(database, 3)
    read = reading()
    assert rows(read, **ONE)
    writer = psycopg2.connect(database.url())
    writer.cursor().execute("LOCK TABLE portal_applications")
    with pytest.raises(SourceError) as raised:
        rows(read, **ONE)
    assert raised.value.reason == "locked"
    writer.close()
    assert rows(read, **ONE)
