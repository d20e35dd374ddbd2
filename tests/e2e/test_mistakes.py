"""Errors that people will make: each is one clear line with its remedy, on a real server in that state."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Protocol

import psycopg2
import pytest

from cdc.mapping.mapping import load
from server.commands.demo.cluster import free_port
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Role
    from tests.plugins.server import GatewayFactory, ServerFactory

SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"


class Refused(Protocol):
    """Starts a server that must not start, and returns the one line that it says."""

    def __call__(self, connection: str | None, *, code: int = 1, **settings: str) -> str: ...


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """``pads-cdc serve`` as people run it, to its end."""

    def serve(connection: str | None, *, code: int = 1, **settings: str) -> str:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment = {
            **ours,
            "PORT": "0",
            "METRICS_PORT": "0",
            "STATE_FILE": str(tmp_path / "refused.state"),
            "LOG_FORMAT": "json",
            **settings,
        }
        if connection is not None:
            environment["POSTGRES_CONNECTION_STRING"] = connection
        done = subprocess.run(
            [sys.executable, "-m", "server", "serve"],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
        )
        said = [line for line in done.stderr.splitlines() if not _is_log(line)]
        assert len(said) == 1, done.stderr
        assert not done.stdout
        assert "Traceback" not in done.stderr
        if connection is not None and (secret := re.search(r"://[^:/]+:([^@]+)@", connection)):
            assert secret[1] not in done.stderr, "the password is shown"
        assert done.returncode == code, done.stderr
        assert said[0].startswith("pads-cdc: ")
        return said[0].removeprefix("pads-cdc: ")

    return serve


def _is_log(line: str) -> bool:
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


@contextmanager
def listening() -> Iterator[int]:
    """Take a port, as any other program would."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.fixture
def streamer(database: Database) -> Role:
    """The role that setup.sql is written for."""
    role = database.create_role("REPLICATION")
    database.set_up(load("grove"), role.name)
    return role


def assert_says(line: str, *words: str) -> None:
    for word in words:
        assert re.search(word, line, re.IGNORECASE), f"{word!r} is not in: {line}"


# --- the connection


def test_no_connection_string(refused: Refused) -> None:
    line = refused(None, code=2)
    assert_says(line, "POSTGRES_CONNECTION_STRING", "required", "for example postgresql://|=postgresql://")


@pytest.mark.parametrize(
    "malformed",
    [
        "postgresql://streamer:s3cr3t@127.0.0.1:5432x/portal",
        "postgresql://streamer:s3cr3t@127.0.0.1/portal?no_such_option=1",
        "s3cr3t",
    ],
)
def test_a_malformed_connection_string(refused: Refused, malformed: str) -> None:
    line = refused(malformed, code=2)
    assert_says(line, "POSTGRES_CONNECTION_STRING")
    assert "s3cr3t" not in line


def test_a_server_that_is_not_there(refused: Refused) -> None:
    port = free_port()
    line = refused(f"postgresql://streamer:s3cr3t@127.0.0.1:{port}/portal")
    assert_says(line, "POSTGRES_CONNECTION_STRING", "127.0.0.1", str(port), "refused")
    assert_says(line, "start the server there, or correct host and port in POSTGRES_CONNECTION_STRING")


def test_a_host_that_is_not_there(refused: Refused) -> None:
    line = refused("postgresql://streamer:s3cr3t@no-such-host.invalid/portal")
    assert_says(line, "no-such-host.invalid", "correct the host in POSTGRES_CONNECTION_STRING")


def test_a_wrong_password(refused: Refused, database: Database) -> None:
    role = database.create_role("REPLICATION")
    line = refused(database.url(role.name, "not-the-passw0rd"))
    assert_says(line, "password", role.name, "check user and password in POSTGRES_CONNECTION_STRING")


def test_an_unknown_role(refused: Refused, database: Database) -> None:
    assert_says(refused(database.url("nobody_at_all", "x9")), "nobody_at_all", "POSTGRES_CONNECTION_STRING")


