"""Names of tables get their schema, and nothing else does; what is overlooked is not found."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cdc.mapping.mapping import load
from cdc.mapping.table_names import qualify
from tests.support import BUNDLED

if TYPE_CHECKING:
    from tests.plugins.postgres import Database

TABLES = ("accounts", "plans", 'Odd "name"')
SCHEMA = 'the "portal"'
IN = '"the ""portal"""'

QUERIES = [
    (0, "SELECT 1"),
    (1, "SELECT * FROM accounts"),
    (2, "select id from Accounts a, PLANS as p"),
    (1, "SELECT accounts.plan FROM accounts"),
    (1, "SELECT 1 FROM plans AS accounts WHERE accounts.id = 1"),
    (1, "SELECT plans AS accounts, accounts AS plans FROM accounts"),
    (3, "SELECT 1 FROM accounts, plans, (SELECT 2) AS x, plans AS y"),
    (3, "SELECT 1 FROM (accounts CROSS JOIN plans) JOIN plans AS p ON true"),
    (3, "SELECT 1 FROM ((accounts JOIN (plans JOIN plans AS q USING (plan)) USING (plan)))"),
    (2, "SELECT 1 FROM ONLY accounts, ONLY (plans)"),
    (3, "SELECT 1 FROM accounts a LEFT OUTER JOIN plans ON a.plan = plans.plan, plans AS b"),
    (2, "SELECT 1 FROM accounts NATURAL JOIN plans"),
    (3, "SELECT 1 FROM accounts JOIN LATERAL (SELECT id FROM plans LIMIT 1) AS l ON true, plans"),
    (3, "SELECT EXISTS (SELECT FROM accounts), ARRAY(SELECT plan FROM plans), (TABLE plans LIMIT 1)"),
    (3, "SELECT 1 FROM accounts WHERE id IN (SELECT id FROM accounts UNION SELECT id FROM plans)"),
    (2, "TABLE accounts UNION ALL TABLE plans"),
    (
        2,
        "WITH w AS (SELECT * FROM accounts), x (id) AS NOT MATERIALIZED (SELECT 1) SELECT 1 FROM w, x, plans",
    ),
    (1, "SELECT 1 FROM accounts GROUP BY id, plan ORDER BY id, plan LIMIT 1 OFFSET 0"),
    (1, "SELECT 1 FROM plans WHERE plan IS DISTINCT FROM accounts AND id IS NOT DISTINCT FROM plans"),
    (1, "SELECT DISTINCT FROM accounts"),
    (1, "SELECT extract(epoch FROM plans), trim(BOTH FROM plans), substring(plans FROM 2) FROM accounts"),
    (3, "SELECT 1 FROM accounts JOIN plans ON (accounts.plan, 1) = (plans.plan, 1), plans AS z"),
    (1, "SELECT 1 FROM generate_series(1, 2) AS plans (accounts), unnest(ARRAY[1]) AS plans, accounts AS c"),
    (1, "SELECT 1 FROM ROWS FROM (unnest(ARRAY[1]), unnest(ARRAY[2])) AS plans, accounts"),
    (1, "SELECT 1 FROM (VALUES (1, 2), (3, 4)) AS accounts (plans), plans"),
    (0, 'SELECT 1 FROM elsewhere.accounts, "else".plans, pg_catalog.pg_class'),
    (1, "SELECT 1 FROM accounts (1), plans"),
    (1, "SELECT ' FROM accounts ', $$ FROM plans $$, $a$ FROM plans $a$ FROM accounts"),
    (2, 'SELECT "accounts" FROM "accounts", "Accounts", "Odd ""name"""'),
    (2, "SELECT 1 FROM accounts TABLESAMPLE system (10), plans"),
    (1, "SELECT count(*) FILTER (WHERE accounts.id > 1) FROM accounts WHERE id = ANY(%(plans)s::TEXT[])"),
    (
        1,
        "SELECT row_number() OVER accounts FROM accounts WINDOW accounts AS (PARTITION BY id, plan)",
    ),
]


@pytest.mark.parametrize(("names", "query"), QUERIES)
def test_tables_get_the_schema_and_nothing_else_changes(names: int, query: str) -> None:
    found = qualify(query, TABLES, SCHEMA)
    assert found.replace(f"{IN}.", "") == query
    assert found.count(f"{IN}.") == names


def test_the_very_places() -> None:
    query = (
        'SELECT accounts.id, plans FROM Accounts AS accounts, plans WHERE accounts.id IN (TABLE "accounts")'
    )
    assert qualify(query, TABLES, SCHEMA) == (
        f"SELECT accounts.id, plans FROM {IN}.Accounts AS accounts, {IN}.plans"
        f' WHERE accounts.id IN (TABLE {IN}."accounts")'
    )


@pytest.mark.parametrize(
    "query",
    [
        "WITH accounts AS (SELECT 1) SELECT 1 FROM accounts",
        "WITH RECURSIVE Accounts (id, plan) AS (SELECT 1, 2) SELECT 1 FROM accounts",
        "WITH w AS (SELECT 1), plans AS NOT MATERIALIZED (SELECT 1) SELECT 1",
        "SELECT (WITH plans AS MATERIALIZED (SELECT 1) SELECT 1)",
    ],
)
def test_a_name_that_means_something_else_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="the name of a table, call it something else"):
        qualify(query, TABLES, SCHEMA)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_table_of_a_bundled_mapping_is_found(name: str) -> None:
    mapping = load(name)
    for query in mapping.queries.values():
        for table in mapping.reads:
            assert f"FROM {table}" not in qualify(query, mapping.reads, "s")
            assert f"JOIN {table}" not in qualify(query, mapping.reads, "s")


SAME = [
    "SELECT accounts.*, pay_plans FROM accounts JOIN pay_plans USING (plan_type)",
    "SELECT a.id, portal_applications FROM (accounts a CROSS JOIN portal_applications), pay_plans accounts",
    "SELECT ctid, tableoid::regclass::text, accounts FROM ONLY accounts",
    """
    SELECT (SELECT count(*) FROM portal_applications AS accounts WHERE accounts.account_id = a.id)
    FROM accounts a
    """,
    """
    WITH w AS (TABLE accounts), v AS (SELECT * FROM w)
    SELECT * FROM v, LATERAL (SELECT * FROM pay_plans p WHERE p.plan_type = v.plan_type) AS accounts
    ORDER BY v.id, accounts.plan_type
    """,
    "SELECT id FROM accounts WHERE plan_type IN (SELECT plan_type FROM pay_plans) EXCEPT TABLE users",
]


@pytest.mark.parametrize("query", SAME)
def test_the_server_reads_it_as_it_did_with_a_search_path(query: str, database: Database) -> None:
    database.execute(
        """
        INSERT INTO pay_plans VALUES ('p', 1, 2), ('q', 3, 4);
        INSERT INTO accounts VALUES ('a', 'p'), ('b', 'q');
        INSERT INTO portal_applications VALUES ('x', 'a'), ('y', 'b'), ('z', 'b');
        INSERT INTO users VALUES ('a')
        """
    )
    reads = (*load("grove").reads, "users")
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute(query)
        found = sorted(map(str, cursor.fetchall()))
        cursor.execute("SET search_path = pg_catalog, pg_temp")
        cursor.execute(qualify(query, reads, "public"))
        assert [row.replace("public.", "") for row in sorted(map(str, cursor.fetchall()))] == found
