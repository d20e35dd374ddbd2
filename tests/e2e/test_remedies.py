"""What a message tells people to type is typed: then what was wrong is gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg2.extensions import make_dsn

from cdc.errors import ConfigurationError, PadsCdcError, Refusal, SourceError
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as Queried
from cdc.postgres.errors import translated
from cdc.postgres.session import ask
from cdc.replication.standby_snapshot import StandbySnapshotRequest
from server.broker.seal import Seal
from server.commands.demo.programs import find_programs
from server.security import auth_tokens
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated, Role
    from tests.plugins.server import ServerFactory

    Command = Callable[..., subprocess.CompletedProcess[str]]

SETTING = "POSTGRES_CONNECTION_STRING"
SQL = re.compile(r"(?:ALTER|GRANT|REVOKE|SELECT|DROP|ROLLBACK)[A-Z ][^;]*;")
"""A statement within a remedy."""


@pytest.fixture
def service(database: Database) -> Role:
    """The role that `setup` makes."""
    role = database.create_role("REPLICATION")
    database.set_up(load("grove"), role.name)
    return role


def address(database: Database, role: Role) -> Address:
    return Address(lambda: database.url(*role), SETTING)


def read(database: Database, role: Role) -> None:
    """Read the whole mapping, as the server does."""
    with (
        closing(Queried(address(database, role), load("grove"), "public", lambda _: b"")) as queried,
        queried.read() as opened,
    ):
        for _ in opened.chunks():
            pass


def connect(database: Database, role: Role) -> None:
    address(database, role).connect().close()


def replicate(database: Database, role: Role) -> None:
    address(database, role).connect_replication().close()


def make_slot(database: Database, role: Role) -> None:
    with closing(address(database, role).connect()) as session, translated(SETTING):
        ask(session, "SELECT pg_create_logical_replication_slot('tried', 'wal2json', true)::text")


def test_no_statement_has_a_gap() -> None:
    """Of all that the code could tell people to type: nobody can type dots, or a word in place of a name."""
    gaps = {
        f"{file.relative_to(ROOT)}: {statement}"
        for folder in ("cdc", "server")
        for file in (ROOT / folder).rglob("*.py")
        for text in re.findall(r'"(?:[^"\\\n]|\\.)*"', file.read_text())
        for statement in re.findall(r"\b(?:ALTER|GRANT|REVOKE|DROP|SELECT pg_|chown|install -d) [^;]*", text)
        if re.search(r"\.\.\.|\bOUR_|[A-Z]_NAME'", statement)
    }
    assert not gaps


def type_sql(database: Database, message: str) -> list[str]:
    """Run the statements that a remedy names, as a superuser; returns them."""
    statements = SQL.findall(message.partition("; ")[2])
    for statement in statements:
        database.execute(statement)
    return statements


@pytest.mark.parametrize(
    ("damage", "tries"),
    [
        ("ALTER ROLE {role} NOREPLICATION", replicate),
        ("ALTER ROLE {role} NOREPLICATION", make_slot),
        ("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC", connect),
        ("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC", replicate),
        ("ALTER ROLE {role} CONNECTION LIMIT 0", connect),
        ("ALTER DATABASE {database} CONNECTION LIMIT 0", connect),
        ("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY", read),
        ("ALTER ROLE {role} SET temp_file_limit = 0; ALTER ROLE {role} SET work_mem = '64kB'", read),
    ],
)
def test_a_statement_that_a_message_names(
    damage: str, tries: Callable[[Database, Role], None], database: Database, service: Role
) -> None:
    fill(database, 5_000)
    tries(database, service)
    database.execute(damage.format(role=service.name, database=database.name))
    with pytest.raises((Refusal, SourceError)) as refused:
        tries(database, service)
    # On RDS one types the other one.
    typed = [one for one in SQL.findall(str(refused.value)) if "rds_replication" not in one]
    assert len(typed) == 1, refused.value
    database.execute(typed[0])
    tries(database, service)


@pytest.mark.soak
def test_a_database_that_takes_no_connections(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    database = database_factory(cluster=cluster_factory())
    role = database.create_role()
    elsewhere = database_factory(cluster=database.cluster)
    elsewhere.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
    with pytest.raises(Refusal) as refused:
        connect(database, role)
    assert type_sql(elsewhere, str(refused.value))
    connect(database, role)


@pytest.mark.soak
def test_a_list_of_plugins_that_lacks_ours(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    pads_cdc: Command,
    check: Check,
    tmp_path: Path,
) -> None:
    """`setup` names the role that it is about; `check`, which is not shown the list, says so and tries."""
    if not find_programs().knows_setting("output_plugin_libraries"):
        pytest.fail("this minor version has no list of output plugins: update PostgreSQL")
    database = database_factory(cluster=cluster_factory({"output_plugin_libraries": "test_decoding"}))
    role, file = f"{database.name}_role_service", tmp_path / "service.dsn"
    given = {"ADMIN_CONNECTION_STRING": database.url(), "PLUGIN": "wal2json"}

    def setup() -> str:
        done = pads_cdc("setup", "--role", role, "--role-file", str(file), **given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    left = re.findall(r"left for you: (.*)", setup())
    [about_plugins] = [line for line in left if "wal2json is not one of them" in line]
    assert f'ALTER ROLE "{role}" SET output_plugin_libraries' in about_plugins
    url = file.read_text().strip()
    report = check(url, PLUGIN="wal2json")
    assert f"does not show it to {role}: see `plugin`" in report.the("output_plugin_libraries", "pass").text
    finding = report.the("plugin", "fail")
    assert "wal2json" in finding.text
    [typed] = SQL.findall(finding.remedy)
    assert typed == SQL.findall(about_plugins)[0]
    database.execute(typed)
    assert check(url, PLUGIN="wal2json").the("plugin", "pass")
    assert "wal2json is not one of them" not in setup(), "it knows what the role has"


def test_rights_that_setup_gives_again(database: Database, pads_cdc: Command, tmp_path: Path) -> None:
    role, file = f"{database.name}_role_service", tmp_path / "service.dsn"
    arguments = ("setup", "--role", role, "--role-file", str(file))
    assert pads_cdc(*arguments, ADMIN_CONNECTION_STRING=database.url()).returncode == 0
    url = file.read_text().strip()
    with closing(Queried(Address(lambda: url, SETTING), load("grove"), "public", lambda _: b"")) as queried:
        queried.read().close()
        database.execute(f"REVOKE SELECT ON pay_plans FROM {role}")
        with pytest.raises(Refusal, match="run pads-cdc setup"):
            queried.read()
        assert pads_cdc(*arguments, ADMIN_CONNECTION_STRING=database.url()).returncode == 0
        queried.read().close()


def test_an_event_trigger_that_refuses_setup(database: Database, pads_cdc: Command) -> None:
    database.execute(
        """
        CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no change of the schema before Monday'; END $$;
        CREATE EVENT TRIGGER "until Monday" ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
            EXECUTE FUNCTION no_ddl();
        ALTER EVENT TRIGGER "until Monday" ENABLE ALWAYS
        """
    )
    arguments = ("setup", "--role", f"{database.name}_role_service")
    done = pads_cdc(*arguments, ADMIN_CONNECTION_STRING=database.url())
    assert done.returncode == 1
    assert (
        "an event trigger of this database refuses a statement: no change of the schema before Mon"
        in done.stderr
    )
    off, on = SQL.findall(done.stderr)
    database.execute(off)
    done = pads_cdc(*arguments, ADMIN_CONNECTION_STRING=database.url())
    assert done.returncode == 0, done.stderr
    database.execute(on)
    assert database.value("SELECT evtenabled = 'A' FROM pg_event_trigger"), "as it was"


@pytest.mark.parametrize("prepared", [pytest.param(False, marks=pytest.mark.soak), True])
@pytest.mark.own_cluster
def test_transactions_that_the_slot_waits_for(prepared: bool, database: Database, check: Check) -> None:
    writer = database.connect()
    writer.autocommit = False
    with writer.cursor() as cursor:
        cursor.execute("INSERT INTO pay_plans VALUES ('p', 1, 1)")
        if prepared:
            cursor.execute("PREPARE TRANSACTION 'it''s'")
    finding = check(database).the("slot", "warn")
    for statement in SQL.findall(finding.remedy):
        database.execute(statement)
    wait_until(lambda: check(database).the("slot", "pass"), "nothing is waited for")


def test_a_word_to_the_primary_that_our_role_may_not_say(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    database = database_factory(cluster=cluster_factory(programs=fetched("17")))
    role = database.create_role()
    request = StandbySnapshotRequest(address(database, role), server_queries()["LogRunning"])

    def fault() -> str | None:
        request.give()
        assert request._asking is not None
        request._asking.join()
        return request.fault

    refused = fault()
    assert refused is not None
    assert type_sql(database, refused) == [
        f'GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO "{role.name}";'
    ]
    assert fault() is None


@pytest.mark.soak
def test_limits_of_the_server(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    """What takes a restart, as the remedy says."""
    cluster = cluster_factory({"max_replication_slots": "1", "max_wal_senders": "1"})
    database = database_factory(cluster=cluster)
    database.execute("SELECT pg_create_physical_replication_slot('somebodys')")
    with closing(Address(database.url, SETTING).connect_replication()):
        report = check(database)
        found = [report.the(name, "fail") for name in ("replication_slots", "replication_right")]
    with pytest.raises(PadsCdcError, match="max_replication_slots"):
        make_slot(database, _superuser(database))
    assert "max_wal_senders" in found[1].remedy + found[1].text
    for remedy in (found[0].remedy, check(database).the("max_slot_wal_keep_size", "warn").remedy):
        for statement in SQL.findall(remedy):
            database.execute(statement)
    database.execute("ALTER SYSTEM SET max_wal_senders = 5")
    cluster.restart()
    with closing(Address(database.url, SETTING).connect_replication()):
        report = check(database)
    for name in ("replication_slots", "replication_right", "max_slot_wal_keep_size", "retained_wal"):
        assert report.the(name, "pass")


@pytest.mark.soak
@pytest.mark.own_cluster
def test_a_role_that_may_not_replicate_on_rds(database: Database, check: Check) -> None:
    """There nobody may give the attribute, and membership, which stands for it, is what is asked for."""
    database.execute("CREATE ROLE rds_replication")
    role = database.create_role()
    remedy = check(database.url(*role)).the("replication_right", "fail").remedy
    assert remedy == f'GRANT rds_replication TO "{role.name}";'
    database.execute(remedy)
    assert database.value("SELECT pg_has_role(%s, 'rds_replication', 'MEMBER')", (role.name,))
    # What RDS itself would have done for a member.
    database.execute(f"ALTER ROLE {role.name} REPLICATION")
    assert check(database.url(*role)).the("replication_right", "pass")


@pytest.mark.soak
def test_a_slot_on_a_standby_is_no_failover_slot(
    standby17: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, pads_cdc: Command
) -> None:
    primary = database_factory(cluster=standby17.primary)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    given = {"SLOT_FAILOVER": "true", "PORT": "0", "METRICS_PORT": "0", "PLUGIN": primary.plugin}
    done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=standby.url(), **given)
    assert done.returncode == 1
    assert "cannot be a failover slot; give the primary in POSTGRES_CONNECTION_STRING" in done.stderr
    serve(standby, SLOT_FAILOVER="false").wait_ready().stop()
    hosts = make_dsn(
        primary.url(), host="127.0.0.1,127.0.0.1", port=f"{standby17.primary.port},{standby17.standby.port}"
    )
    server = serve(f"{hosts} target_session_attrs=primary", SLOT_FAILOVER="true", SLOT_NAME="other")
    server.wait_ready()
    kept = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'other'"
    wait_until(lambda: primary.rows(kept) == [(True,)], "the slot is one for failover")


def test_what_setup_says_is_next(database: Database, pads_cdc: Command, tmp_path: Path) -> None:
    """Also where the file's name has a blank, and again when the file is gone and the role is not."""
    role, file = f"{database.name}_role_service", tmp_path / "the service's.dsn"
    given = {"ADMIN_CONNECTION_STRING": database.url(), "PLUGIN": database.plugin}

    def setup() -> subprocess.CompletedProcess[str]:
        return pads_cdc("setup", "--role", role, "--role-file", str(file), **given)

    done = setup()
    assert done.returncode == 0, done.stderr
    [typed] = re.findall(r"^-- next: (.*)$", done.stdout, re.MULTILINE)
    checked = typed_in_a_shell(f"{typed} --plugin {database.plugin}")
    assert "pass  connection: connected" in checked, checked
    assert " 0 fail" not in checked
    file.unlink()
    refused = setup()
    assert "exists, but the file" in refused.stderr
    assert "drop the role by pads-cdc teardown" in refused.stderr
    assert pads_cdc("teardown", "--role", role, **given).returncode == 0
    assert setup().returncode == 0


