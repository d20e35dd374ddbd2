"""A portal of any size: its endpoints, their plans, and the SQL that creates them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.mapping.mapping import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2.extensions import connection

REST: Final = "rest"
"""The plan of all other endpoints."""

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
"""Makes ten applications for each account. Ids are scattered like real ones, so rows are not in the order of
indexes.
"""
_NOISE: Final = """
CREATE TABLE noise (id INT PRIMARY KEY, secret_key TEXT, secret_key_required BOOLEAN);
INSERT INTO noise SELECT number, md5('key' || number), true FROM generate_series(0, %(last)s) AS number;
"""
"""A table outside the mapping, as large as one of its tables."""
_PUBLICATION: Final = """
CREATE PUBLICATION pads_cdc FOR TABLE
    public.pay_plans (plan_type),
    public.accounts (id),
    public.portal_applications (id),
    public.portal_application_settings (id, application_id),
    public.portal_application_changes (id, portal_app_id);
"""
"""The publication as `pads-cdc setup` creates it."""


@dataclass(frozen=True)
class Portal:
    """A portal whose endpoints are numbered from 0. Each plan has a range of them; the plan `REST` has all
    others.
    """

    endpoints: int
    plans: Mapping[str, int]
    """Number of endpoints of each plan, in the order of the endpoints' numbers. `REST`, which comes last, is
    left out.
    """

    def numbers(self, plan: str) -> range:
        """Return the numbers of a plan's endpoints."""
        first = 0
        for name, count in self.plans.items():
            if name == plan:
                return range(first, first + count)
            first += count
        return range(first, self.endpoints)

    def fill(self, session: connection) -> None:
        """Create the schema, the rows and what `pads-cdc setup` adds. Takes 15 s for a million endpoints."""
        mapping = load("grove")
        with session.cursor() as cursor:
            cursor.execute(mapping.schema)
            cursor.execute("SET session_replication_role = replica")  # no foreign key checks
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
    """Return the id of an endpoint, as the SQL computes it."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:24]
