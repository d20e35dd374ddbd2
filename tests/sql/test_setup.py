"""setup.sql on real databases: run twice, cut short, by another schema; and that it makes reads indexed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from cdc.mapping import sql_text
from cdc.mapping.mapping import load
from tests.sql.test_endpoints import MAPPINGS, affected, full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.postgres import Database, DatabaseFactory

IDENTITIES = {"grove_jwt": ["account_users", "portal_application_settings", "user_auth_providers"]}
FILL = """
    INSERT INTO pay_plans SELECT 'p' || i, i, i FROM generate_series(1, 100) AS i;
    INSERT INTO accounts (id, plan_type)
    SELECT 'a' || i, 'p' || 1 + i % 100 FROM generate_series(1, 5000) AS i;
    INSERT INTO portal_applications (id, account_id)
    SELECT 'app' || i, 'a' || 1 + i % 5000 FROM generate_series(1, 20000) AS i;
    INSERT INTO portal_application_settings (application_id, secret_key_required)
    SELECT 'app' || i, true FROM generate_series(1, 20000) AS i;
    INSERT INTO users SELECT 'u' || i FROM generate_series(1, 5000) AS i;
    INSERT INTO account_users (user_id, account_id)
    SELECT 'u' || i, 'a' || i FROM generate_series(1, 5000) AS i;
    INSERT INTO user_auth_providers (user_id, type, provider_user_id)
    SELECT 'u' || i, 'auth0_github', 'github|' || i FROM generate_series(1, 5000) AS i;
"""
DROP_UNIQUE = "DROP CONSTRAINT portal_application_settings_application_id_key"
KEYS = {
    "EndpointsOfApplications": "app1",
    "EndpointsOfAccounts": "a1",
    "EndpointsOfPlans": "p1",
    "EndpointsOfUsers": "u1",
}


def state(database: Database) -> list[tuple[Any, ...]]:
    """Return all that setup changes, as far as a second run could change it again."""
    return database.rows(
        "SELECT relname, relreplident, relacl, relfilenode, indisvalid, indisreplident"
        " FROM pg_class LEFT JOIN pg_index ON indexrelid = pg_class.oid"
        " WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
    )


def identities(database: Database) -> list[str]:
    return [name for name, identity, *_ in state(database) if identity == "i"]


@pytest.mark.parametrize("name", MAPPINGS)
def test_setup_may_run_again(name: str, database_factory: DatabaseFactory) -> None:
    database, mapping = database_factory(name), load(name)
    role = database.create_role().name
    database.set_up(mapping, role)
    once = state(database)
    assert identities(database) == IDENTITIES.get(name, ["portal_application_settings"])
    database.set_up(mapping, role)
    assert state(database) == once


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_role_can_read_the_mapping_and_nothing_more(name: str, database_factory: DatabaseFactory) -> None:
    database, mapping = database_factory(name), load(name)
    database.execute("REVOKE ALL ON SCHEMA public FROM public")
    role = database.create_role()
    database.set_up(mapping)
    with (
        database.connect(*role).cursor() as cursor,
        pytest.raises(psycopg2.Error, match=r"pay_plans|relation"),
    ):
        full(cursor, mapping)
    database.set_up(mapping, role.name)
    with database.connect(*role).cursor() as cursor:
        assert full(cursor, mapping) == {}
        for query in mapping.queries:
            if query.startswith("ParentsOf"):
                cursor.execute(mapping.queries[query], {})
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM portal_applications")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT FROM portal_application_changes")


def test_an_index_that_was_cut_short_is_built_again(database: Database) -> None:
    mapping = load("grove")
    database.set_up(mapping)
    database.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'portal_applications_account_id_idx'::regclass"
    )
    database.set_up(mapping)
    assert all(valid is not False for *_, valid, _ in state(database))


def test_an_identity_that_names_more_stays(database: Database) -> None:
    database.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY FULL")
    database.set_up(load("grove"))
    assert identities(database) == []


@pytest.mark.parametrize(
    "change",
    [
        DROP_UNIQUE,
        "ALTER application_id DROP NOT NULL",
        f"{DROP_UNIQUE}, ADD UNIQUE (application_id) DEFERRABLE",
        f"{DROP_UNIQUE}, ADD UNIQUE (application_id, secret_key)",
    ],
)
def test_without_a_fit_unique_index_it_says_what_to_add(database: Database, change: str) -> None:
    database.execute(f"ALTER TABLE portal_application_settings {change}")
    with pytest.raises(psycopg2.Error, match="can carry application_id") as raised:
        database.set_up(load("grove"))
    assert "unique constraint" in str(raised.value.diag.message_hint)


def test_an_unusual_name_of_the_constraint_schema_and_role_does_not_matter(database: Database) -> None:
    role = database.create_role().name
    odd = f'{role} "odd"; DROP'
    quoted = '"' + odd.replace('"', '""') + '"'
    database.execute(f'ALTER ROLE "{role}" RENAME TO {quoted}')
    database.execute(
        f"ALTER SCHEMA public RENAME TO {quoted};"
        f"ALTER TABLE {quoted}.portal_application_settings"
        " RENAME CONSTRAINT portal_application_settings_application_id_key TO odd"
    )
    database.set_up(load("grove"), odd, schema=odd)
    assert (
        database.value(
            "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
            " WHERE indisreplident AND relnamespace <> 'pg_catalog'::regnamespace"
        )
        == "odd"
    )


@pytest.mark.parametrize("name", MAPPINGS)
def test_after_setup_a_key_reads_no_table_from_end_to_end(
    name: str, database_factory: DatabaseFactory
) -> None:
    database, mapping = database_factory(name), load(name)
    database.set_up(mapping)
    fills = [one for one in sql_text.statements(FILL) if one.split()[2] in mapping.reads]
    database.execute(";".join([*fills, "ANALYZE"]))
    kinds = [kind for kind in KEYS if kind in mapping.queries]
    with database.connect().cursor() as cursor:
        for some in itertools.chain.from_iterable(itertools.combinations(kinds, size) for size in (1, 2, 4)):
            keys = {kind: [KEYS[kind]] for kind in some}
            cursor.execute("EXPLAIN (FORMAT JSON) " + mapping.compose(keys), keys)
            [[[explained]]] = cursor.fetchall()
            whole = {
                node["Relation Name"] for node in nodes(explained["Plan"]) if node["Node Type"] == "Seq Scan"
            }
            # A plan's ripple of hundreds may well read a small table at once.
            assert whole <= {"pay_plans"} or "EndpointsOfPlans" in some, (some, whole)
            assert len(affected(cursor, mapping, keys)) in range(1, 250)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk a plan."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)
