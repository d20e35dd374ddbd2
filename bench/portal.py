"""A portal of any size: which endpoints there are, on which plans, and the SQL that makes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.mapping.mapping import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2.extensions import connection

REST: Final = "rest"
"""The plan of all that no other plan has."""

_ID: Final = "substr(md5(number::text), 1, 24)"
_ACCOUNT: Final = "'a' || lpad((%(first)s + (number - %(first)s) / 10 * 10)::text, 9, '0')"
_FILL: Final = f"""
INSERT INTO pay_plans VALUES (%(plan)s, 1000000, 100);
INSERT INTO accounts
SELECT DISTINCT {_ACCOUNT}, %(plan)s FROM generate_series(%(first)s, %(last)s) AS number;
INSERT INTO portal_applications
SELECT {_ID}, {_ACCOUNT} FROM generate_series(%(first)s, %(last)s) AS number;
INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
SELECT {_ID}, md5('key' || number), true FROM generate_series(%(first)s, %(last)s) AS number;
"""
"""Ten applications an account; ids as scattered as real ones, so that indexes are met in no order."""
_NOISE: Final = """
CREATE TABLE noise (id INT PRIMARY KEY, secret_key TEXT, secret_key_required BOOLEAN);
INSERT INTO noise SELECT number, md5('key' || number), true FROM generate_series(0, %(last)s) AS number;
"""
"""A table that is none of ours, as large as one of them."""
_PUBLICATION: Final = """
CREATE PUBLICATION pads_cdc FOR TABLE
    public.pay_plans (plan_type),
    public.accounts (id),
    public.portal_applications (id),
    public.portal_application_settings (id, application_id),
    public.portal_application_changes (id, portal_app_id);
"""
"""As `pads-cdc setup` makes it."""


@dataclass(frozen=True)
class Portal:
    """Endpoints are known by numbers from 0; a plan has a range of them, and `REST` what is left."""

    endpoints: int
    plans: Mapping[str, int]
    """Endpoints by plan, in the order of their numbers; `REST` follows and is not named here."""

    def numbers(self, plan: str) -> range:
        """Return the endpoints of a plan."""
        first = 0
        for name, count in self.plans.items():
            if name == plan:
                return range(first, first + count)
            first += count
        return range(first, self.endpoints)

    def fill(self, session: connection) -> None:
        """Make schema, rows and what `pads-cdc setup` adds. Blocks for some 15 s a million endpoints."""
        mapping = load("grove")
        with session.cursor() as cursor:
            cursor.execute(mapping.schema)
            cursor.execute("SET session_replication_role = replica")  # no foreign key is looked up a row
            for plan in (*self.plans, REST):
                numbers = self.numbers(plan)
                if numbers:
                    cursor.execute(_FILL, {"plan": plan, "first": numbers[0], "last": numbers[-1]})
            cursor.execute(_NOISE, {"last": self.endpoints - 1})
            cursor.execute("SET session_replication_role = origin")
            for statement in (*mapping.setup_statements("public", None), _PUBLICATION):
                cursor.execute(statement)
            cursor.execute("VACUUM (FREEZE, ANALYZE)")


def endpoint_id(number: int) -> str:
    """Return the id of an endpoint, as the database makes it."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:24]