def test_an_unknown_database(refused: Refused, database: Database) -> None:
    line = refused(database.cluster.url("no_such_portal"))
    assert_says(line, "no_such_portal.* does not exist", "correct .*POSTGRES_CONNECTION_STRING")


def test_an_unknown_database_to_query(refused: Refused, database: Database) -> None:
    line = refused(database.url(), QUERY_CONNECTION_STRING=database.cluster.url("no_such_portal"))
    assert_says(line, "no_such_portal", "QUERY_CONNECTION_STRING")
    assert database.cluster.password not in line
    assert not database.rows(SLOTS)


# --- the server


def test_wal_level(
    refused: Refused, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    cluster = cluster_factory({"wal_level": "replica"})
    line = refused(database_factory(cluster=cluster).url())
    assert_says(line, "wal_level is replica", "wal_level = logical", "restart")


@pytest.mark.only_with("wal2json")
def test_the_plugin_is_not_installed(
    refused: Refused, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """A server that does not find it, as one does where the package is missing."""
    database = database_factory(cluster=cluster_factory({"dynamic_library_path": "/nowhere"}))
    line = refused(database.url())
    assert_says(line, "wal2json", "install", "postgresql-.*-wal2json")
    assert not database.rows(SLOTS)


@pytest.mark.only_with("wal2json")
@pytest.mark.parametrize("version", ["15-release", "15", "17"])
def test_the_plugin_s_allow_list(
    refused: Refused,
    serve: ServerFactory,
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    version: str,
) -> None:
    """A minor version that has the list and does not name the plugin, and one that knows no such list."""
    programs = fetched(version)
    listed = programs.knows_setting("output_plugin_libraries")
    settings = {"output_plugin_libraries": "pgoutput"} if listed else None
    database = database_factory(cluster=cluster_factory(settings, programs=programs))
    if listed:
        line = refused(database.url())
        assert_says(line, "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'", "reload")
        assert not database.rows(SLOTS)
        database.cluster.configure({"output_plugin_libraries": "pgoutput, test_decoding, wal2json"})
        database.cluster.reload()
        wait_until(lambda: "wal2json" in database.value("SHOW output_plugin_libraries"), "the reload")
    server = serve(database)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "it is followed")


# --- rights


def test_the_role_that_setup_makes_is_enough(
    streamer: Role, database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """What the other tests take something away from."""
    fill(database, 10)
    client = gateway(serve(database.url(*streamer)))
    database.execute("UPDATE pay_plans SET throughput_limit = 5")
    wait_equal(client, database)


def test_no_right_to_replicate(refused: Refused, streamer: Role, database: Database) -> None:
    database.execute(f"ALTER ROLE {streamer.name} NOREPLICATION")
    assert_says(refused(database.url(*streamer)), "replication", "ALTER ROLE .* REPLICATION")


@pytest.mark.parametrize("table", ["portal_applications", "pay_plans"])
def test_no_right_to_read_a_table(refused: Refused, streamer: Role, database: Database, table: str) -> None:
    database.execute(f"REVOKE SELECT ON {table} FROM {streamer.name}")
    line = refused(database.url(*streamer))
    assert_says(line, rf"\b{table}\b", "GRANT SELECT")
    assert not database.rows(SLOTS)


def test_no_right_to_use_the_schema(refused: Refused, streamer: Role, database: Database) -> None:
    database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    database.execute(f"REVOKE USAGE ON SCHEMA public FROM {streamer.name}")
    assert_says(refused(database.url(*streamer)), r"\bpublic\b", "GRANT USAGE ON SCHEMA")
    assert not database.rows(SLOTS)


def test_rows_that_are_hidden_from_us(refused: Refused, streamer: Role, database: Database) -> None:
    """They would be taken for deletes."""
    database.execute("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY")
    assert_says(refused(database.url(*streamer)), "accounts", "BYPASSRLS")
    assert not database.rows(SLOTS)


# --- the tables


@pytest.mark.parametrize("table", ["portal_application_settings", "accounts"])
def test_a_table_is_missing(refused: Refused, database: Database, table: str) -> None:
    database.execute(f"DROP TABLE {table} CASCADE")
    assert_says(refused(database.url()), rf"\b{table}\b", "create it .*or correct MAPPING and DB_SCHEMA")
    assert not database.rows(SLOTS)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("pay_plans", "throughput_limit"),
        ("portal_application_settings", "secret_key_required"),
    ],
)
def test_a_column_is_missing(refused: Refused, database: Database, table: str, column: str) -> None:
    database.execute(f"ALTER TABLE {table} DROP COLUMN {column} CASCADE")
    assert_says(refused(database.url()), column, "column", "MAPPING")
    assert not database.rows(SLOTS)


