"""A portal's transactions, one at a time. Each is described before it is committed."""

from __future__ import annotations

import itertools
import secrets
import time
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

from server.commands.demo.portal import endpoints

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from server.commands.demo.portal import Portal

KINDS: Final = (
    "key rotated",
    "key revoked",
    "account moved",
    "application created",
    "application deleted",
    "plan changed",
)
_WEIGHTS: Final = {
    "key rotated": 50,
    "key revoked": 12,
    "account moved": 14,
    "application created": 13,
    "application deleted": 11,
}
_COMMITS_A_SECOND: Final = 30
_COMMITS_A_PLAN: Final = 120
"""One commit in this number changes a plan: often enough to be seen, and rarely enough to leave room for
others.
"""

_KEY: Final = """
INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
VALUES (%(application)s, %(key)s, true)
ON CONFLICT (application_id) DO UPDATE SET secret_key = excluded.secret_key, secret_key_required = true
"""
_MOVE: Final = "UPDATE accounts SET plan_type = %(plan)s WHERE id = %(account)s"
_CREATE: Final = (
    "INSERT INTO portal_applications (id, account_id) VALUES (%(application)s, %(account)s);" + _KEY
)
_DELETE: Final = "DELETE FROM portal_applications WHERE id = %(application)s"  # the settings cascade
_CHANGE_PLAN: Final = """
UPDATE pay_plans
SET throughput_limit = throughput_limit + 1, monthly_relay_limit = monthly_relay_limit + 1000
WHERE plan_type = %(plan)s
"""


@dataclass(frozen=True)
class WorkloadCommit:
    """One transaction."""

    number: int
    kind: str
    """One of `KINDS`."""
    what: str
    """A description for people, without keys."""
    changes: Mapping[str, GatewayEndpoint | None] = field(repr=False)
    """The endpoints that it changes, in their new state; None for a deleted one."""
    before: Mapping[str, GatewayEndpoint] = field(repr=False)
    """The same endpoints in their old state. New endpoints are left out."""


@dataclass(frozen=True)
class _Step:
    what: str
    statement: str
    parameters: dict[str, Any] = field(repr=False)
    scope: tuple[str, str]
    """A column of the mapping, and the value that every changed endpoint has in it."""


class Workload:
    """An endless series of transactions. No other session may write, since the descriptions would then be
    wrong.
    """

    def __init__(self, session: Connection, random: Random) -> None:
        self._session = session
        self._random = random
        self._numbers = itertools.count(1)
        self._applications = [
            application for (application,) in self._rows("SELECT id FROM portal_applications")
        ]
        self._plan_of = dict(self._rows("SELECT id, plan_type FROM accounts"))
        self._accounts = list(self._plan_of)
        self._plans = sorted(set(self._plan_of.values()))
        self._steps = {
            "key rotated": self._rotate,
            "key revoked": self._revoke,
            "account moved": self._move,
            "application created": self._create,
            "application deleted": self._delete,
            "plan changed": self._change_plan,
        }

    def prepare(self) -> WorkloadCommit:
        """Execute the next transaction up to its COMMIT, and return what the COMMIT will change."""
        number = next(self._numbers)
        kind = "plan changed"
        if number % _COMMITS_A_PLAN != _COMMITS_A_PLAN // 4:
            [kind] = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        step = self._steps[kind]()
        with self._session.cursor() as cursor:
            before = endpoints(cursor, *step.scope)
            cursor.execute(step.statement, step.parameters)
            after = endpoints(cursor, *step.scope)
        # A statement may leave an endpoint unchanged. For example, an endpoint without a key cannot lose its
        # key.
        changes = {each: after.get(each) for each in before | after if before.get(each) != after.get(each)}
        changed = {each: endpoint for each, endpoint in before.items() if each in changes}
        return WorkloadCommit(number, kind, step.what, changes, changed)

    def commit(self) -> float:
        """Commit. Returns the time at which COMMIT returned, by ``time.monotonic``."""
        self._session.commit()
        return time.monotonic()

    def _rotate(self) -> _Step:
        application = self._random.choice(self._applications)
        return _Step(
            application, _KEY, {"application": application, "key": _key()}, ("endpoint_id", application)
        )

    def _revoke(self) -> _Step:
        application = self._random.choice(self._applications)
        return _Step(
            application, _KEY, {"application": application, "key": None}, ("endpoint_id", application)
        )

    def _move(self) -> _Step:
        account = self._random.choice(self._accounts)
        plan = self._random.choice([each for each in self._plans if each != self._plan_of[account]])
        self._plan_of[account] = plan
        return _Step(
            f"{account} to {plan}", _MOVE, {"account": account, "plan": plan}, ("account_id", account)
        )

    def _create(self) -> _Step:
        application = f"new_{secrets.token_hex(4)}"
        self._applications.append(application)
        account = self._random.choice(self._accounts)
        parameters = {"application": application, "account": account, "key": _key()}
        return _Step(f"{application} of {account}", _CREATE, parameters, ("endpoint_id", application))

    def _delete(self) -> _Step:
        index = self._random.randrange(len(self._applications))
        application, self._applications[index] = self._applications[index], self._applications[-1]
        self._applications.pop()
        return _Step(application, _DELETE, {"application": application}, ("endpoint_id", application))

    def _change_plan(self) -> _Step:
        plan = self._random.choice(self._plans)
        return _Step(f"limits of {plan}", _CHANGE_PLAN, {"plan": plan}, ("plan_type", plan))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._session.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()


class Watching(Protocol):
    """Receives each commit, before and after it."""

    def expect(self, commit: WorkloadCommit) -> None:
        """Called before a commit."""

    def committed(self, commit: WorkloadCommit, at: float) -> None:
        """Called after a commit, with the time at which COMMIT returned, by ``time.monotonic``."""


def commit_until(stop: threading.Event, portal: Portal, *watching: Watching) -> None:
    """Commit at random moments until ``stop`` is set, and report each commit to ``watching``.

    Raises:
        psycopg2.Error: the database failed.

    """
    random = Random()  # noqa: S311 - nothing depends on its being unpredictable
    with closing(portal.connect()) as session:
        workload = Workload(session, random)
        while not stop.wait(random.expovariate(_COMMITS_A_SECOND)):
            commit = workload.prepare()
            for each in watching:
                each.expect(commit)
            at = workload.commit()
            for each in watching:
                each.committed(commit, at)


def _key() -> str:
    return secrets.token_hex(16)
