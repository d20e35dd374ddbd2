"""What the mappings mean, in plain Python over plain rows: the words of the contract without SQL's joins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg2.extensions import cursor

Tables = dict[str, list[dict[str, Any]]]
Endpoints = dict[str, tuple[Any, ...]]
"""By endpoint id, the mapping's other columns; authorized users sorted."""

TABLES = (
    "pay_plans",
    "accounts",
    "users",
    "user_auth_providers",
    "account_users",
    "portal_applications",
    "portal_application_settings",
    "portal_plans",
    "portal_accounts",
)


def read_tables(cursor: cursor) -> Tables:
    """Return all rows of all tables; of those that a schema has not, none."""
    cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    there = {name for (name,) in cursor.fetchall()}
    tables: Tables = {table: [] for table in TABLES}
    for table in sorted(there & {*TABLES}):
        cursor.execute(f"SELECT * FROM {table}")
        names = [column.name for column in cursor.description or ()]
        tables[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return tables


def expected(mapping: str, tables: Tables) -> Endpoints:
    """Return the endpoints that a mapping makes of the tables."""
    if mapping == "portal_db":
        return expected_of_portal_db(tables)
    accounts = _by("id", tables["accounts"])
    plans = _by("plan_type", tables["pay_plans"])
    settings = _by("application_id", sorted(tables["portal_application_settings"], key=lambda row: row["id"]))
    endpoints: Endpoints = {}
    for application in tables["portal_applications"]:
        account = accounts.get(application["account_id"], {})
        if application.get("deleted") or account.get("deleted"):
            continue
        setting = settings.get(application["id"], {})
        plan = plans.get(account.get("plan_type"), {})
        users = _users(tables, application["account_id"])
        jwt = mapping == "grove_jwt" and setting.get("secret_key_required") and users is not None
        endpoints[application["id"]] = (
            setting.get("secret_key"),
            setting.get("secret_key_required"),
            users if jwt else None,
            application["account_id"],
            account.get("plan_type"),
            plan.get("throughput_limit"),
            plan.get("monthly_relay_limit"),
        )
    return endpoints


def expected_of_portal_db(tables: Tables) -> Endpoints:
    """Return the endpoints that the mapping `portal_db` makes of its tables."""
    accounts = _by("portal_account_id", tables["portal_accounts"])
    plans = _by("portal_plan_type", tables["portal_plans"])
    endpoints: Endpoints = {}
    for application in tables["portal_applications"]:
        account = accounts[application["portal_account_id"]]
        if application["deleted_at"] is not None or account["deleted_at"] is not None:
            continue
        rate, limit, period = None, None, None
        for row, name in (
            (plans[account["portal_plan_type"]], "plan"),
            (account, "portal_account_user"),
            (application, "portal_application_user"),
        ):
            usage, per_second = (
                ("usage_limit", "rate_limit_rps") if name == "plan" else ("limit", "limit_rps")
            )
            if row[f"{name}_{per_second}"] is not None:
                rate = row[f"{name}_{per_second}"]
            if name == "plan" or row[f"{name}_{usage}"] is not None:
                limit, period = row[f"{name}_{usage}"], row[f"{name}_{usage}_interval"]
        endpoints[application["portal_application_id"]] = (
            application["secret_key_hash"],
            application["secret_key_required"],
            None,
            application["portal_account_id"],
            account["portal_plan_type"],
            rate,
            limit,
            period,
            application["portal_application_name"],
        )
    return endpoints


def of_rows(rows: Iterable[Sequence[Any]]) -> Endpoints:
    """Return the endpoints of rows of `Endpoints`, none of which may come twice."""
    endpoints: Endpoints = {}
    for endpoint_id, *columns in rows:
        assert endpoint_id not in endpoints
        users = columns[2]
        if users is not None:
            assert len(set(users)) == len(users)
            columns[2] = sorted(users)
        endpoints[endpoint_id] = tuple(columns)
    return endpoints


def _users(tables: Tables, account_id: str | None) -> list[str] | None:
    """Return as what an account's users sign in; None for an account without users."""
    members = [row["user_id"] for row in tables["account_users"] if row["account_id"] == account_id]
    if not members:
        return None
    providers = tables["user_auth_providers"]
    return sorted({row["provider_user_id"] for row in providers if row["user_id"] in members})


def _by(key: str, rows: Iterable[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    return {row[key]: row for row in rows}
