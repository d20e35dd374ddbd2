"""Generated columns: a change of one is followed, or the database is refused with the column named."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cdc.replication import pgoutput
from tests.e2e.test_types import DEADLINE, holds, rows_of
from tests.plugins.decoding import plugin_settings
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory

SETTINGS = "portal_application_settings"
KEY = f"""
ALTER TABLE {SETTINGS} DROP COLUMN application_id CASCADE, ADD COLUMN number INT,
    ADD COLUMN application_id VARCHAR(24) GENERATED ALWAYS AS ('app_' || number::text) {{}};
INSERT INTO portal_applications (id) VALUES ('app_1'), ('app_2');
INSERT INTO {SETTINGS} (number, secret_key, secret_key_required) VALUES (1, 'first', true)
"""
READ = f"""
ALTER TABLE {SETTINGS} DROP COLUMN secret_key, ADD COLUMN secret TEXT,
    ADD COLUMN secret_key TEXT GENERATED ALWAYS AS ('key ' || secret) VIRTUAL;
INSERT INTO portal_applications (id) VALUES ('app_1');
INSERT INTO {SETTINGS} (application_id, secret, secret_key_required) VALUES ('app_1', 'first', true)
"""


@pytest.fixture
def on_18(database_factory: DatabaseFactory, cluster_factory: ClusterFactory) -> Database:
    return database_factory(cluster=cluster_factory(programs=fetched("18")))


def follows_the_key(database: Database, server: Server, client: Gateway) -> None:
    """Change, move and delete the row with the generated key, with a look at the gateway after each."""
    for change in ("UPDATE {} SET secret_key = 'second'", "UPDATE {} SET number = 2", "DELETE FROM {}"):
        database.execute(change.format(SETTINGS))
        client.wait(partial(holds, rows_of(database)), change, DEADLINE)
    assert server.metric("pads_cdc_audit_runs_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1


@pytest.mark.both_plugins
def test_a_generated_column_is_seen_to_change(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Plugins may leave out a generated column: the re-query must read it."""
    database.execute(
        "ALTER TABLE portal_application_settings DROP COLUMN secret_key, ADD COLUMN secret TEXT,"
        " ADD COLUMN secret_key TEXT GENERATED ALWAYS AS (md5(secret)) STORED;"
        "INSERT INTO portal_applications (id) VALUES ('app_1');"
        "INSERT INTO portal_application_settings (application_id, secret, secret_key_required)"
        " VALUES ('app_1', 'first', true)"
    )
    database.publish()
    server = serve(database)
    client = gateway(server)
    for secret in ("second", "third"):
        database.execute("UPDATE portal_application_settings SET secret = %s", (secret,))
        client.wait(partial(holds, rows_of(database)), secret, DEADLINE)
    assert server.metric("pads_cdc_audit_runs_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1


@pytest.mark.only_with("wal2json")
def test_a_generated_key_is_followed(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    database.execute(KEY.format("STORED"))
    server = serve(database)
    follows_the_key(database, server, gateway(server))


@pytest.mark.both_plugins
def test_a_generated_key_is_followed_on_18(
    on_18: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    on_18.execute(KEY.format("STORED"))
    on_18.publish()
    server = serve(on_18)
    follows_the_key(on_18, server, gateway(server))


@pytest.mark.only_with("wal2json")  # the settings are in the test
def test_a_generated_key_that_pgoutput_does_not_send(
    database: Database,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    check: Check,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """Before 18: setup failed with Postgres' own words, and without a publication."""
    database.execute(KEY.format("STORED NOT NULL UNIQUE"))
    says = f"cannot have application_id of public.{SETTINGS}, a generated column"
    role = f"{database.name}_role_setup"  # goes with the database: other tests set up the default one
    done = pads_cdc("setup", "--role", role, ADMIN_CONNECTION_STRING=database.url(), PLUGIN="pgoutput")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    database.execute(f"UPDATE {SETTINGS} SET secret_key = 'nobody is refused'")
    found = check(database, PLUGIN="pgoutput").the("publication", "fail")
    assert says in found.text
    done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=database.url(), PLUGIN="pgoutput")
    assert done.returncode == 1
    assert says in done.stderr
    [plugin] = re.findall("PLUGIN=(\\w+)", found.remedy)
    assert check(database, PLUGIN=plugin).code == 0
    server = serve(database, PLUGIN=plugin)
    follows_the_key(database, server, gateway(server))


@pytest.mark.only_with("wal2json")
def test_a_publication_of_all_tables_does_not_send_a_generated_key(database: Database, check: Check) -> None:
    """Before 18, pg_publication_tables names it nevertheless."""
    database.execute(f"{KEY.format('STORED')}; CREATE PUBLICATION pads_cdc FOR ALL TABLES")
    assert "application_id" in check(database, PLUGIN="pgoutput").the("publication", "fail").text


@pytest.mark.both_plugins
def test_a_virtual_key_is_refused_until_it_is_stored(
    on_18: Database,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    check: Check,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """Plugins send null in its place, or nothing: inserts were lost in silence."""
    on_18.execute(KEY.format("VIRTUAL"))
    found = check(on_18).the("tables", "fail")
    assert f"application_id of public.{SETTINGS} is a virtual generated column" in found.text
    done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=on_18.url(), **plugin_settings(on_18.plugin))
    assert done.returncode == 1
    assert found.text in done.stderr
    on_18.execute(found.remedy.replace("%", "%%"), ())
    on_18.publish()
    assert check(on_18).the("tables", "pass")
    server = serve(on_18)
    follows_the_key(on_18, server, gateway(server))


@pytest.mark.soak
@pytest.mark.only_with("wal2json")  # pgoutput's stream would end
def test_a_key_that_becomes_virtual_is_said_and_polled(
    on_18: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    fill(on_18, 3)
    server = serve(on_18).wait_ready()
    client = gateway(server)
    on_18.execute(
        f"ALTER TABLE {SETTINGS} DROP COLUMN application_id CASCADE, ADD COLUMN number INT,"
        " ADD COLUMN application_id VARCHAR(24) GENERATED ALWAYS AS ('app_' || number::text) VIRTUAL"
    )
    wait_until(lambda: "virtual generated column" in json.dumps(server.get("/healthz")[1]), "it is said")
    on_18.execute(f"INSERT INTO {SETTINGS} (number, secret_key, secret_key_required) VALUES (1, 'new', true)")
    wait_equal(client, on_18)


@pytest.mark.both_plugins(quick=False)
def test_a_virtual_column_is_seen_to_change(
    on_18: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """With its source, and with its expression, which changes all rows and writes none.

    Postgres lets nobody change the expression while the table is published: the column is made anew then.
    """
    on_18.execute(READ)
    on_18.publish()
    server = serve(on_18)
    client = gateway(server)
    expression = f"ALTER TABLE {SETTINGS} ALTER COLUMN secret_key SET EXPRESSION AS ('new ' || secret)"
    if on_18.plugin == pgoutput.NAME:
        expression = (
            f"ALTER TABLE {SETTINGS} DROP COLUMN secret_key,"
            " ADD COLUMN secret_key TEXT GENERATED ALWAYS AS ('new ' || secret) VIRTUAL"
        )
    for change in (f"UPDATE {SETTINGS} SET secret = 'second'", expression):
        on_18.execute(change)
        client.wait(partial(holds, rows_of(on_18)), change, DEADLINE)
    assert server.metric("pads_cdc_audit_runs_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1


@pytest.mark.soak
@pytest.mark.only_with("wal2json")
@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_setup_refuses_no_update_of_a_generated_column_in_a_full_identity(
    kind: str,
    on_18: Database,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    check: Check,
) -> None:
    """Since 18, Postgres refuses every UPDATE if such a table is published without that column."""
    fill(on_18, 3)
    on_18.execute(
        f"ALTER TABLE {SETTINGS} ADD double BIGINT GENERATED ALWAYS AS (id * 2) {kind};"
        f"ALTER TABLE {SETTINGS} REPLICA IDENTITY FULL"
    )
    update = f"UPDATE {SETTINGS} SET secret_key = 'nobody is refused'"
    setup = partial(pads_cdc, "setup", ADMIN_CONNECTION_STRING=on_18.url(), PLUGIN="pgoutput")
    for _ in range(2):
        assert setup().returncode == 0
        on_18.execute(update)
    found = check(on_18, PLUGIN="pgoutput").the("publication", "fail")
    assert f"public.{SETTINGS}, whose REPLICA IDENTITY FULL has a generated column" in found.text
    on_18.execute(f"{found.remedy.partition(';')[0]}")
    assert setup().returncode == 0
    on_18.execute(update)
    assert check(on_18, PLUGIN="pgoutput").the("publication", "pass")
