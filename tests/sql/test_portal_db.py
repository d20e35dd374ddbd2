"""The mapping `portal_db`: limits of three levels, marks of deleted rows, and rows that policies hide."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping.mapping import COLUMNS, load
from tests.sql import model
from tests.sql.test_endpoints import affected, full
from tests.sql.test_setup import nodes, state

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from tests.plugins.postgres import Database, DatabaseFactory

MAPPING = load("portal_db")
LIMITS = ((None, None, None), (0, "day", 0), (7, "year", None), (None, "month", 5))
"""Of a plan, an account or an application: how much, in which time, and how often a second."""
LARGE = 2**40
"""What no plan and no application can have, but an account."""


@pytest.fixture
def database(database_factory: DatabaseFactory) -> Database:
    """One database with the mapping's schema, its tables empty."""
    return database_factory("portal_db")


def fill(cursor: cursor) -> None:
    """Write an application for every combination of limits, marks of deleted rows and keys."""
    for plan, limits in enumerate(LIMITS):
        cursor.execute("INSERT INTO portal_plans VALUES (%s, %s, %s, %s)", (f"plan{plan}", *limits))
    accounts = itertools.product(range(len(LIMITS)), (*LIMITS, (LARGE, "month", None)), (None, "now"))
    for account, (plan, limits, deleted) in enumerate(accounts):
        cursor.execute(
            "INSERT INTO portal_accounts VALUES (%s, %s, %s, %s, %s, %s)",
            (f"account{account}", f"plan{plan}", *limits, deleted),
        )
        applications = itertools.product(LIMITS, (None, "now"), ((None, None), ("key", True)))
        cursor.executemany(
            "INSERT INTO portal_applications VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (f"app{account}-{number}", f"account{account}", f"called {number}", *limits, *key, deleted)
                for number, (limits, deleted, key) in enumerate(applications)
            ],
        )


def test_every_combination_is_as_the_database_means_it(database: Database) -> None:
    with database.connect().cursor() as cursor:
        fill(cursor)
        tables, endpoints = model.read_tables(cursor), full(cursor, MAPPING)
    assert endpoints == model.expected("portal_db", tables)
    assert len(tables["portal_applications"]) > 2 * len(endpoints) > 300
    assert {limits[-3] for limits in endpoints.values()} == {None, 0, 7, LARGE}
    assert {limits[-2] for limits in endpoints.values()} == {None, "day", "month", "year"}


def test_what_an_application_says_goes_before_its_account_and_that_before_the_plan(
    database: Database,
) -> None:
    database.execute(
        """
        INSERT INTO portal_plans VALUES ('plan', 100, 'month', 10);
        INSERT INTO portal_accounts VALUES ('none', 'plan', NULL, NULL), ('account', 'plan', 50, 'day');
        INSERT INTO portal_applications VALUES ('1', 'none', NULL, NULL, NULL, NULL),
            ('2', 'account', NULL, NULL, NULL, NULL), ('3', 'account', NULL, 0, NULL, NULL),
            ('4', 'account', NULL, NULL, 'year', 3)
        """
    )
    with database.connect().cursor() as cursor:
        limits = {id_: columns[5:8] for id_, columns in full(cursor, MAPPING).items()}
    assert limits == {
        "1": (10, 100, "month"),
        "2": (10, 50, "day"),
        "3": (10, 0, None),
        "4": (3, 50, "day"),
    }


def test_each_kind_of_key_finds_the_same_rows_as_the_whole(database: Database) -> None:
    with database.connect().cursor() as cursor:
        fill(cursor)
        whole, tables = full(cursor, MAPPING), model.read_tables(cursor)
        of_plan = {id_ for id_, columns in whole.items() if columns[4] == "plan1"}
        of_account = {
            row["portal_application_id"]
            for row in tables["portal_applications"]
            if row["portal_account_id"] in {"account0", "account1"}
        }
        assert of_account - whole.keys()
        for keys, ids in (
            ({"EndpointsOfApplications": ["app0-0", "nothing"]}, {"app0-0", "nothing"}),
            ({"EndpointsOfAccounts": ["account0", "account1"]}, of_account),
            ({"EndpointsOfPlans": ["plan1"]}, of_plan),
            (
                {"EndpointsOfAccounts": ["account0", "account1"], "EndpointsOfPlans": ["plan1"]},
                of_account | of_plan,
            ),
        ):
            assert affected(cursor, MAPPING, keys) == {id_: whole.get(id_) for id_ in ids}


def test_the_columns_are_those_that_are_promised(database: Database) -> None:
    with database.connect().cursor() as cursor:
        cursor.execute(MAPPING.queries["Endpoints"], {})
        assert tuple(column.name for column in cursor.description or ()) == MAPPING.columns
    assert MAPPING.columns == (*COLUMNS, "capacity_limit_period", "name")


def test_after_setup_the_role_sees_every_row_and_keys_use_indexes(
    database: Database,
) -> None:
    role = database.create_role()
    database.set_up(MAPPING, role.name)
    once = state(database)
    database.set_up(MAPPING, role.name)
    assert state(database) == once
    database.execute(
        """
        INSERT INTO portal_plans SELECT 'p' || i, i, 'day', i FROM generate_series(1, 100) AS i;
        INSERT INTO portal_accounts SELECT 'a' || i, 'p' || 1 + i % 100 FROM generate_series(1, 5000) AS i;
        INSERT INTO portal_applications SELECT 'app' || i, 'a' || i FROM generate_series(1, 5000) AS i;
        ANALYZE
        """
    )
    with database.connect(*role).cursor() as cursor:
        for kind, key, found in (
            ("EndpointsOfApplications", "app7", 1),
            ("EndpointsOfAccounts", "a7", 1),
            ("EndpointsOfPlans", "p7", 50),
        ):
            cursor.execute("EXPLAIN (FORMAT JSON) " + MAPPING.compose({kind}), {kind: [key]})
            [[[explained]]] = cursor.fetchall()
            whole = {
                one["Relation Name"] for one in nodes(explained["Plan"]) if one["Node Type"] == "Seq Scan"
            }
            # A plan's ripple may well read a small table at once.
            assert whole <= {"portal_plans"} or kind == "EndpointsOfPlans"
            assert len(affected(cursor, MAPPING, {kind: [key]})) == found
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM portal_applications")
