"""`pads-cdc check` against real databases that lack each thing in turn, and with its remedies typed in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.checks import FURTHER, NECESSARY, Deployment, Verdict
from cdc.checks.machine import clock, filesystem
from cdc.checks.types import key_types
from cdc.errors import SourceError
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as Queried
from server.commands.demo.cluster import free_port
from server.payload import encode
from tests.plugins.server import fill, wait_until
from tests.support import ROOT
from tests.support.cluster import ephemeral_standby

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from server.commands.demo.programs import Programs
    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated, Role
    from tests.plugins.server import ServerFactory

TRIGGER = """
CREATE FUNCTION log_change() RETURNS TRIGGER AS $$
BEGIN
    INSERT INTO portal_application_changes (portal_app_id) VALUES (COALESCE(NEW.id, OLD.id));
    RETURN NULL;
END
$$ LANGUAGE plpgsql;
CREATE TRIGGER pads_applications AFTER INSERT OR UPDATE OR DELETE ON portal_applications
    FOR EACH ROW EXECUTE FUNCTION log_change();
"""

DROP_UNIQUE = """
ALTER TABLE portal_application_settings DROP CONSTRAINT portal_application_settings_application_id_key
"""
OTHER_IDENTITY = """
ALTER TABLE pay_plans ADD other INT NOT NULL DEFAULT 1 UNIQUE;
ALTER TABLE pay_plans REPLICA IDENTITY USING INDEX pay_plans_other_key
"""


@pytest.fixture
def ready(database: Database) -> Database:
    """A database in which nothing is left to find but what every test cluster has."""
    fill(database, 6)
    database.set_up(load("grove"))
    return database


@pytest.fixture
def streamer(ready: Database) -> Role:
    """The least that the server needs."""
    role = ready.create_role("REPLICATION")
    for statement in load("grove").setup_statements("public", role.name):
        if statement.startswith("GRANT"):
            ready.execute(statement)
    return role


def test_a_database_that_is_ready(ready: Database, streamer: Role, check: Check) -> None:
    report = check(ready.url(*streamer))
    assert report.code == 0
    # The clusters of the tests have no limit; that is the only thing to find.
    assert report.not_passed() == ["max_slot_wal_keep_size"]
    assert "-1" in report.the("max_slot_wal_keep_size", "warn").text
    assert ready.rows("SELECT FROM pg_replication_slots WHERE database = current_database()") == []


@pytest.mark.parametrize(
    ("damage", "name", "verdict", "says"),
    [
        ("ALTER ROLE {role} NOREPLICATION", "replication_right", "fail", "may not replicate"),
        (
            "REVOKE SELECT ON accounts, pay_plans FROM {role}",
            "select",
            "fail",
            "public.accounts, public.pay_plans",
        ),
        (
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}",
            "tables",
            "fail",
            "may not use the schema public",
        ),
        ("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY", "row_security", "fail", "public.accounts"),
        ("ALTER TABLE accounts REPLICA IDENTITY NOTHING", "replica_identity", "fail", "are lost"),
        (
            "ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT",
            "replica_identity",
            "warn",
            "application_id: the server keeps it",
        ),
        ("ALTER TABLE portal_application_changes SET UNLOGGED", "tables", "warn", "is unlogged"),
        ("DROP INDEX accounts_plan_type_idx", "indexes", "warn", "begins with plan_type"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'accounts_plan_type_idx'::regclass",
            "indexes",
            "warn",
            "begins with plan_type",
        ),
        ("GRANT UPDATE ON pay_plans TO {role}", "role", "warn", "may write to public.pay_plans"),
        (TRIGGER, "legacy_triggers", "warn", "pads_applications on public.portal_applications"),
    ],
)
def test_a_remedy_mends_what_was_found(
    ready: Database, streamer: Role, check: Check, damage: str, name: str, verdict: str, says: str
) -> None:
    ready.execute(damage.replace("{role}", streamer.name))
    finding = check(ready.url(*streamer)).the(name, verdict)
    assert says in finding.text
    if name == "role":
        assert "pads-cdc setup" in finding.remedy
        return
    remedy = finding.remedy.partition("in use: ")[2] or finding.remedy
    for statement in remedy.split(";"):
        if statement.strip():
            ready.execute(statement)
    assert check(ready.url(*streamer)).not_passed() == ["max_slot_wal_keep_size"]


@pytest.mark.parametrize(
    ("damage", "name", "verdict", "says"),
    [
        ("DROP TABLE pay_plans CASCADE", "tables", "fail", "public.pay_plans"),
        (
            "DROP TABLE portal_application_changes",
            "tables",
            "pass",
            "its 4 tables in public; portal_application_changes is not followed",
        ),
        (
            "ALTER TABLE pay_plans RENAME TO plans; CREATE VIEW pay_plans AS SELECT * FROM plans",
            "tables",
            "fail",
            "public.pay_plans is a view",
        ),
        ("ALTER TABLE pay_plans DROP COLUMN throughput_limit", "statements", "fail", "throughput_limit"),
        (
            "ALTER TABLE portal_application_changes DROP COLUMN portal_app_id",
            "statements",
            "fail",
            "portal_app_id",
        ),
        (
            "ALTER TABLE accounts ADD deleted BOOLEAN",
            "soft_delete",
            "fail",
            "public.accounts marks rows as deleted",
        ),
        (
            "ALTER TABLE accounts DROP CONSTRAINT accounts_pkey CASCADE",
            "replica_identity",
            "fail",
            "public.accounts has no primary key",
        ),
        (
            "ALTER TABLE accounts DROP CONSTRAINT accounts_pkey CASCADE",
            "unique_keys",
            "fail",
            "id is not unique in public.accounts",
        ),
        (
            DROP_UNIQUE,
            "unique_keys",
            "fail",
            "application_id is not unique",
        ),
        (
            DROP_UNIQUE,
            "replica_identity",
            "fail",
            "has lost its identity's index",
        ),
        (
            OTHER_IDENTITY,
            "replica_identity",
            "warn",
            "do not name their plan_type",
        ),
        (
            "DELETE FROM portal_application_settings WHERE application_id = 'app_3'",
            "endpoints",
            "warn",
            "1 of 6 endpoints have no settings",
        ),
        (
            "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'",
            "endpoints",
            "warn",
            "the first is app_1",
        ),
        (
            "ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE BIGINT",
            "limits",
            "warn",
            "capacity_limit, from pay_plans.monthly_relay_limit, is bigint",
        ),
        (
            """
            ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE BIGINT;
            UPDATE pay_plans SET monthly_relay_limit = 5000000000
            """,
            "odd_rows",
            "warn",
            "app_1 (capacity_limit is 5000000000, beyond 32 bits",
        ),
        (
            "ALTER TABLE portal_application_settings ALTER secret_key TYPE BYTEA USING secret_key::BYTEA",
            "column_types",
            "fail",
            "secret_key, from portal_application_settings.secret_key, is bytea, not text",
        ),
    ],
)
def test_what_only_a_person_can_mend(
    database_factory: DatabaseFactory, check: Check, damage: str, name: str, verdict: str, says: str
) -> None:
    database = database_factory()
    fill(database, 6)
    database.set_up(load("grove"))
    # pay_plans has one row, so that a column with a default can be unique.
    database.execute("DELETE FROM pay_plans WHERE plan_type <> 'plan_0'")
    database.execute(damage)
    assert says in check(database).the(name, verdict).text


@pytest.mark.parametrize("mapping", ["grove_soft_delete", "pads_soft_delete"])
def test_a_mapping_that_honours_soft_deletes(
    mapping: str, database_factory: DatabaseFactory, check: Check
) -> None:
    database = database_factory(mapping)
    assert check(database).the("soft_delete", "fail").remedy.startswith(f"use MAPPING={mapping},")
    assert check(database, MAPPING=mapping).the("soft_delete", "pass")


def test_another_schema(database: Database, check: Check) -> None:
    assert "nowhere does not exist" in check(database, DB_SCHEMA="nowhere").the("tables", "fail").text


def test_names_that_have_to_be_quoted(database: Database, streamer: Role, check: Check) -> None:
    database.execute('ALTER SCHEMA public RENAME TO "Portal ""x"""')
    report = check(database, DB_SCHEMA='Portal "x"')
    for name in ("replica_identity", "indexes"):
        for finding in report.of(name):
            assert finding.verdict in {"pass", "warn"}
    database.execute(f'REVOKE USAGE ON SCHEMA "Portal ""x""" FROM PUBLIC, {streamer.name}')
    finding = check(database.url(*streamer), DB_SCHEMA='Portal "x"').of("tables")[0]
    assert finding.remedy == f'GRANT USAGE ON SCHEMA "Portal ""x""" TO "{streamer.name}";'


