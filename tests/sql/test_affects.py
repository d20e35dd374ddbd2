"""Nothing that a transaction changes escapes what affects.toml says, by the real WAL of random writes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping import sql_text
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import Mapping, load
from cdc.mapping.parents import Parents
from cdc.replication import wal2json
from cdc.replication.assembler import Assembler
from cdc.replication.catalog import Relations
from tests.sql.test_endpoints import affected, full
from tests.support import BUNDLED

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from cdc.replication.assembler import Transaction
    from tests.plugins.postgres import DatabaseFactory

ROUNDS = 150
COMBINATIONS = [
    pytest.param(
        name, identity, marks=[] if identity == "default" or name == "grove_jwt" else [pytest.mark.soak]
    )
    for name in BUNDLED
    for identity in ("default", "index", "full")
]
"""Mappings and replica identities: each mapping with the default, which needs the memory of parents, and the
one with most tables with all of them.
"""

WRITES = {
    "grove": """
        INSERT INTO portal_applications (id, account_id) VALUES ({new}, {account})
        INSERT INTO portal_applications (id) VALUES ({new})
        DELETE FROM portal_applications WHERE id = {app}
        UPDATE portal_applications SET account_id = {account} WHERE id = {app}
        UPDATE portal_applications SET account_id = NULL WHERE id = {app}
        UPDATE portal_applications SET id = {new} WHERE id = {app}
        INSERT INTO portal_application_settings (application_id, secret_key_required) VALUES ({app}, {bool})
        INSERT INTO portal_application_settings (application_id, secret_key_required) VALUES ({app}, true)
        DELETE FROM portal_application_settings WHERE application_id = {app}
        UPDATE portal_application_settings SET application_id = {app} WHERE application_id = {app}
        UPDATE portal_application_settings SET id = id + 1000 WHERE application_id = {app}
        UPDATE portal_application_settings SET (id, application_id) = (id + 900, {app}) WHERE id % 9 = 3
        UPDATE portal_application_settings SET secret_key = {new} WHERE application_id = {app}
        UPDATE portal_application_settings SET secret_key_required = {bool} WHERE application_id = {app}
        INSERT INTO accounts (id, plan_type) VALUES ({new}, {plan})
        DELETE FROM accounts WHERE id = {account}
        UPDATE accounts SET plan_type = {plan} WHERE id = {account}
        UPDATE accounts SET id = {new} WHERE id = {account}
        UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = {plan}
        INSERT INTO pay_plans VALUES ({new}, 1, 1)
        INSERT INTO portal_application_changes (portal_app_id) VALUES ({app})
    """,
    "grove_soft_delete": """
        UPDATE portal_applications SET deleted = NOT deleted WHERE id = {app}
        UPDATE accounts SET deleted = NOT deleted WHERE id = {account}
    """,
    "pads_soft_delete": """
        UPDATE portal_applications SET deleted = NOT deleted WHERE id = {app}
        UPDATE portal_applications SET deleted_at = now() WHERE id = {app}
    """,
    "pads_without_plans": """
        UPDATE portal_applications SET deleted = NOT deleted WHERE id = {app}
        UPDATE accounts SET plan_type = {new} WHERE id = {account}
        UPDATE accounts SET plan_type = NULL WHERE id = {account}
    """,
    "portal_db": """
        INSERT INTO portal_plans VALUES ({new}, 1, 'day', 1)
        DELETE FROM portal_plans WHERE {of_plan}
        UPDATE portal_plans SET portal_plan_type = {new} WHERE {of_plan}
        UPDATE portal_plans SET plan_usage_limit = plan_usage_limit + 1 WHERE {of_plan}
        UPDATE portal_plans SET plan_usage_limit = NULL WHERE {of_plan}
        UPDATE portal_plans SET plan_usage_limit_interval = 'year' WHERE {of_plan}
        UPDATE portal_plans SET plan_rate_limit_rps = plan_rate_limit_rps + 1 WHERE {of_plan}
        INSERT INTO portal_accounts VALUES ({new}, {plan})
        DELETE FROM portal_accounts WHERE {of_account}
        UPDATE portal_accounts SET portal_account_id = {new} WHERE {of_account}
        UPDATE portal_accounts SET portal_plan_type = {plan} WHERE {of_account}
        UPDATE portal_accounts SET portal_account_user_limit = {big} WHERE {of_account}
        UPDATE portal_accounts SET portal_account_user_limit = NULL WHERE {of_account}
        UPDATE portal_accounts SET portal_account_user_limit_interval = 'day' WHERE {of_account}
        UPDATE portal_accounts SET portal_account_user_limit_rps = {big} % 9 WHERE {of_account}
        UPDATE portal_accounts SET deleted_at = now() WHERE {of_account}
        UPDATE portal_accounts SET deleted_at = NULL WHERE {of_account}
        INSERT INTO portal_applications VALUES ({new}, {account})
        DELETE FROM portal_applications WHERE {of_app}
        UPDATE portal_applications SET portal_application_id = {new} WHERE {of_app}
        UPDATE portal_applications SET portal_account_id = {account} WHERE {of_app}
        UPDATE portal_applications SET portal_application_name = {new} WHERE {of_app}
        UPDATE portal_applications SET portal_application_user_limit = 5 WHERE {of_app}
        UPDATE portal_applications SET portal_application_user_limit = NULL WHERE {of_app}
        UPDATE portal_applications SET secret_key_hash = {new} WHERE {of_app}
        UPDATE portal_applications SET secret_key_required = {bool} WHERE {of_app}
        UPDATE portal_applications SET deleted_at = now() WHERE {of_app}
        UPDATE portal_applications SET deleted_at = NULL WHERE {of_app}
    """,
    "grove_jwt": """
        INSERT INTO users VALUES ({new})
        DELETE FROM users WHERE id = {user}
        UPDATE users SET id = {new} WHERE id = {user}
        INSERT INTO account_users (user_id, account_id) VALUES ({user}, {account})
        INSERT INTO account_users (user_id, account_id) VALUES ({user}, {account})
        DELETE FROM account_users WHERE user_id = {user}
        UPDATE account_users SET account_id = {account} WHERE user_id = {user}
        UPDATE account_users SET user_id = {user} WHERE user_id = {user}
        INSERT INTO user_auth_providers VALUES (DEFAULT, {user}, 'auth0_google', {new})
        INSERT INTO user_auth_providers VALUES (DEFAULT, {user}, 'auth0_github', {new})
        DELETE FROM user_auth_providers WHERE user_id = {user}
        UPDATE user_auth_providers SET user_id = {user} WHERE user_id = {user}
        UPDATE user_auth_providers SET provider_user_id = {new} WHERE user_id = {user}
    """,
}


IDS = {
    "grove": {
        "app": ("id", "portal_applications"),
        "account": ("id", "accounts"),
        "plan": ("plan_type", "pay_plans"),
        "user": ("id", "users"),
    },
    "pads_without_plans": {
        "app": ("id", "portal_applications"),
        "account": ("id", "accounts"),
        "plan": ("plan_type", "accounts"),
    },
    "portal_db": {
        "app": ("portal_application_id", "portal_applications"),
        "account": ("portal_account_id", "portal_accounts"),
        "plan": ("portal_plan_type", "portal_plans"),
    },
}
"""What the writes mean by an id: a column and its table."""
FILL = """
    INSERT INTO pay_plans SELECT 'p' || i, i, i FROM generate_series(0, 2) AS i;
    INSERT INTO accounts (id, plan_type) SELECT 'a' || i, 'p' || i % 3 FROM generate_series(0, 5) AS i;
    INSERT INTO portal_applications (id, account_id)
    SELECT 'app' || i, 'a' || i % 5 FROM generate_series(0, 11) AS i;
    INSERT INTO portal_application_settings (application_id, secret_key_required)
    SELECT 'app' || i, i % 3 > 0 FROM generate_series(0, 7) AS i;
    INSERT INTO users SELECT 'u' || i FROM generate_series(0, 7) AS i;
    INSERT INTO account_users (user_id, account_id)
    SELECT 'u' || i, 'a' || i % 4 FROM generate_series(0, 5) AS i;
    INSERT INTO user_auth_providers (user_id, type, provider_user_id)
    SELECT 'u' || i, 'auth0_github', 'github|' || i FROM generate_series(0, 6) AS i
