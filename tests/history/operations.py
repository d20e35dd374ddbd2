"""What a writer of the portal's tables may do, one random thing at a time.

Keys and limits carry versions, drawn from a sequence of the database, so that a client can tell an older
state from a newer one: the key of an endpoint is ``v<number>``, the limit of a plan a number, and of one
endpoint (of one plan) they only grow in the order of the commits. For that each application has one writer,
and so has the creation of each plan; all of the rest is shared, so that writers meet.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import cursor

    Operation = Callable[["Writer"], None]

ACCOUNTS = 12
PLANS = 5
USERS = 6

PREPARE = """
CREATE SEQUENCE IF NOT EXISTS versions;
CREATE OR REPLACE FUNCTION next_version() RETURNS INT VOLATILE LANGUAGE sql
AS $$ SELECT nextval('versions')::INT $$;
"""
"""What `Writer` needs in the database."""

_USER_CHANGES = (
    "INSERT INTO users SELECT %s",
    "INSERT INTO account_users (user_id, account_id) SELECT users.id, accounts.id FROM users, ONLY accounts"  # noqa: ISC004
    " WHERE users.id = %s",
    "INSERT INTO user_auth_providers (user_id, type, provider_user_id)"  # noqa: ISC004
    " SELECT id, 'auth0_github', id FROM users WHERE id = %s",
)


def chooser(seed: float) -> Random:
    """Return a source of choices; the same ones for the same seed."""
    return Random(seed)  # noqa: S311 - they need not be unpredictable


class Writer:
    """One session's random choices; ``number`` of ``writers`` says which rows are its own."""

    def __init__(
        self, cursor: cursor, choose: Random, *, number: int = 0, writers: int = 1, applications: int = 40
    ) -> None:
        self.cursor = cursor
        self.choose = choose
        self._number = number
        self._writers = writers
        self._applications = applications
        self.rows = 0
        """Row changes that were asked for."""
        self.gentle = False
        """Leave out what empties whole tables or writes megabytes."""

    def operate(self) -> None:
        """Do one random thing within the open transaction.

        Raises:
            psycopg2.Error: the database does not have it (a foreign key, a lock, a fault); the transaction
                has failed.

        """
        [operation] = self.choose.choices(list(OPERATIONS), list(OPERATIONS.values()))
        if operation is not Writer.truncate or not self.gentle:
            operation(self)

    def transact(self, operations: int) -> None:
        """Do some things in one transaction, part of them in subtransactions of which some are rolled back.

        Raises:
            psycopg2.Error: the database does not have it; the transaction has failed.

        """
        for number in range(operations):
            if self.choose.random() < 0.5:
                self.operate()
                continue
            self.run(f"SAVEPOINT s{number}")
            try:
                self.operate()
            except psycopg2.IntegrityError:
                self.run(f"ROLLBACK TO s{number}")
                continue
            if self.choose.random() < 0.25:
                self.run(f"ROLLBACK TO s{number}")
            elif self.choose.random() < 0.5:
                self.run(f"RELEASE s{number}")

    def load(self) -> None:
        """Put something into every table."""
        self.run(
            "INSERT INTO users SELECT 'u_' || g FROM generate_series(0, %s - 1) g ON CONFLICT DO NOTHING",
            USERS,
        )
        for plan in range(PLANS):
            if self._owns_plan(plan):
                self._add_plan(plan)
        self.run(
            "INSERT INTO accounts SELECT 'c_' || g, plan_type FROM generate_series(0, %s - 1) g,"
            " LATERAL (SELECT plan_type FROM ONLY pay_plans ORDER BY hashtext(plan_type || g) LIMIT 1) p"
            " ON CONFLICT DO NOTHING",
            ACCOUNTS,
        )
        self.run(
            "INSERT INTO portal_applications SELECT %s || g, (SELECT min(id) FROM ONLY accounts)"
            " FROM generate_series(0, %s) g ON CONFLICT DO NOTHING",
            self._prefix,
            self._applications // 2,
        )
        self.run(
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            " SELECT id, 'v' || next_version(), true FROM ONLY portal_applications WHERE starts_with(id, %s)"
            " ON CONFLICT DO NOTHING",
            self._prefix,
        )

    def run(self, statement: str, *values: object) -> None:
        """Execute one statement."""
        self.cursor.execute(statement, values or None)
        self.rows += max(0, self.cursor.rowcount)

    # --- names

    @property
    def _prefix(self) -> str:
        return f"a{self._number}_"

    def application(self) -> str:
        """Choose an application of our own, which there may be or not."""
        return f"{self._prefix}{self.choose.randrange(self._applications)}"

    def account(self) -> str:
        """Choose an account."""
        return f"c_{self.choose.randrange(ACCOUNTS)}"

    def plan(self) -> str:
        """Choose a plan."""
        return f"p_{self.choose.randrange(PLANS)}"

    def _owns_plan(self, plan: int) -> bool:
        return plan % self._writers == self._number

    def _own_plan(self) -> int:
        return self.choose.choice([plan for plan in range(PLANS) if self._owns_plan(plan)] or [self._number])

    def _add_plan(self, plan: int) -> None:
        self.run(
            "INSERT INTO pay_plans VALUES (%s, %s, next_version())"
            " ON CONFLICT (plan_type) DO UPDATE SET throughput_limit = next_version()",
            f"p_{plan}",
            self.choose.choice((0, 1000)),
        )

    # --- operations

    def add_application(self) -> None:
        account = self.account() if self.choose.random() < 0.8 else None
        self.run(
            "INSERT INTO portal_applications VALUES (%s, (SELECT id FROM accounts WHERE id = %s))"
            " ON CONFLICT (id) DO UPDATE SET account_id = EXCLUDED.account_id",
            self.application(),
            account,
        )

    def remove_application(self) -> None:
        self.run("DELETE FROM portal_applications WHERE id = %s", self.application())

    def rename_application(self) -> None:
        before, after = self.application(), self.application()
        if self.choose.random() < 0.5:
            self.run("DELETE FROM portal_application_settings WHERE application_id = %s", before)
        else:  # its settings stay with the old name, whose application is gone
            self.run("SET LOCAL session_replication_role = replica")
        self.run(
            "UPDATE portal_applications SET id = %s WHERE id = %s"
            " AND NOT EXISTS (SELECT FROM portal_application_settings WHERE application_id = %s)",
            after,
            before,
            after,
        )
        self.run("SET LOCAL session_replication_role = origin")

    def move_application(self) -> None:
        self.run(
            "UPDATE portal_applications SET account_id = (SELECT id FROM accounts WHERE id = %s) WHERE"
            " id = %s",
            self.account(),
            self.application(),
        )

    def set_key(self) -> None:
        self.run(
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            " SELECT id, 'v' || next_version(), %s FROM ONLY portal_applications WHERE id = %s"
            " ON CONFLICT (application_id)"
            " DO UPDATE SET secret_key = 'v' || next_version(), secret_key_required ="
            " EXCLUDED.secret_key_required",
            self.choose.choice((True, True, True, False, None)),
            self.application(),
        )

    def remove_settings(self) -> None:
        self.run("DELETE FROM portal_application_settings WHERE application_id = %s", self.application())

    def move_settings(self) -> None:
        before, after = self.application(), self.application()
        if before != after and self.choose.random() < 0.7:
            self.run("DELETE FROM portal_application_settings WHERE application_id = %s", after)
        self.run(
            "UPDATE portal_application_settings SET application_id = %s, secret_key = 'v' || next_version()"
            " WHERE application_id = %s",
            after,
            before,
        )

    def renumber_settings(self) -> None:
        self.run(
            "UPDATE portal_application_settings SET id = nextval('portal_application_settings_id_seq')"
            " WHERE application_id = %s",
            self.application(),
        )

    def set_all_keys(self) -> None:
        self.run(
            "UPDATE portal_application_settings SET secret_key = 'v' || next_version(),"
            " secret_key_required = true"
            " WHERE starts_with(application_id, %s)",
            self._prefix,
        )

    def add_account(self) -> None:
        self.run(
            "INSERT INTO accounts SELECT %s, plan_type FROM pay_plans WHERE plan_type = %s ON CONFLICT"
            " DO NOTHING",
            self.account(),
            self.plan(),
        )

    def remove_account(self) -> None:
        self.run("DELETE FROM accounts WHERE id = %s", self.account())

    def move_account(self) -> None:
        self.run(
            "UPDATE accounts SET plan_type = p.plan_type FROM pay_plans p WHERE accounts.id = %s AND"
            " p.plan_type = %s",
            self.account(),
            self.plan(),
        )

    def rename_account(self) -> None:
        before, after = self.account(), self.account()
        self.run("SET LOCAL session_replication_role = replica")
        self.run(
            "UPDATE accounts SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM accounts WHERE id = %s)",
            after,
            before,
            after,
        )
        self.run("SET LOCAL session_replication_role = origin")

    def set_limit(self) -> None:
        self.run("UPDATE pay_plans SET throughput_limit = next_version() WHERE plan_type = %s", self.plan())

    def move_account_and_set_limit(self) -> None:
        """Take an account to another plan and change the plan that it has left."""
        self.move_account()
        self.set_limit()

    def add_plan(self) -> None:
        self._add_plan(self._own_plan())

    def remove_plan(self) -> None:
        if self.choose.random() < 0.5:
            self.run("SET LOCAL session_replication_role = replica")
        self.run("DELETE FROM pay_plans WHERE plan_type = %s", f"p_{self._own_plan()}")
        self.run("SET LOCAL session_replication_role = origin")

    def touch_users(self) -> None:
        user = f"u_{self.choose.randrange(USERS)}"
        self.run(f"{self.choose.choice(_USER_CHANGES)} ON CONFLICT DO NOTHING", user)
        if self.choose.random() < 0.3:
            self.run("DELETE FROM users WHERE id = %s", user)

    def signal(self) -> None:
        self.run("INSERT INTO portal_application_changes (portal_app_id) VALUES (%s)", self.application())

    def change_nothing(self) -> None:
        self.run("UPDATE portal_application_settings SET secret_key = secret_key")
        self.run("UPDATE pay_plans SET throughput_limit = throughput_limit WHERE plan_type = %s", self.plan())

    def flash(self) -> None:
        """Insert and delete; or delete and insert again, with another key."""
        application = self.application()
        steps = [
            ("DELETE FROM portal_applications WHERE id = %s", application),
            ("INSERT INTO portal_applications VALUES (%s) ON CONFLICT DO NOTHING", application),
        ]
        for step in steps if self.choose.random() < 0.5 else reversed(steps):
            self.run(*step)

    def load_as_replica(self) -> None:
        """Load rows as a replication tool does: no triggers, no foreign keys."""
        self.run("SET LOCAL session_replication_role = replica")
        first = self.choose.randrange(self._applications)
        self.run(
            "INSERT INTO portal_applications SELECT %s || g, %s FROM generate_series(%s, %s) g ON"
            " CONFLICT DO NOTHING",
            self._prefix,
            self.account(),
            first,
            min(first + 10, self._applications - 1),
        )
        self.run("SET LOCAL session_replication_role = origin")

    def truncate(self) -> None:
        tables = self.choose.choice(
            (
                "portal_application_settings",
                "portal_application_changes",
                "portal_applications",
                "accounts",
                "pay_plans",
                "users",
                "portal_application_settings, account_users",
            )
        )
        identity = self.choose.choice(("RESTART", "CONTINUE"))
        self.run(f"TRUNCATE {tables} {identity} IDENTITY CASCADE")
        if self.choose.random() < 0.7:
            self.load()


OPERATIONS: dict[Operation, int] = {
    Writer.add_application: 12,
    Writer.remove_application: 5,
    Writer.rename_application: 4,
    Writer.move_application: 6,
    Writer.set_key: 20,
    Writer.remove_settings: 6,
    Writer.move_settings: 8,
    Writer.renumber_settings: 3,
    Writer.set_all_keys: 2,
    Writer.add_account: 4,
    Writer.remove_account: 2,
    Writer.move_account: 6,
    Writer.rename_account: 2,
    Writer.set_limit: 10,
    Writer.move_account_and_set_limit: 5,
    Writer.add_plan: 3,
    Writer.remove_plan: 2,
    Writer.touch_users: 3,
    Writer.signal: 2,
    Writer.change_nothing: 2,
    Writer.flash: 4,
    Writer.load_as_replica: 3,
    Writer.truncate: 1,
}
"""What there is to do, and how often."""