def test_partitions_are_looked_at_one_by_one(ready: Database, check: Check) -> None:
    ready.execute(
        """
        DROP TABLE portal_applications CASCADE;
        CREATE TABLE portal_applications (id VARCHAR(24) PRIMARY KEY, account_id VARCHAR(10))
            PARTITION BY HASH (id);
        CREATE TABLE part_0 PARTITION OF portal_applications FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE part_1 PARTITION OF portal_applications FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        ALTER TABLE part_1 REPLICA IDENTITY NOTHING;
        """
    )
    finding = check(ready).the("replica_identity", "fail")
    assert finding.remedy == "ALTER TABLE public.part_1 REPLICA IDENTITY DEFAULT;"


# --- connections


def test_everything_else_waits_for_the_connection(database: Database, check: Check) -> None:
    role = database.create_role()
    report = check(database.url(role.name, "not-the-password"))
    assert report.code == 1
    assert "password authentication failed" in report.the("connection", "fail").text
    assert report.the("state_file", "pass")
    skipped = [finding.check for finding in report.findings if finding.verdict == "skip"]
    assert len(skipped) == len(report.findings) - 2


def test_checks_that_cannot_be_made_are_one_line(
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "connection"
    file.write_text(f"postgresql://streamer:s3cr3t@127.0.0.1:{free_port()}/portal")
    done = pads_cdc("check", POSTGRES_CONNECTION_STRING_FILE=str(file))
    assert (done.returncode, done.stderr) == (1, "")
    failed, remedy, skipped, *_, counts = done.stdout.splitlines()
    assert failed.startswith("fail  connection: connection to server at")
    assert failed.endswith("Connection refused (POSTGRES_CONNECTION_STRING_FILE)")
    assert "correct host and port in POSTGRES_CONNECTION_STRING_FILE" in remedy
    number = len(NECESSARY) + len(FURTHER) - 2
    assert skipped == f"skip  {number} checks: skipped until connection passes"
    assert len(done.stdout.splitlines()) <= 6
    assert counts.endswith(f"{number} skip")


def test_a_message_names_tables_and_not_a_query_s_short_names_for_them(ready: Database, check: Check) -> None:
    report = check(ready, MAPPING="grove_soft_delete")
    texts = [finding.text for finding in report.of("statements") if finding.verdict == "fail"]
    assert "column portal_applications.deleted does not exist" in texts, texts


def test_one_connection_string_is_called_by_the_name_that_was_given(
    ready: Database, streamer: Role, pads_cdc: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "connection"
    file.write_text(ready.url(*streamer))
    ready.execute(
        f"REVOKE SELECT ON accounts FROM {streamer.name}; ALTER ROLE {streamer.name} CONNECTION LIMIT 0"
    )
    done = pads_cdc("check", POSTGRES_CONNECTION_STRING_FILE=str(file))
    assert "POSTGRES_CONNECTION_STRING_FILE" in done.stdout
    assert "QUERY_CONNECTION_STRING" not in done.stdout
    file.write_text(ready.url(streamer.name, "not-the-password"))
    done = pads_cdc("check", POSTGRES_CONNECTION_STRING_FILE=str(file))
    assert "check user and password in POSTGRES_CONNECTION_STRING_FILE" in done.stdout


@pytest.mark.own_cluster
def test_pg_hba_conf(database: Database, check: Check) -> None:
    role = database.create_role("REPLICATION")
    conf = database.cluster.data / "pg_hba.conf"
    superuser = "host all postgres 127.0.0.1/32 scram-sha-256\n"
    conf.write_text(superuser)
    database.cluster.reload()
    finding = check(database.url(*role)).the("connection", "fail")
    line = f"host {database.name} {role.name} 127.0.0.1/32 scram-sha-256"
    assert finding.remedy == f"add to pg_hba.conf, and reload: {line}"
    conf.write_text(f"{superuser}{line}\n")
    database.cluster.reload()
    assert wait_until(lambda: check(database.url(*role)).the("connection", "pass"), "the remedy")


def test_a_query_server_of_another_cluster(
    database: Database, cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    other = database_factory(cluster=cluster_factory())
    finding = check(database, QUERY_CONNECTION_STRING=other.url()).the("query_server", "fail")
    assert "QUERY_CONNECTION_STRING" in finding.remedy
    assert check(database, QUERY_CONNECTION_STRING=database.url()).the("query_server", "pass")


# --- servers that lack something


def test_wal_level(cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check) -> None:
    report = check(database_factory(cluster=cluster_factory({"wal_level": "replica"})))
    assert report.the("wal_level", "fail").text == "wal_level is replica"
    assert report.the("plugin", "skip")


def test_the_plugin_and_the_slots(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    """One server for what it can lack one after the other."""
    cluster = cluster_factory({"dynamic_library_path": "/nowhere", "max_replication_slots": "1"})
    database = database_factory(cluster=cluster)
    finding = check(database).the("plugin", "fail")
    assert "wal2json" in finding.text
    assert "postgresql-VERSION-wal2json" in finding.remedy
    assert database.value("SELECT count(*) FROM pg_replication_slots") == 0
    cluster.configure({"dynamic_library_path": "$libdir"})
    cluster.reload()
    wait_until(lambda: database.value("SHOW dynamic_library_path") == "$libdir", "the reload")
    database.execute("SELECT pg_create_physical_replication_slot('another')")
    report = check(database)
    assert "1 of 1 replication slots are used" in report.the("replication_slots", "fail").text
    assert report.the("plugin", "warn")
    # Ours is that one: nothing more is needed.
    database.execute("SELECT pg_drop_replication_slot('another')")
    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'wal2json')")
    assert check(database).the("replication_slots", "pass")


def test_no_wal_sender(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    database = database_factory(cluster=cluster_factory({"max_wal_senders": "0"}))
    report = check(database)
    assert report.code == 1
    assert "max_wal_senders" in report.the("replication_right", "fail").text


def test_the_allow_list(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, programs17: Programs, check: Check
) -> None:
    cluster = cluster_factory({"output_plugin_libraries": "pgoutput"}, programs=programs17)
    database = database_factory(cluster=cluster)
    report = check(database)
    finding = report.the("output_plugin_libraries", "fail")
    assert report.the("plugin", "skip")
    database.execute(finding.remedy.partition("superuser: ")[2])
    report = check(database)
    assert report.the("output_plugin_libraries", "pass")
    assert report.the("plugin", "pass")


def test_limits_on_retained_wal(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    cluster = cluster_factory({"max_slot_wal_keep_size": "128MB", "min_wal_size": "32MB"})
    database = database_factory(cluster=cluster)
    finding = check(database).the("retained_wal", "warn")
    assert finding.text.startswith("MAX_RETAINED_WAL (1GB) is not below max_slot_wal_keep_size (128MB)")
    assert finding.remedy.startswith("MAX_RETAINED_WAL=64MB, or ")
    assert check(database, MAX_RETAINED_WAL="32MB").the("retained_wal", "pass")

    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'wal2json')")
    retain(database, segments=4)
    finding = check(database, MAX_RETAINED_WAL="32MB").the("retained_wal", "warn")
    assert "more than MAX_RETAINED_WAL (32MB)" in finding.text
    retain(database, segments=10)
    database.execute("CHECKPOINT")
    status = "SELECT wal_status FROM pg_replication_slots"
    wait_until(lambda: database.value(status) == "lost", "the slot is lost")
    assert "was invalidated" in check(database, MAX_RETAINED_WAL="32MB").the("slot", "warn").text


def retain(database: Database, segments: int) -> None:
    """Write that many WAL files of 16 MB."""
    for _ in range(segments):
        database.execute("SELECT pg_logical_emit_message(false, '', 'x'), pg_switch_wal()")


# --- our slot


def test_slots_that_are_not_ours(database: Database, database_factory: DatabaseFactory, check: Check) -> None:
    slot = f"slot_of_{database.name}"
    create = "SELECT pg_create_logical_replication_slot(%s, %s)"
    database.execute(create, (slot, "test_decoding"))
    assert "test_decoding" in check(database, SLOT_NAME=slot).the("slot", "fail").text
    database.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    other = database_factory()
    other.execute(create, (slot, "wal2json"))
    assert f"belongs to the database {other.name}" in check(database, SLOT_NAME=slot).the("slot", "fail").text


def test_a_slot_that_is_read(ready: Database, serve: ServerFactory, check: Check) -> None:
    slot = f"slot_of_{ready.name}"
    serve(ready, SLOT_NAME=slot)
    active = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND active_pid IS NOT NULL"
    [(pid,)] = wait_until(lambda: ready.rows(active, (slot,)), "the slot is active")
    assert f"read by process {pid}" in check(ready, SLOT_NAME=slot).the("slot", "pass").text


def test_whom_the_slot_would_wait_for(ready: Database, check: Check) -> None:
    ready.execute("BEGIN; INSERT INTO accounts VALUES ('p', 'plan_0'); PREPARE TRANSACTION 'of_yesterday'")
    report = check(ready)
    assert "'of_yesterday'" in report.the("slot", "warn").text
    assert report.the("plugin", "pass"), "the trial does not wait for it"


# --- standbys


def test_a_standby_that_cannot_decode(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, check: Check
) -> None:
    primary = cluster_factory()
    database = database_factory(cluster=primary)
    if int(database.value("SHOW server_version_num")) >= 160_000:
        pytest.skip("this version decodes on a standby")
    with ephemeral_standby(primary) as standby:
        on_standby = database.on(standby)
        wait_until(lambda: _connects(on_standby), "the database is replayed")
        finding = check(on_standby).the("server_version", "fail")
        assert "QUERY_CONNECTION_STRING" in finding.remedy
        # As that remedy says.
        report = check(database, QUERY_CONNECTION_STRING=on_standby.url())
        assert report.the("server_version", "pass")
        assert report.the("query_server", "pass")


def test_a_standby(standby17: Replicated, database_factory: DatabaseFactory, check: Check) -> None:
    database = database_factory(cluster=standby17.primary)
    standby17.wait_replayed()
    on_standby = database.on(standby17.standby)
    report = check(on_standby)
    assert report.the("standby", "pass")
    assert report.the("plugin", "pass")
    assert "pg_log_standby_snapshot" in report.the("slot", "warn").remedy
    assert report.code == 0

    for setting in ("hot_standby_feedback = off", "primary_slot_name = ''"):
        on_standby.execute(f"ALTER SYSTEM SET {setting}")
    standby17.standby.reload()
    wait_until(lambda: on_standby.value("SHOW hot_standby_feedback") == "off", "the reload")
    verdicts = [finding.verdict for finding in check(on_standby).of("standby")]
    assert verdicts == ["fail", "warn"]

    standby17.primary.configure({"wal_level": "replica"})
    standby17.primary.restart()
    standby17.wait_replayed()
    wait_until(
        lambda: "on the primary" in check(on_standby).the("plugin", "fail").remedy, "the primary's wal_level"
    )


def _connects(database: Database) -> bool:
    try:
        database.value("SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True


def test_a_table_that_somebody_locks_has_no_wrong_types(ready: Database, check: Check) -> None:
    """A server that starts waits for a lock, and would end for a wrong type."""
    site = deployment(ready)
    assert site.types.columns
    session = ready.connect()
    session.autocommit = False
    with session.cursor() as cursor:
        cursor.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceError) as error:
            list(key_types(site))
        assert error.value.reason == "locked"
        assert "run the check again" in check(ready).the("statements", "fail").remedy


# --- our machine


def deployment(database: Database, **queries: str) -> Deployment:
    """Return what questions are asked of, in this process; with other queries than the server has."""
    address = Address(database.url, "POSTGRES_CONNECTION_STRING")
    return Deployment(
        source=address,
        database=Queried(address, load("grove"), "public", encode),
        queries=server_queries() | queries,
        schema="public",
        slot_name="pads_cdc",
        publication_name="pads_cdc",
        max_retained_wal=1,
        state_file=Path("state"),
    )


def test_the_clocks(database: Database) -> None:
    """The database's clock is moved by the query that asks for it."""
    for ahead, verdict in (("0", Verdict.PASS), ("7.5", Verdict.WARN), ("-7.5", Verdict.WARN)):
        ask = f"SELECT extract(epoch FROM clock_timestamp())::float8 + {ahead}"
        [finding] = clock(deployment(database, Clock=ask))
        assert finding.verdict is verdict
        assert verdict is Verdict.PASS or "7.5 s" in finding.text


def test_where_the_state_file_is(database: Database, check: Check, tmp_path: Path) -> None:
    missing = check(database, STATE_FILE=str(tmp_path / "none" / "state")).the("state_file", "fail")
    assert str(tmp_path / "none") in missing.remedy
    shared_memory = check(database, STATE_FILE="/dev/shm/pads-cdc.state").the("state_file", "warn")  # noqa: S108
    assert "tmpfs" in shared_memory.text
    folder = check(database, STATE_FILE=str(tmp_path)).the("state_file", "fail")
    assert f"{tmp_path} is not a file" in folder.text
    (tmp_path / "dsn").write_text("host=db.internal")
    foreign = check(database, STATE_FILE=str(tmp_path / "dsn")).the("state_file", "fail")
    assert "is not a state file" in foreign.text


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    spaced = tmp_path / "with space"
    spaced.mkdir()
    escaped = str(spaced).replace(" ", r"\040")
    mounts = f"overlay / overlay rw 0 0\n/dev/x {escaped} ext4 rw 0 0\n"
    assert filesystem(tmp_path, mounts) == "overlay"
    assert filesystem(spaced, mounts) == "ext4"
    assert filesystem(spaced, mounts + f"tmpfs {escaped} tmpfs rw 0 0\n") == "tmpfs", "the last one covers it"
    assert filesystem(spaced, "") is None


# --- how it is told


def test_a_person_reads_a_table(
    database: Database, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    database.execute("ALTER TABLE accounts REPLICA IDENTITY NOTHING")
    settings = {"POSTGRES_CONNECTION_STRING": database.url(), "COLUMNS": "300"}
    plain = pads_cdc("check", **settings)
    assert plain.returncode == 1
    assert plain.stderr == ""
    assert "fail  replica_identity: public.accounts has REPLICA IDENTITY NOTHING" in plain.stdout
    assert "\n      ALTER TABLE public.accounts REPLICA IDENTITY DEFAULT;\n" in plain.stdout
    assert plain.stdout.rstrip().endswith(" 1 fail")
    coloured = pads_cdc("check", FORCE_COLOR="1", **settings)
    assert "\x1b[" in coloured.stdout
    assert "→ ALTER TABLE public.accounts REPLICA IDENTITY DEFAULT;" in coloured.stdout


def test_wrong_usage(pads_cdc: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for arguments, settings in (
        (["check"], {}),
        (["check", "--jason"], {}),
        (["check"], {"POSTGRES_CONNECTION_STRING": "host=x", "MAPPING": "none"}),
        (["check", "--port", "1"], {"POSTGRES_CONNECTION_STRING": "host=x"}),
    ):
        done = pads_cdc(*arguments, **settings)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.count("\n") == 1


def test_the_page_has_every_check_and_a_star_for_those_that_serve_asks() -> None:
    page = (ROOT / "docs/check.md").read_text(encoding="utf-8")
    stars = dict(re.findall(r"^\| `(\w+)` (\*?)", page, re.MULTILINE))
    assert stars == {one.name: "*" for one in NECESSARY} | {one.name: "" for one in FURTHER}
