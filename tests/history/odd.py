"""What a writer may do that makes rows odd (`cdc.mapping.row_rule`), beside writers whose rows are not.

The odd rows are in tables that inherit from the mapped ones, but not their keys: an id may be NULL there, or
be there twice. All columns are as wide as a portal's may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2

from tests.history.operations import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from psycopg2.extensions import cursor

    from tests.plugins.postgres import Database

    Operation = Callable[["OddWriter"], None]

_TABLES = """
ALTER TABLE pay_plans
    ALTER monthly_relay_limit TYPE TEXT, ALTER monthly_relay_limit DROP NOT NULL,
    ALTER throughput_limit TYPE NUMERIC, ALTER throughput_limit DROP NOT NULL;
ALTER TABLE portal_applications ALTER id TYPE TEXT;
ALTER TABLE portal_application_settings
    ALTER application_id TYPE TEXT, ALTER secret_key TYPE TEXT, ALTER secret_key_required TYPE TEXT;
CREATE TABLE odd_plans () INHERITS (pay_plans);
CREATE TABLE odd_accounts () INHERITS (accounts);
CREATE TABLE odd_applications (note TEXT) INHERITS (portal_applications);
CREATE TABLE odd_settings (note TEXT) INHERITS (portal_application_settings);
ALTER TABLE odd_plans REPLICA IDENTITY FULL;
ALTER TABLE odd_accounts REPLICA IDENTITY FULL;
ALTER TABLE odd_applications REPLICA IDENTITY FULL;
ALTER TABLE odd_settings REPLICA IDENTITY FULL;
CREATE INDEX ON odd_accounts (plan_type);
CREATE INDEX ON odd_applications (account_id);
"""

_MENDED = "mended"
"""The plan that is there while no row is odd."""
_NAMES = 8
_APPLICATIONS = 40
_SHADOWED = 3
"""Applications of the first ordinary writer that become odd at times, and right again."""
_TOO_LONG = 5 << 20
_SANE_LIMITS = ("0", "1", "7", "1000", "2147483647", None)
_ODD_LIMITS = (
    *("5000000000", "-5000000000", "9223372036854775808", "1e1000", "1e-1000", "0.5", "-0.5", "2147483647.1"),
    *("NaN", "nan", "Infinity", "-Infinity", None),
)
_ODD_TEXTS = (
    *(*_ODD_LIMITS, "", " ", "unlimited", "12 per day", "0x10", "1_000", "٣", "--1", "1e999999999", " 12 "),
    *("9" * 100_000, "9" * 100_000 + "x", "infinit", "+inf"),
)
_SANE_FLAGS = ("true", "false", "t", "f", None)
_ODD_FLAGS = ("maybe", "", "2", "yes", "NO", "truest", "o", " on ", "-")


def make_odd_tables(database: Database) -> bool:
    """Make what `OddWriter` needs, in a database without rows; returns whether an id can be NULL there."""
    database.execute(_TABLES)
    try:
        database.execute("ALTER TABLE odd_applications ALTER id DROP NOT NULL")
    except psycopg2.errors.InvalidTableDefinition:  # since PostgreSQL 18 that is inherited for good
        return False
    return True


class OddWriter(Writer):
    """Writes rows that are odd while ``odd`` says so, and ordinary ones of the same kind otherwise."""

    def __init__(
        self,
        cursor: cursor,
        choose: Random,
        *,
        odd: Callable[[], bool],
        bytes_that_are_no_text: bool,
        null_ids: bool,
    ) -> None:
        """``bytes_that_are_no_text``: the database takes any, as one in SQL_ASCII does."""
        super().__init__(cursor, choose, applications=_APPLICATIONS)
        self._odd = odd
        self._any_bytes = bytes_that_are_no_text
        self._null_ids = null_ids

    def load(self) -> None:
        """Begin with plans, accounts and applications as they should be."""
        self.mend()

    def operate(self) -> None:
        """Do one random thing, after having mended everything if nothing is to be odd any more.

        Raises:
            psycopg2.Error: as `Writer.operate`.

        """
        if self._odd():
            self.run(f"DELETE FROM odd_plans WHERE plan_type = '{_MENDED}'")
        elif not self._mended():
            self.mend()
        [operation] = self.choose.choices(list(ODD_OPERATIONS), list(ODD_OPERATIONS.values()))
        if operation is not OddWriter.write_too_much or not self.gentle:
            operation(self)

    def mend(self) -> None:
        """Leave no odd row."""
        self.run("DELETE FROM odd_settings; DELETE FROM odd_applications; DELETE FROM odd_accounts")
        self.run("DELETE FROM odd_plans")
        self.run(f"INSERT INTO odd_plans VALUES ('{_MENDED}', '0', 0)")
        self.run("INSERT INTO odd_plans SELECT 'x_' || g, '5', 1 FROM generate_series(1, %s) g", _NAMES)
        self.run("INSERT INTO odd_accounts SELECT 'x_' || g, 'x_' || g FROM generate_series(1, %s) g", _NAMES)
        self.run(
            "INSERT INTO odd_applications SELECT 'x_' || g, 'x_' || (1 + g %% %s)"
            " FROM generate_series(1, %s) g",
            _NAMES,
            _APPLICATIONS // 2,
        )

    def _mended(self) -> bool:
        self.cursor.execute("SELECT EXISTS (SELECT FROM odd_plans WHERE plan_type = %s)", (_MENDED,))
        return bool(self.cursor.fetchone() == (True,))

    # --- names

    def _name(self) -> str:
        return f"x_{1 + self.choose.randrange(_NAMES)}"

    def _application(self) -> str:
        return f"x_{1 + self.choose.randrange(_APPLICATIONS)}"

    def _one(self, table: str, column: str) -> str:
        """Return a condition for one row, which may have its name in common with others."""
        name = self._application()
        return f"ctid IN (SELECT ctid FROM {table} WHERE {column} = '{name}' LIMIT 1)"

    # --- operations

    def set_relays(self) -> None:
        """Set the limit that is text."""
        limit = self.choose.choice(_ODD_TEXTS if self._odd() else _SANE_LIMITS)
        self.run("UPDATE odd_plans SET monthly_relay_limit = %s WHERE plan_type = %s", limit, self._name())

    def set_throughput(self) -> None:
        """Set the limit that is a number."""
        limit = self.choose.choice(_ODD_LIMITS if self._odd() else _SANE_LIMITS)
        self.run("UPDATE odd_plans SET throughput_limit = %s WHERE plan_type = %s", limit, self._name())

    def set_odd_key(self) -> None:
        """Set a key, and whether it is needed."""
        application, odd = self._application(), self._odd()
        key = "chr(255) || 'v' || next_version()" if odd and self._any_bytes else "'v' || next_version()"
        self.run("DELETE FROM odd_settings WHERE application_id = %s", application)
        self.run(
            f"INSERT INTO odd_settings (application_id, secret_key, secret_key_required)"
            f" VALUES (%s, {key}, %s)",
            application,
            self.choose.choice(_ODD_FLAGS if odd else _SANE_FLAGS),
        )

    def repeat(self) -> None:
        """Add another row of the same name, which says the same or other things."""
        application = self._application() if self._odd() else f"x_{self.choose.randrange(10**6)}"
        table = self.choose.choice(("application", "plan", "settings"))
        if table == "application":
            self.run("INSERT INTO odd_applications VALUES (%s, %s)", application, self._name())
        elif table == "plan":
            name = self._name() if self._odd() else f"y_{self.choose.randrange(10**6)}"
            self.run("INSERT INTO odd_plans VALUES (%s, '6', 1)", name)
        else:
            self.run(
                "INSERT INTO odd_settings SELECT id, application_id, 'v' || next_version(), 'true'"
                " FROM odd_settings WHERE application_id = %s LIMIT 1",
                application,
            )

    def remove_one(self) -> None:
        """Remove one row of a name, of which there may be several."""
        self.run(f"DELETE FROM odd_applications WHERE {self._one('odd_applications', 'id')}")

    def move_odd(self) -> None:
        """Move an application to another account, or rename it to what no endpoint can be called."""
        before = self._application()
        if self.choose.random() < 0.5:
            self.run("UPDATE odd_applications SET account_id = %s WHERE id = %s", self._name(), before)
        else:
            self.run(f"UPDATE odd_applications SET id = {self._new_id()} WHERE id = %s", before)

    def come_back(self) -> None:
        """Give an application whose name is none a proper one."""
        self.run(
            "UPDATE odd_applications SET id = %s"
            " WHERE id IS NULL OR id = '' OR length(id) > 100 OR ascii(id) = 255",
            self._application(),
        )

    def add_unknown_bytes(self) -> None:
        """Have an account and its plan called by bytes that are no text."""
        plan = "'x' || chr(254)" if self._odd() and self._any_bytes else "'x_1'"
        self.run(f"INSERT INTO odd_plans SELECT {plan}, '7', 1 WHERE {plan} <> 'x_1'")
        self.run(f"UPDATE odd_accounts SET plan_type = {plan} WHERE id = %s", self._name())

    def shadow(self) -> None:
        """Take the name of an ordinary application, or give it back."""
        name = f"a0_{self.choose.randrange(_SHADOWED)}"
        if self._odd() and self.choose.random() < 0.5:
            self.run("INSERT INTO odd_applications VALUES (%s, %s)", name, self._name())
        else:
            self.run("DELETE FROM odd_applications WHERE id = %s", name)

    def write_too_much(self) -> None:
        """Write what no message takes; or just as much where nobody reads it."""
        long = f"repeat('s', {_TOO_LONG})"
        if self.choose.random() < 0.5:
            self.run(
                "UPDATE odd_settings SET secret_key = 'v' || next_version(), note = NULL"
                " WHERE length(coalesce(note, secret_key)) > 1000"
            )
            column, where = (
                "secret_key" if self._odd() else "note",
                self._one("odd_settings", "application_id"),
            )
            self.run(f"UPDATE odd_settings SET {column} = {long} WHERE {where}")
        else:
            self.run("DELETE FROM odd_applications WHERE length(coalesce(note, id)) > 1000")
            values = f"{long}, NULL, NULL" if self._odd() else f"'{self._application()}', NULL, {long}"
            self.run(f"INSERT INTO odd_applications VALUES ({values})")

    def mend_all(self) -> None:
        """Mend everything."""
        self.mend()

    def _new_id(self) -> str:
        """Return an expression: in odd times of no id that an endpoint can have."""
        if not self._odd():
            return f"'{self._application()}'"
        null = ("NULL", "NULL") if self._null_ids else ()
        no_text = ("chr(255)", "'x' || chr(254)", "'x_1' || chr(195)") if self._any_bytes else ()
        choices: tuple[str, ...] = ("''", *null, *no_text)
        return self.choose.choice(choices)


ODD_OPERATIONS: dict[Operation, int] = {
    OddWriter.set_relays: 8,
    OddWriter.set_throughput: 8,
    OddWriter.set_odd_key: 20,
    OddWriter.repeat: 8,
    OddWriter.remove_one: 8,
    OddWriter.move_odd: 8,
    OddWriter.come_back: 4,
    OddWriter.add_unknown_bytes: 3,
    OddWriter.shadow: 6,
    OddWriter.write_too_much: 1,
    OddWriter.mend_all: 1,
}
"""What there is to do, and how often."""