def test_the_schema_is_another_one(refused: Refused, database: Database) -> None:
    line = refused(database.url(), DB_SCHEMA="portal")
    assert_says(line, r"\bportal\b", "DB_SCHEMA")
    assert not database.rows(SLOTS)


def test_a_mark_of_deletion_that_the_mapping_ignores(refused: Refused, database: Database) -> None:
    database.execute("ALTER TABLE accounts ADD COLUMN deleted BOOLEAN NOT NULL DEFAULT false")
    assert_says(refused(database.url()), r"\baccounts\b", "deleted", "mapping of your own")
    database.execute("ALTER TABLE portal_applications ADD COLUMN deleted BOOLEAN NOT NULL DEFAULT false")
    assert_says(refused(database.url()), "deleted", "MAPPING=grove_soft_delete")
    assert not database.rows(SLOTS)


def test_a_mapping_leaves_out_what_a_function_reads(
    refused: Refused, streamer: Role, database: Database, tmp_path: Path
) -> None:
    """It is known without the right to make temporary views."""
    database.execute(f"""
        REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC;
        GRANT pg_read_all_data TO {streamer.name};
        CREATE TABLE bonus (relays INT);
        CREATE FUNCTION most() RETURNS INT LANGUAGE sql BEGIN ATOMIC SELECT max(relays) FROM bonus; END
    """)
    own = shutil.copytree(ROOT / "sql/grove", tmp_path / "own")
    text = (own / "queries.sql").read_text()
    (own / "queries.sql").write_text(text.replace("pay_plans.monthly_relay_limit AS", ':"schema".most() AS'))
    line = refused(database.url(*streamer), MAPPING=str(own))
    assert_says(line, "Endpoints reads bonus", "`reads` of affects.toml", "pads-cdc check")


def test_an_unknown_mapping(refused: Refused, database: Database) -> None:
    line = refused(database.url(), code=2, MAPPING="grave")
    assert_says(line, "grave", "grove, grove_jwt, grove_soft_delete")


# --- the slot


@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("SELECT pg_create_logical_replication_slot('pads_cdc', 'test_decoding')", "test_decoding"),
        ("SELECT pg_create_physical_replication_slot('pads_cdc')", "physical"),
    ],
)
def test_a_slot_of_another_kind(refused: Refused, database: Database, make: str, what: str) -> None:
    database.execute(make)
    try:
        assert_says(refused(database.url()), "pads_cdc", what, "SLOT_NAME")
        assert database.rows(SLOTS), "it is not ours to drop"
    finally:
        database.execute("SELECT pg_drop_replication_slot('pads_cdc')")


def test_a_slot_of_another_database(
    refused: Refused, database: Database, database_factory: DatabaseFactory
) -> None:
    other = database_factory()
    other.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'wal2json')")
    assert_says(refused(database.url()), "pads_cdc", other.name, database.name, "SLOT_NAME")
    assert other.rows(SLOTS), "it is not ours to drop"


