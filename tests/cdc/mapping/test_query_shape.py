"""Which tables of a query can take rows away from it, from its text alone."""

from __future__ import annotations

import pytest

from cdc.mapping import sql_text
from cdc.mapping.mapping import load
from cdc.mapping.query_shape import takes_away, uses
from tests.support import BUNDLED

COLUMNS = {
    "apps": {"id", "account_id", "gone"},
    "accounts": {"id", "plan", "deleted_at"},
    "plans": {"plan", "rate"},
}
HEAD = "SELECT a.id, p.rate FROM apps AS a"


@pytest.mark.parametrize(
    ("query", "removing"),
    [
        (HEAD, {"apps"}),
        (f"{HEAD} LEFT JOIN accounts c ON c.id = a.account_id", {"apps"}),
        (f"{HEAD} LEFT OUTER JOIN accounts AS c ON c.id = a.account_id AND c.deleted_at IS NULL", {"apps"}),
        (f"{HEAD} JOIN accounts c ON c.id = a.account_id", {"apps", "accounts"}),
        (f"{HEAD} INNER JOIN accounts c ON true", {"apps", "accounts"}),
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE c.deleted_at IS NULL", {"apps", "accounts"}),
        (f"{HEAD} left join ACCOUNTS C on true where C.deleted_at is null", {"apps", "accounts"}),
        (f"{HEAD} LEFT JOIN accounts ON true WHERE accounts.deleted_at IS NULL", {"apps", "accounts"}),
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE deleted_at IS NULL", {"apps", "accounts"}),
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE a.gone IS NOT TRUE", {"apps"}),
        (
            f"{HEAD} WHERE EXISTS (SELECT 1 FROM accounts WHERE accounts.id = a.account_id)",
            {"apps", "accounts"},
        ),
        (f"{HEAD} LEFT JOIN accounts c ON true LEFT JOIN plans p ON p.plan = c.plan", {"apps"}),
        (
            f"{HEAD} LEFT JOIN accounts c ON true JOIN plans p ON p.plan = c.plan",
            {"apps", "accounts", "plans"},
        ),
        (f"{HEAD}, accounts c", {"apps", "accounts"}),
        (f"{HEAD} CROSS JOIN accounts", {"apps", "accounts"}),
        ("SELECT (SELECT max(rate) FROM plans) FROM apps", {"apps"}),
        ("SELECT CASE WHEN EXISTS (SELECT 1 FROM plans WHERE rate > 1) THEN 1 END FROM apps", {"apps"}),
        (f"{HEAD} LEFT JOIN LATERAL (SELECT rate FROM plans LIMIT 1) p ON true", {"apps"}),
        (f"{HEAD} JOIN LATERAL (SELECT rate FROM plans) p ON true", {"apps", "plans"}),
        (f"{HEAD} LEFT JOIN accounts c ON true ORDER BY c.id", {"apps"}),
        (f"{HEAD} LEFT JOIN accounts c ON true -- WHERE c.id", {"apps"}),
        (f"{HEAD} LEFT JOIN accounts c ON c.plan = 'WHERE accounts.id'", {"apps"}),
        (f"{HEAD} LIMIT 5", set(COLUMNS)),
        (f"{HEAD} GROUP BY a.id", set(COLUMNS)),
        (f"{HEAD} UNION SELECT id, 1 FROM accounts", set(COLUMNS)),
        (f"WITH x AS (SELECT 1) {HEAD}", set(COLUMNS)),
        (f"{HEAD} RIGHT JOIN accounts c ON true", set(COLUMNS)),
        (
            'SELECT "a"."id" FROM "public"."apps" "a" LEFT JOIN accounts c ON true WHERE "c"."plan" = 1',
            {"apps", "accounts"},
        ),
    ],
)
def test_a_table_takes_rows_away_by_a_where_or_an_inner_join(query: str, removing: set[str]) -> None:
    assert takes_away(query, COLUMNS) == removing


@pytest.mark.parametrize(
    ("query", "used"),
    [
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE c.deleted_at IS NULL", True),
        (f"{HEAD} LEFT JOIN accounts ON true WHERE accounts.deleted_at IS NULL", True),
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE deleted_at IS NULL", True),
        (f"{HEAD} WHERE EXISTS (SELECT 1 FROM accounts x WHERE x.deleted_at IS NULL)", True),
        (f"{HEAD} LEFT JOIN accounts c ON true WHERE a.deleted_at IS NULL", False),
        (f"{HEAD} LEFT JOIN accounts c ON true", False),
    ],
)
def test_a_column_is_used_where_it_is_named_with_its_table(query: str, used: bool) -> None:
    assert uses(query, "accounts", "deleted_at", COLUMNS) is used


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_mappings_condition_on_no_table_that_takes_away(name: str) -> None:
    mapping = load(name)
    removing = takes_away(mapping.queries["Endpoints"], sql_text.tables(mapping.schema))
    assert "portal_applications" in removing
    assert ("accounts" in removing) is (name == "grove_soft_delete")
    assert ("portal_accounts" in removing) is (name == "portal_db")
    assert not removing & {
        "pay_plans",
        "portal_plans",
        "users",
        "account_users",
        "user_auth_providers",
        "portal_application_settings",
    }
    for kind in mapping.key_columns:
        for rules in mapping.rules.values():
            assert not {rule.table for rule in rules if rule.query == kind} & removing
