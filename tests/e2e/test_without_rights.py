"""Whoever has no right on the mapped tables can neither stop this server nor let it grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_losses import wait_healthy
from tests.plugins.server import fill, wait_confirmed, wait_equal

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg2

    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

CHANGE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"


def resident(server: Server) -> int:
    """Return the server's memory in bytes."""
    return int(server.metric("process_resident_memory_bytes"))


def messages(session: psycopg2.extensions.cursor) -> None:
    """Write what any role may, into the stream itself: large, small, many, and none of it text."""
    session.execute("SELECT pg_logical_emit_message(true, 'pads_cdc', repeat(chr(1), 60000000))")
    session.execute("SELECT pg_logical_emit_message(false, '', '\\\\xff00fe'::bytea)")
    session.execute("SELECT pg_logical_emit_message(g % 2 = 0, 'x', 'y') FROM generate_series(1, 20000) g")


def temporary_tables(session: psycopg2.extensions.cursor) -> None:
    """Fill the catalog's WAL with definitions that are nobody else's."""
    for number in range(300):
        session.execute(
            f"CREATE TEMP TABLE t{number} AS SELECT generate_series(1, 50) AS id; DROP TABLE t{number}"
        )


def look_alikes(session: psycopg2.extensions.cursor) -> None:
    """Have tables of the mapped ones' names, elsewhere: logged, unlogged, temporary."""
    for kind in ("TEMP TABLE", "UNLOGGED TABLE theirs.", "TABLE theirs."):
        name = kind + ("" if kind.endswith(".") else " ") + "portal_applications"
        session.execute(f"CREATE {name} (id TEXT PRIMARY KEY, account_id TEXT)")
        session.execute(f"INSERT INTO {name.split()[-1]} SELECT 'app_' || g FROM generate_series(1, 5000) g")
        session.execute(f"DELETE FROM {name.split()[-1]}; DROP TABLE {name.split()[-1]}")


def comments(session: psycopg2.extensions.cursor) -> None:
    """Change what is said of things, over and over."""
    session.execute("CREATE TABLE theirs.noted (id INT)")
    for number in range(300):
        session.execute(f"COMMENT ON TABLE theirs.noted IS 'note {number}'")
    session.execute("DROP TABLE theirs.noted")


def notifications_and_locks(session: psycopg2.extensions.cursor) -> None:
    """Take whatever else can be taken: advisory locks, subtransactions, notifications."""
    session.execute("SELECT pg_advisory_lock(g) FROM generate_series(1, 500) g")
    session.execute("SELECT pg_notify('pads_cdc', repeat('x', 7000)) FROM generate_series(1, 100)")
    session.execute(
        "DO $$ BEGIN FOR n IN 1..2000 LOOP BEGIN PERFORM pg_current_xact_id(); RAISE 'x'; EXCEPTION"
        " WHEN OTHERS THEN NULL; END; END LOOP; END $$"
    )
    session.execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.parametrize(
    "harm",
    [
        messages,
        look_alikes,
        pytest.param(temporary_tables, marks=pytest.mark.soak),
        pytest.param(comments, marks=pytest.mark.soak),
        pytest.param(notifications_and_locks, marks=pytest.mark.soak),
    ],
)
def test_nobody_without_rights_stops_or_grows_the_server(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    harm: Callable[[psycopg2.extensions.cursor], None],
) -> None:
    fill(database, 200)
    role = database.create_role()
    database.execute(f"CREATE SCHEMA theirs AUTHORIZATION {role.name}")
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    before, memory = server.metric("pads_cdc_reconcile_total"), resident(server)
    with database.connect(*role).cursor() as session:
        for _ in range(2):
            harm(session)
    database.execute(CHANGE)
    wait_equal(client, database)
    wait_confirmed(database)
    wait_healthy(server)
    assert server.metric("pads_cdc_source_reconnects_total") == 0
    assert server.metric("pads_cdc_decode_errors_total") == 0
    assert server.metric("pads_cdc_reconcile_total") == before
    assert resident(server) - memory < 64 << 20


def test_owners_settings_and_event_triggers_change_nothing(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """No comment changes a table's shape, and no event trigger is one of ours."""
    fill(database, 50)
    database.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') = 'pads-cdc' THEN RAISE 'refused'; END IF; END $$;"
        "CREATE EVENT TRIGGER at_start ON ddl_command_start EXECUTE FUNCTION refuse();"
        "CREATE EVENT TRIGGER at_end ON ddl_command_end EXECUTE FUNCTION refuse();"
        "CREATE EVENT TRIGGER at_drop ON sql_drop EXECUTE FUNCTION refuse();"
    )
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    before = server.metric("pads_cdc_reconcile_total")
    for what in ("TABLE pay_plans", "COLUMN accounts.plan_type", "INDEX pay_plans_pkey"):
        database.execute(f"COMMENT ON {what} IS 'said'")
        database.execute(CHANGE)
    wait_equal(client, database)
    wait_confirmed(database)
    assert server.metric("pads_cdc_source_reconnects_total") == 0
    assert server.metric("pads_cdc_reconcile_total") == before
    assert server.stop() == 0


def test_ids_that_are_made_up_leave_nothing_behind(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Neither memory nor a delete for each old client that connects, whatever comes in the same batch."""
    fill(database, 50)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    for part in range(3):
        database.execute(
            "INSERT INTO portal_application_changes (portal_app_id)"
            " SELECT 'made_up_' || g FROM generate_series(1, 3000) g"
        )
        database.execute(f"DELETE FROM portal_applications WHERE id = 'app_{part}'; {CHANGE}")
    wait_equal(client, database)
    wait_confirmed(database)
    late = gateway(server, fetch=False)
    wait_equal(late, database)
    assert {key for key, payload in late.updates if payload is None} == {"app_1", "app_2"}
    assert not [key for key, _ in client.updates if key.startswith("made_up_")]


@pytest.mark.soak
def test_a_flood_of_the_signal_table_is_bounded(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Whoever may insert there may ask for endpoints: of ids that are made up as well."""
    fill(database, 200)
    role = database.create_role()
    database.execute(f"GRANT INSERT ON portal_application_changes TO {role.name}")
    database.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role.name}")
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    memory = resident(server)
    with database.connect(*role).cursor() as session:
        for part in range(4):
            session.execute(
                "INSERT INTO portal_application_changes (portal_app_id)"
                " SELECT 'x' || g FROM generate_series(%s, %s) g",
                (part * 100_000, part * 100_000 + 99_999),
            )
            database.execute(CHANGE)
    wait_equal(client, database, deadline=60)
    wait_confirmed(database, deadline=60)
    wait_healthy(server)
    assert server.metric("pads_cdc_endpoints") == 200
    assert server.metric("pads_cdc_source_reconnects_total") == 0
    assert resident(server) - memory < 200 << 20