def typed_in_a_shell(command: str) -> str:
    """Run a command as a person would, with our programs at hand; returns what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(  # noqa: S602 - as a person would
        command,
        shell=True,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    return done.stdout


def test_secrets_that_are_made_as_the_message_says(tmp_path: Path) -> None:
    """Tokens, keys, and files that nobody else may read."""

    def command(error: pytest.ExceptionInfo[ConfigurationError]) -> str:
        return re.split(r"make one (?:by|with:) ", str(error.value))[1]

    with pytest.raises(ConfigurationError) as short:
        auth_tokens.parse(b"gateway:x")
    assert auth_tokens.parse(f"gateway:{typed_in_a_shell(command(short))}".encode())
    file = tmp_path / "the broker's keys"
    for content in ("", "x\n"):
        file.write_text(content)
        file.chmod(0o644)
        with pytest.raises(ConfigurationError) as open_to_all:
            Seal(file)
        typed_in_a_shell(str(open_to_all.value).rpartition("; ")[2])
        with pytest.raises(ConfigurationError) as none:
            Seal(file)
        file.write_text(typed_in_a_shell(command(none)))
        Seal(file)


def _superuser(database: Database) -> Role:
    from tests.plugins.postgres import Role  # noqa: PLC0415

    return Role("postgres", database.cluster.password)