def test_no_slot_is_left(
    refused: Refused, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    database = database_factory(cluster=cluster_factory({"max_replication_slots": "1"}))
    database.execute("SELECT pg_create_physical_replication_slot('somebodys')")
    assert_says(refused(database.url()), "max_replication_slots")


def test_a_slot_that_another_process_holds(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    """It says whose it is, polls meanwhile, and takes over when it is free."""
    fill(database, 30)
    holder = serve(database)
    wait_until(lambda: holder.get("/healthz")[0] == 200, "the first one streams")
    [(pid,)] = database.rows("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'pads_cdc'")

    second = serve(database, STATE_FILE=str(tmp_path / "second.state"))
    client = gateway(second)
    held = second.wait_log("source lost, reconnecting", reason="slot_held")["message"]
    assert_says(held, rf"PID {pid}\b", "application 'pads-cdc'", "stop that process, or .* SLOT_NAME")
    wait_until(lambda: second.metric("pads_cdc_source_mode", mode="polling") == 1, "it polls")
    status, body = second.get("/healthz")
    assert status == 503
    assert_says(body, "polling", rf"PID {pid}\b")
    assert second.get("/readyz")[0] == 200
    for number in range(2):
        database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + %s", (number + 1,))
        wait_equal(client, database, deadline=10)

    lines = [line for line in second.logs if line.get("reason") == "slot_held"]
    assert len(lines) == 1, "it is asked for five times a second, and said once a minute"

    assert holder.stop() == 0
    wait_until(lambda: second.metric("pads_cdc_source_mode", mode="streaming") == 1, "it has taken over")
    wait_until(lambda: second.get("/healthz") == (200, "ok"), "and all is well")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, database)


# --- this machine


@pytest.mark.parametrize("setting", ["PORT", "METRICS_PORT"])
def test_a_port_that_is_taken(refused: Refused, database: Database, setting: str) -> None:
    with listening() as port:
        assert_says(
            refused(database.url(), code=1, **{setting: str(port)}),
            str(port),
            "something else listens",
            rf"\b{setting}\b",
        )
    assert not database.rows(SLOTS)


@pytest.mark.parametrize("setting", ["PORT", "METRICS_PORT"])
def test_a_port_that_another_of_our_servers_has(
    refused: Refused, serve: ServerFactory, database: Database, setting: str
) -> None:
    """GRPC would share it without a word, and every other client would get the other's map."""
    first = serve(database)
    port = first.grpc if setting == "PORT" else first.http
    assert_says(
        refused(database.url(), code=1, SLOT_NAME="second", **{setting: str(port)}),
        str(port),
        "something else listens",
        setting,
    )
    assert not database.rows("SELECT FROM pg_replication_slots WHERE slot_name = 'second'")


def test_a_state_file_that_is_in_use(
    refused: Refused, serve: ServerFactory, database: Database, tmp_path: Path
) -> None:
    serve(database)
    state = str(tmp_path / "state")
    assert_says(refused(database.url(), SLOT_NAME="second", STATE_FILE=state), re.escape(state), "STATE_FILE")
    assert not database.rows("SELECT FROM pg_replication_slots WHERE slot_name = 'second'")


def test_a_state_file_in_a_folder_that_is_not_there(
    serve: ServerFactory, database: Database, tmp_path: Path
) -> None:
    """Service goes on without; it says what to do about it."""
    fill(database, 1)
    server = serve(database, STATE_FILE=str(tmp_path / "nowhere" / "state"), SLOTNAME="pads")
    said = server.wait_log("state file failed, clients cannot resume across a restart")["message"]
    assert_says(said, f"there is no folder {tmp_path}/nowhere; install -d -m 0700 -o \\S+ {tmp_path}/nowhere")
    assert_says(server.wait_log("environment")["message"], "SLOTNAME .*did you mean SLOT_NAME")


def test_two_ports_that_are_one(refused: Refused, database: Database) -> None:
    port = str(free_port())
    assert_says(refused(database.url(), PORT=port, METRICS_PORT=port), port, "PORT")


def test_the_secret_is_not_shown_when_it_comes_from_a_file(
    refused: Refused, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "connection"
    with closing(psycopg2.connect(database.url())):
        file.write_text(database.url().replace(database.name, "no_such_portal"))
    line = refused(None, POSTGRES_CONNECTION_STRING_FILE=str(file))
    assert_says(line, "no_such_portal")
    assert database.cluster.password not in line
