"""Each mapping's query on a real database, held against a plain model, in every combination of NULLs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from cdc.mapping.mapping import COLUMNS, Mapping, load
from tests.sql import model

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from tests.plugins.postgres import Database, DatabaseFactory

MAPPINGS = (
    "grove",
    "grove_soft_delete",
    "grove_jwt",
    pytest.param("pads_soft_delete", marks=pytest.mark.soak),
    "pads_without_plans",
)
"""Those with the tables of PADS. `portal_db` has tests of its own, and of two that are alike one is quick."""
PEOPLE: dict[str, list[list[str]]] = {
    "none": [],
    "one": [["github|1"]],
    "nowhere": [[]],
    "two-ways": [["github|2", "auth0|2"]],
    "many": [["github|3"], [], ["auth0|4", "google|4"], ["github|5"]],
    "shared": [["google|6"], ["google|6"]],
}
"""For a kind of account its users, and what each signs in as."""
SETTINGS = [None, *itertools.product((None, True, False), (None, "", "key"))]


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_combination_is_as_the_contract_words_it(name: str, database_factory: DatabaseFactory) -> None:
    database = database_factory(name)
    fill(database, name)
    with database.connect().cursor() as cursor:
        endpoints, tables = full(cursor, load(name)), model.read_tables(cursor)
    assert len(tables["portal_applications"]) > 250
    assert endpoints == model.expected(name, tables)


@pytest.mark.parametrize("name", MAPPINGS)
def test_each_kind_of_key_finds_the_same_rows_as_the_whole(
    name: str, database_factory: DatabaseFactory
) -> None:
    database, mapping = database_factory(name), load(name)
    fill(database, name)
    with database.connect().cursor() as cursor:
        tables = model.read_tables(cursor)
        whole = model.expected(name, tables)
        of_account = {
            account["id"]: {
                row["id"] for row in tables["portal_applications"] if row["account_id"] == account["id"]
            }
            for account in tables["accounts"]
        }
        everybody = {
            "EndpointsOfApplications": {
                id_: {id_} for id_ in (*whole, "gone", 'a"b\\c', "{,}", "NULL", "%s")
            },
            "EndpointsOfAccounts": of_account,
            "EndpointsOfPlans": {
                plan["plan_type"]: set().union(
                    *(
                        of_account[row["id"]]
                        for row in tables["accounts"]
                        if row["plan_type"] == plan["plan_type"]
                    )
                )
                for plan in tables["pay_plans"]
            },
        }
        if name == "grove_jwt":
            everybody["EndpointsOfUsers"] = {
                user["id"]: set().union(
                    *(
                        of_account[row["account_id"]]
                        for row in tables["account_users"]
                        if row["user_id"] == user["id"]
                    )
                )
                for user in tables["users"]
            }
        everybody = {kind: wanted for kind, wanted in everybody.items() if kind in mapping.queries}
        for kind, wanted in everybody.items():
            if kind in mapping.key_columns:  # these name none that is gone
                wanted.update({key: ids & whole.keys() for key, ids in wanted.items()})
            some = dict(itertools.islice(wanted.items(), 0, None, 3))
            for keys in (list(wanted), list(some), ["nothing"], list[str]()):
                ids = set().union(*(wanted.get(key, set()) for key in keys))
                if kind == "EndpointsOfApplications":
                    ids.update(keys)
                assert affected(cursor, mapping, {kind: keys}) == {id_: whole.get(id_) for id_ in ids}
        all_kinds = {kind: list(wanted)[:5] for kind, wanted in everybody.items()}
        ids = set().union(*(everybody[kind][key] for kind, keys in all_kinds.items() for key in keys))
        assert affected(cursor, mapping, all_kinds) == {id_: whole.get(id_) for id_ in ids}


@pytest.mark.parametrize("name", MAPPINGS)
def test_few_keys_of_all_kinds_read_no_table_whole(name: str, database_factory: DatabaseFactory) -> None:
    """A batch of accounts and plans is usual; by an OR over both tables it would be a join of everything."""
    database, mapping = database_factory(name), load(name)
    if "pay_plans" in mapping.reads:
        database.execute("INSERT INTO pay_plans SELECT 'p' || i, i, i FROM generate_series(1, 5000) AS i")
    database.execute(
        """
        INSERT INTO accounts (id, plan_type) SELECT 'a' || i, 'p' || i FROM generate_series(1, 5000) AS i;
        INSERT INTO portal_applications (id, account_id)
        SELECT 'app' || i, 'a' || i FROM generate_series(1, 5000) AS i;
        INSERT INTO portal_application_settings (application_id) SELECT id FROM portal_applications
        """
    )
    role = database.create_role()
    database.set_up(mapping, role.name)
    database.execute("ANALYZE")
    keys = {"EndpointsOfApplications": ["app9"], "EndpointsOfAccounts": ["a7"]}
    if "EndpointsOfPlans" in mapping.queries:
        keys["EndpointsOfPlans"] = ["p8"]
    with database.connect().cursor() as cursor:
        cursor.execute(f"EXPLAIN {mapping.compose(keys)}", keys)
        plan = "\n".join(row for (row,) in cursor.fetchall())
        found = affected(cursor, mapping, keys)
    assert set(found) == ({"app9", "app7", "app8"} if len(keys) == 3 else {"app9", "app7"})
    for table in ("portal_applications", "accounts", "portal_application_settings"):
        assert f"Seq Scan on {table}" not in plan, plan


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_newest_settings_win_where_nothing_makes_them_unique(
    name: str, database_factory: DatabaseFactory
) -> None:
    database = database_factory(name)
    database.execute(
        """
        ALTER TABLE portal_application_settings
            DROP CONSTRAINT portal_application_settings_application_id_key;
        INSERT INTO portal_applications (id) VALUES ('twice'), ('thrice'), ('once'), ('never');
        INSERT INTO portal_application_settings (id, application_id, secret_key, secret_key_required)
        VALUES (5, 'twice', 'old', true), (9, 'twice', NULL, NULL), (3, 'thrice', 'c', true),
            (2, 'thrice', 'b', false), (1, 'thrice', 'a', NULL), (4, 'once', 'd', false)
        """
    )
    mapping = load(name)
    with database.connect().cursor() as cursor:
        found = full(cursor, mapping)
        assert {id_: columns[:2] for id_, columns in found.items()} == {
            "twice": (None, None),
            "thrice": ("c", True),
            "once": ("d", False),
            "never": (None, None),
        }
        assert affected(cursor, mapping, {"EndpointsOfApplications": list(found)}) == found


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_columns_are_those_that_are_promised(name: str, database_factory: DatabaseFactory) -> None:
    with database_factory(name).connect().cursor() as cursor:
        cursor.execute(load(name).queries["Endpoints"], {})
        assert tuple(column.name for column in cursor.description or ()) == COLUMNS


def test_an_unenforced_reference_to_nothing_is_no_reference(database: Database) -> None:
    """Loads with session_replication_role = replica leave such rows."""
    database.execute(
        """
        SET session_replication_role = replica;
        INSERT INTO portal_applications VALUES ('app', 'nobody');
        INSERT INTO portal_application_settings (application_id, secret_key) VALUES ('nothing', 'k')
        """
    )
    with database.connect().cursor() as cursor:
        assert full(cursor, load("grove")) == {"app": (None, None, None, "nobody", None, None, None)}


def full(cursor: cursor, mapping: Mapping) -> model.Endpoints:
    """Read the whole mapping."""
    cursor.execute(mapping.full(), {})
    header, *rows = cursor.fetchall()
    assert header[0] is not None
    assert all(row[:2] == (None, None) and row[3] is True and row[2] == row[4] for row in rows)
    return model.of_rows(row[4:] for row in rows)


def affected(
    cursor: cursor, mapping: Mapping, keys: dict[str, list[str]]
) -> dict[str, tuple[Any, ...] | None]:
    """Read what keys affect: by id, None where there is no such endpoint."""
    cursor.execute(mapping.compose(keys), keys)
    header, *rows = cursor.fetchall()
    assert header[0] is not None
    assert all(row[2] == row[4] for row in rows if row[3])
    assert all(set(row[4:]) == {None} for row in rows if not row[3])
    gone = [row[2] for row in rows if not row[3]]
    found = model.of_rows(row[4:] for row in rows if row[3])
    assert len({*gone, *found}) == len(rows)
    return {**dict.fromkeys(gone), **found}


def fill(database: Database, name: str) -> None:
    """Write an application for every combination of account, users, settings and deletion."""
    reads = load(name).reads
    soft = load(name).honours_deleted
    with database.connect().cursor() as cursor:
        if "pay_plans" in reads:
            cursor.execute("INSERT INTO pay_plans VALUES ('FREE', 0, 0), ('PAID', 7, 30), ('NOBODYS', 1, 1)")
        accounts: list[str | None] = [None]
        for number, (plan, people, deleted) in enumerate(
            itertools.product(("FREE", "PAID"), PEOPLE, (False, True) if "accounts" in soft else (False,))
        ):
            accounts.append(f"account{number}")
            cursor.execute("INSERT INTO accounts (id, plan_type) VALUES (%s, %s)", (accounts[-1], plan))
            if deleted:
                cursor.execute("UPDATE accounts SET deleted = true WHERE id = %s", (accounts[-1],))
            for user, logins in enumerate(PEOPLE[people] if "users" in reads else ()):
                add_user(cursor, f"u{number}-{user}", accounts[-1], logins)
        if "users" in reads:  # one in two accounts, one in none
            cursor.execute(
                "INSERT INTO account_users (user_id, account_id) SELECT min(id), 'account0' FROM users;"
                "INSERT INTO users VALUES ('lonely')"
            )
        for number, (account, setting, deleted) in enumerate(
            itertools.product(accounts, SETTINGS, (False, True))
        ):
            application = f"app{number}"
            cursor.execute(
                "INSERT INTO portal_applications (id, account_id) VALUES (%s, %s)", (application, account)
            )
            if setting is not None:
                cursor.execute(
                    "INSERT INTO portal_application_settings"
                    " (application_id, secret_key_required, secret_key) VALUES (%s, %s, %s)",
                    (application, *setting),
                )
            if soft and deleted:
                cursor.execute("UPDATE portal_applications SET deleted = true WHERE id = %s", (application,))


def add_user(cursor: cursor, user: str, account: str | None, logins: list[str]) -> None:
    """Write a user of an account, and what the user signs in as."""
    cursor.execute("INSERT INTO users VALUES (%s)", (user,))
    cursor.execute("INSERT INTO account_users (user_id, account_id) VALUES (%s, %s)", (user, account))
    for kind, login in zip(("auth0_github", "auth0_username"), logins, strict=False):
        cursor.execute(
            "INSERT INTO user_auth_providers (user_id, type, provider_user_id) VALUES (%s, %s, %s)",
            (user, kind, login),
        )
