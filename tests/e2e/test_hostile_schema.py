"""A role that may create objects in the mapped schema, and read nothing, gains nothing by any command."""

from __future__ import annotations

import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping.mapping import load
from cdc.replication import pgoutput
from tests.plugins.decoding import plugin_settings
from tests.plugins.postgres import fetched
from tests.plugins.server import expected_by, fill, wait_until
from tests.support import ROOT
from tests.support.poison import MARK, poison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from psycopg2.extensions import connection

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, ServerFactory

    Command = Callable[..., subprocess.CompletedProcess[str]]


class Poisoned:
    """A database whose schema is full of look-alikes, and a session that none of them reaches."""

    def __init__(self, database: Database, mapping: str, session: connection) -> None:
        self.database = database
        self.mapping = mapping
        self._session = session

    def execute(self, statement: str) -> None:
        with self._session.cursor() as cursor:
            cursor.execute(statement)

    def wait_equal(self, client: Gateway) -> None:
        oracle = expected_by(self._session, self.mapping)
        client.wait(lambda one: one.map == oracle, "the mapping query's result")

    def ran(self) -> list[str]:
        """Return what of it has run so far, by the server's log."""
        log = (self.database.cluster.folder / "postgres.log").read_text()
        return [line for line in log.splitlines() if f"LOG:  {MARK}" in line]


@pytest.fixture(params=[("15", "grove"), ("17", "grove_jwt"), ("18", "grove_soft_delete")], ids="-".join)
def poisoned(
    request: pytest.FixtureRequest, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> Iterator[Poisoned]:
    """One of each mapping, each on another version."""
    version, mapping = request.param
    cluster = cluster_factory(programs=fetched(version))
    database = database_factory(mapping, cluster=cluster)
    if mapping == "grove_soft_delete":
        database.execute(
            """
            INSERT INTO pay_plans SELECT 'plan_' || g, g * 1000, g FROM generate_series(0, 9) g;
            INSERT INTO accounts (id, plan_type)
                SELECT 'acc_' || g, 'plan_' || g FROM generate_series(0, 9) g;
            INSERT INTO portal_applications (id, account_id)
                SELECT 'app_' || g, 'acc_' || g % 10 FROM generate_series(1, 100) g;
            INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
                SELECT 'app_' || g, 'key_' || g, true FROM generate_series(1, 100) g
            """
        )
    else:
        fill(database, 100)
    assert poison(database) > 2_000
    with closing(psycopg2.connect(database.url(), options="-c search_path=pg_catalog")) as session:
        session.autocommit = True
        yield Poisoned(database, mapping, session)


def test_none_runs_whatever_the_command(
    poisoned: Poisoned,
    pads_cdc: Command,
    check: Check,
    serve: ServerFactory,
    gateway: GatewayFactory,
    tmp_path: Path,
    plugin: str,
) -> None:
    database, mapping = poisoned.database, poisoned.mapping
    role, file = f"{database.name}_role_service", tmp_path / "service.dsn"
    given = {"ADMIN_CONNECTION_STRING": database.url(), "MAPPING": mapping, **plugin_settings(plugin)}
    for _ in range(2):
        done = pads_cdc("setup", "--role", role, "--role-file", str(file), **given)
        assert done.returncode == 0, done.stderr
    assert not poisoned.ran(), "setup, as an administrator"

    url = file.read_text().strip()
    for who in (url, database.url()):
        report = check(who, MAPPING=mapping)
        assert report.ready, report.findings
    assert not poisoned.ran(), "check"

    server = serve(url, MAPPING=mapping, AUDIT_INTERVAL="1s")
    client = gateway(server.wait_ready())
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "it streams")
    for statement in (
        "UPDATE public.pay_plans SET throughput_limit = 78",
        "UPDATE public.accounts SET plan_type = 'plan_2'",
        "DELETE FROM public.portal_applications WHERE id IN ('app_1', 'app_2')",
        "INSERT INTO public.portal_applications (id, account_id) VALUES ('new', 'acc_1')",
        "UPDATE public.portal_application_settings SET secret_key = 'rotated' WHERE application_id = 'app_3'",
        "INSERT INTO public.portal_application_changes (portal_app_id) VALUES ('app_4')",
        "TRUNCATE public.portal_application_settings",
        "ALTER TABLE public.accounts REPLICA IDENTITY FULL",
        "UPDATE public.accounts SET plan_type = 'plan_3'",
    ):
        poisoned.execute(statement)
        if plugin == pgoutput.NAME and "REPLICA IDENTITY" in statement:  # else updates would be refused
            assert pads_cdc("setup", "--role", role, **given).returncode == 0
        poisoned.wait_equal(client)
    server.wait_metric(2, "pads_cdc_audit_runs_total")
    second = serve(url, MAPPING=mapping, STATE_FILE=str(tmp_path / "second"))

    def polls() -> bool:  # the stream may have begun anew, and the other one been faster
        return any(one.metric("pads_cdc_source_mode", mode="polling") == 1 for one in (server, second))

    wait_until(polls, "one of them polls")
    assert second.stop() == 0
    assert server.stop() == 0
    assert not poisoned.ran(), "serve"

    done = pads_cdc("teardown", "--role", role, **given)
    assert done.returncode == 0, done.stderr
    assert not poisoned.ran(), "teardown, as an administrator"

    run_setup_sql(poisoned)
    assert not poisoned.ran(), "setup.sql by psql, for an administrator"

    assert_the_look_alikes_would_run(poisoned)


def run_setup_sql(poisoned: Poisoned) -> None:
    """Run it as people do, with a search path of their own, which has the schema."""
    role = poisoned.database.create_role()
    script = ROOT / "sql" / poisoned.mapping / "setup.sql"
    variables = ("-v", "ON_ERROR_STOP=1", "-v", "schema=public", "-v", f"role={role.name}")
    command = ["psql", "-X", *variables, "-f", str(script), poisoned.database.url()]
    for _ in range(2):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def assert_the_look_alikes_would_run(poisoned: Poisoned) -> None:
    """What all of it rests on: with the schema in the path, each statement of a mapping runs some of them, or
    cannot be told what it means any more.
    """
    mapping, database = load(poisoned.mapping), poisoned.database
    kinds = [kind for kind in mapping.queries if kind.startswith("EndpointsOf")]
    for statement in (
        mapping.queries["Endpoints"],
        mapping.full(),
        *(mapping.compose([kind]) for kind in kinds),
    ):
        before = len(poisoned.ran())
        with closing(database.connect()) as session, session.cursor() as cursor:
            cursor.execute("SET search_path = public")
            try:
                cursor.execute(statement, {kind: ["acc_1"] for kind in kinds})
            except psycopg2.errors.AmbiguousFunction:
                continue
        assert len(poisoned.ran()) > before, statement
    assert poisoned.ran()