"""
FILL_PORTAL_DB = """
    INSERT INTO portal_plans SELECT 'p' || i, nullif(i, 0), 'day', i FROM generate_series(0, 2) AS i;
    INSERT INTO portal_accounts SELECT 'a' || i, 'p' || i % 3 FROM generate_series(0, 5) AS i;
    INSERT INTO portal_applications SELECT 'app' || i, 'a' || i % 5 FROM generate_series(0, 11) AS i
"""


@pytest.mark.parametrize(("name", "identity"), COMBINATIONS)
def test_whatever_changes_was_affected(name: str, identity: str, database_factory: DatabaseFactory) -> None:
    database, mapping = database_factory(name), load(name)
    if identity == "index":
        role = database.create_role()
        database.set_up(mapping, role.name)
    elif identity == "full":
        for table in mapping.tables:
            database.execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
    seed = f"{name} {identity}"
    chance = random.Random(seed)  # noqa: S311 - which rows to write is no secret
    with database.connect().cursor() as cursor, database.connect().cursor() as writer:
        fill(cursor, mapping)
        cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", (database.name,))
        before, changes = full(cursor, mapping), 0
        for number in range(ROUNDS):
            parents = remember(cursor, mapping)
            statements = write(writer, name, chance, number)
            # Autovacuum analyzes while we write: its transactions have no rows.
            brought = [one for one in drain(cursor, database.name, mapping) if one.rows]
            (transaction,) = brought or (None,)
            after = full(cursor, mapping)
            changed = {id_ for id_ in {*before, *after} if before.get(id_) != after.get(id_)}
            found = {}
            if transaction is not None:
                parents.resolve(transaction.affected, transaction.end)
                assert transaction.affected.reconcile is None, (seed, statements)
                keys = {kind: list(values) for kind, values in transaction.affected.keys.items()}
                found = affected(cursor, mapping, keys) if keys else {}
            assert changed <= found.keys(), (seed, statements)
            assert found == {id_: after.get(id_) for id_ in found}, (seed, statements)
            before, changes = after, changes + len(changed)
    assert changes > ROUNDS / 4, seed


def fill(cursor: cursor, mapping: Mapping) -> None:
    """Write a small portal: three plans, six accounts, twelve applications, eight users."""
    statements = sql_text.statements(FILL_PORTAL_DB if mapping.name == "portal_db" else FILL)
    cursor.execute(";".join(one for one in statements if one.split()[2] in mapping.reads))


def write(cursor: cursor, name: str, chance: random.Random, number: int) -> list[str]:
    """Commit a few random writes in one transaction; those that a constraint forbids are left out, as are
    those to tables that this schema has not.
    """
    texts = {WRITES[name], WRITES["portal_db" if name == "portal_db" else "grove"]}
    choices = [line.strip() for text in sorted(texts) for line in text.splitlines() if line.strip()]
    done = []
    cursor.execute("BEGIN")
    for count in range(chance.randint(1, 4)):
        statement = chance.choice(choices)
        cursor.execute("SAVEPOINT one")
        try:
            while "{" in statement:
                head, _, rest = statement.partition("{")
                what, _, tail = rest.partition("}")
                new = f"n{number}-{count}"
                statement = head + any_of(cursor, what, chance, new, IDS.get(name, IDS["grove"])) + tail
            cursor.execute(statement)
            done.append(statement)
        except (psycopg2.IntegrityError, psycopg2.errors.UndefinedTable):
            cursor.execute("ROLLBACK TO one")
    cursor.execute("COMMIT")
    return done


def any_of(
    cursor: cursor, what: str, chance: random.Random, new: str, ids: dict[str, tuple[str, str]]
) -> str:
    """Return a literal (the id of a row that there is, something new, a truth value or a number), or for
    ``of_x`` a condition on the id of a row.
    """
    if what.startswith("of_"):
        what = what.removeprefix("of_")
        return f"{ids[what][0]} = {any_of(cursor, what, chance, new, ids)}"
    if what == "new":
        return f"'{new}'"
    if what == "bool":
        return chance.choice(("true", "false", "NULL"))
    if what == "big":
        return str(chance.choice((0, 7, 2**40)))
    column, table = ids[what]
    cursor.execute(f"SELECT {column} FROM {table} ORDER BY 1")
    return "'{}'".format(chance.choice([row for (row,) in cursor.fetchall()] or ["nothing"]))


def remember(cursor: cursor, mapping: Mapping) -> Parents:
    """Load the memory of parents that the replica identities make necessary."""
    cursor.execute(
        server_queries()["Relations"],
        {
            "schema": "public",
            "tables": list(mapping.tables),
            "signals": list(mapping.signals),
            "publication": None,
        },
    )
    nameless = Relations.of(cursor.fetchall()).nameless(mapping.rules)
    memory = {}
    for rule in nameless:
        assert rule.parents is not None
        cursor.execute(mapping.queries[rule.parents], {})
        memory[rule] = [(str(row), str(parent)) for row, parent in cursor.fetchall()]
    parents = Parents()
    parents.load(memory, covered=0)
    return parents


def drain(cursor: cursor, slot: str, mapping: Mapping) -> list[Transaction]:
    """Read the transactions that were committed since the last time."""
    options = {**wal2json.OPTIONS, "add-tables": ",".join(f"public.{table}" for table in mapping.tables)}
    cursor.execute(
        "SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL, VARIADIC %s)",
        (slot, [text for option in options.items() for text in option]),
    )
    assembler = Assembler({("public", table): table for table in mapping.tables}, mapping.rules)
    fed = (assembler.feed(wal2json.parse(data.encode())) for (data,) in cursor.fetchall())
    return [transaction for transaction in fed if transaction is not None]
