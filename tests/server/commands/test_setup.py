"""`pads-cdc setup` and `teardown`: from a bare database to a server that runs, and back to where it was."""

from __future__ import annotations

import re
import stat
import threading
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from cdc.mapping.mapping import load
from tests.plugins.decoding import plugin_settings
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support.repeated import repeated

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from server.commands.demo.programs import Programs
    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated
    from tests.plugins.server import GatewayFactory, ServerFactory

    Command = Callable[..., subprocess.CompletedProcess[str]]

CATALOG = """
SELECT 'relation', c.relname::text, c.relkind::text, c.relreplident::text,
    coalesce(c.relacl, acldefault('r', c.relowner))::text, obj_description(c.oid, 'pg_class')
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', indexrelid::regclass::text, indisvalid::text, indisreplident::text, indkey::text, NULL
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'schema', nspname, coalesce(nspacl, acldefault('n', nspowner))::text, NULL, NULL, NULL
FROM pg_namespace WHERE nspname = 'public'
UNION ALL
SELECT 'database', datname, coalesce(datacl, acldefault('d', datdba))::text, NULL, NULL, NULL
FROM pg_database WHERE datname = current_database()
UNION ALL
SELECT 'role', rolname, shobj_description(oid, 'pg_authid'), NULL, NULL, NULL FROM pg_roles
UNION ALL
SELECT 'slot', slot_name, plugin, NULL, NULL, NULL FROM pg_replication_slots
UNION ALL
SELECT 'publication', pubname, obj_description(oid, 'pg_publication'), NULL, NULL, NULL FROM pg_publication
ORDER BY 1, 2
"""


class Admin:
    """Runs the two commands on one database, as its superuser."""

    def __init__(self, database: Database, pads_cdc: Command, role_file: Path) -> None:
        database.unpublish()  # that is for `setup` to make
        self.database = database
        self.role_file = role_file
        self.role = f"{database.name}_role_service"  # goes with the database, if a test leaves it behind
        self.slot = f"slot_of_{database.name}"
        self.command = pads_cdc

    def run(self, command: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run one of them; whatever the end, no password is shown."""
        given = {"ADMIN_CONNECTION_STRING": self.database.url(), "SLOT_NAME": self.slot}
        given |= plugin_settings(self.database.plugin) | settings
        done = self.command(command, "--role", self.role, *arguments, **given)
        said = done.stdout + done.stderr
        assert self.database.cluster.password not in said
        if self.role_file.exists():
            assert parse_dsn(self.role_file.read_text())["password"] not in said
        assert "SCRAM-SHA-256$" not in said
        return done

    def setup(self, *arguments: str, **settings: str) -> list[str]:
        """Set up, with the role's file; returns the statements."""
        return self._done("setup", "--role-file", str(self.role_file), *arguments, **settings)

    def teardown(self, *arguments: str, **settings: str) -> list[str]:
        """Take it back; returns the statements."""
        return self._done("teardown", *arguments, **settings)

    def catalog(self) -> list[tuple[Any, ...]]:
        """Return all of the catalog that the commands may have changed."""
        return self.database.rows(CATALOG)

    def _done(self, *arguments: str, **settings: str) -> list[str]:
        done = self.run(*arguments, **settings)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return [line for line in done.stdout.splitlines() if not line.startswith("-- ")]


@pytest.fixture
def admin(database: Database, pads_cdc: Command, tmp_path: Path) -> Admin:
    return Admin(database, pads_cdc, tmp_path / "service.connection")


@pytest.mark.both_plugins
def test_from_a_bare_database_and_back(
    admin: Admin, check: Check, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    database = admin.database
    fill(database, 60)
    before, rows = admin.catalog(), database.rows("SELECT * FROM portal_application_settings ORDER BY id")

    planned = admin.setup("--dry-run")
    assert admin.catalog() == before, "a dry run runs nothing"
    assert not admin.role_file.exists()
    assert admin.setup() == planned, "and prints exactly what is run"
    assert admin.setup() == [], "nothing is left to do"
    assert stat.S_IMODE(admin.role_file.stat().st_mode) == 0o600

    service = admin.role_file.read_text().strip()
    report = check(service, SLOT_NAME=admin.slot)
    assert report.ready
    # What is left is the test cluster's and the data's.
    assert set(report.not_passed()) <= {"max_slot_wal_keep_size", "endpoints"}
    assert report.the("role", "pass")

    server = serve(service, SLOT_NAME=admin.slot)
    client = gateway(server)
    wait_equal(client, database)
    database.execute("DELETE FROM portal_applications WHERE id IN ('app_1', 'app_2')")
    database.execute("UPDATE pay_plans SET throughput_limit = 77")
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_4'"
    )
    wait_equal(client, database)

    refused = admin.run("teardown")
    assert refused.returncode == 1
    assert re.search(r"slot_of_\w+ is being read by process \d+, and nothing was done", refused.stderr)
    assert server.stop() == 0
    with_slot = admin.catalog()
    planned = admin.teardown("--dry-run")
    assert admin.catalog() == with_slot
    assert admin.teardown() == planned
    assert admin.catalog() == before
    assert admin.teardown() == []
    assert len(database.rows("SELECT FROM portal_application_settings")) == len(rows) - 2, "ours to delete"


@pytest.mark.both_plugins
@pytest.mark.parametrize("mapping", ["grove_jwt", "grove_soft_delete"])
def test_other_mappings(
    mapping: str, database_factory: DatabaseFactory, pads_cdc: Command, check: Check, tmp_path: Path
) -> None:
    database = database_factory(mapping)
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    before = admin.catalog()
    admin.setup(MAPPING=mapping)
    report = check(admin.role_file.read_text().strip(), MAPPING=mapping, SLOT_NAME=admin.slot)
    assert report.not_passed() == ["max_slot_wal_keep_size"]
    admin.teardown(MAPPING=mapping)
    assert admin.catalog() == before


@pytest.mark.both_plugins
def test_the_printed_sql_is_enough_by_itself(admin: Admin, check: Check) -> None:
    """An administrator who runs nothing but SQL that was read: by psql, say."""
    database = admin.database
    password = "typed-by-hand"
    session = database.connect()
    with session.cursor() as cursor:
        for statement in admin.setup("--dry-run"):
            cursor.execute(re.sub(r"'\(a SCRAM verifier .*\)'", f"'{password}'", statement))
    report = check(database.url(admin.role, password), SLOT_NAME=admin.slot)
    assert report.not_passed() == ["max_slot_wal_keep_size"]
    assert admin.run("setup").stdout.startswith("-- nothing to do\n")


@pytest.mark.both_plugins
def test_what_others_made_stays(admin: Admin) -> None:
    """Indexes of the same names, comments, and an identity that was chosen for a reason."""
    database = admin.database
    database.execute(
        """
        CREATE INDEX portal_applications_account_id_idx ON portal_applications (account_id);
        COMMENT ON INDEX accounts_pkey IS 'do not touch ''this''';
        ALTER TABLE accounts REPLICA IDENTITY NOTHING;
        ALTER TABLE portal_application_settings REPLICA IDENTITY FULL;
        """
    )
    before = admin.catalog()
    planned = admin.setup()
    assert not any("portal_applications_account_id_idx" in statement for statement in planned)
    assert not any("portal_application_settings REPLICA" in statement for statement in planned)
    assert "ALTER TABLE public.accounts REPLICA IDENTITY DEFAULT;" in planned
    admin.teardown()
    assert admin.catalog() == before


def test_an_identity_by_an_index_comes_back(admin: Admin) -> None:
    admin.database.execute(
        """
        CREATE UNIQUE INDEX "by Id" ON portal_application_settings (id);
        ALTER TABLE portal_application_settings REPLICA IDENTITY USING INDEX "by Id";
        """
    )
    before = admin.catalog()
    admin.setup()
    assert admin.catalog() != before
    admin.teardown()
    assert admin.catalog() == before


UPDATE = "UPDATE portal_application_settings SET secret_key = secret_key || 'x'"
THEIRS = {
    "a list": "CREATE PUBLICATION theirs FOR TABLE portal_application_settings (id, secret_key_required)",
    "a condition": "CREATE PUBLICATION theirs FOR TABLE portal_application_settings WHERE (id IS NOT NULL)",
}


@pytest.mark.both_plugins
@pytest.mark.parametrize("theirs", THEIRS.values(), ids=THEIRS)
def test_no_identity_is_chosen_with_which_others_publications_would_refuse_updates(
    admin: Admin, check: Check, theirs: str
) -> None:
    database = admin.database
    fill(database, 5)
    database.execute(theirs)
    admin.setup()
    database.execute(UPDATE)
    finding = check(database).the("replica_identity", "warn")
    assert finding.remedy.startswith("change nothing while the publication theirs does not send")
    database.set_up(load("grove"))
    database.execute(UPDATE)
    database.execute("DROP PUBLICATION theirs")
    assert any("REPLICA IDENTITY USING INDEX" in statement for statement in admin.setup())
    database.execute(UPDATE)


def test_our_publication_is_kept_up_where_wal2json_decodes(admin: Admin) -> None:
    """It stays behind on the way from pgoutput to wal2json, and would have updates refused as any other."""
    database = admin.database
    fill(database, 5)
    admin.setup(PLUGIN="pgoutput")
    database.execute(
        "ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT;"
        "ALTER PUBLICATION pads_cdc SET TABLE portal_application_settings (id)"
    )
    assert any("REPLICA IDENTITY USING INDEX" in statement for statement in admin.setup(PLUGIN="wal2json"))
    database.execute(UPDATE)
    assert admin.setup(PLUGIN="wal2json") == []


def test_an_identity_stays_while_others_publications_go_with_it_alone(admin: Admin) -> None:
    database = admin.database
    fill(database, 5)
    admin.setup()
    database.execute("CREATE PUBLICATION theirs FOR TABLE portal_application_settings (application_id)")
    done = admin.run("teardown")
    assert (done.returncode, done.stderr) == (0, "")
    assert "with the earlier one, the publication theirs" in done.stdout
    database.execute(UPDATE)
    database.execute("DROP PUBLICATION theirs")
    assert any("REPLICA IDENTITY DEFAULT" in statement for statement in admin.teardown())
    database.execute(UPDATE)


def test_an_index_whose_build_was_cut_short_is_built_anew(admin: Admin) -> None:
    database = admin.database
    database.execute("CREATE INDEX accounts_plan_type_idx ON accounts (plan_type)")
    database.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'accounts_plan_type_idx'::regclass"
    )
    assert "DROP INDEX CONCURRENTLY public.accounts_plan_type_idx;" in admin.setup()
    assert database.value(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'accounts_plan_type_idx'::regclass"
    )


def test_partitions_get_an_index_each(admin: Admin, check: Check) -> None:
    admin.database.execute(
        """
        DROP TABLE portal_applications CASCADE;
        CREATE SCHEMA "a.b";
        CREATE TABLE portal_applications (id VARCHAR(24) PRIMARY KEY, account_id VARCHAR(10))
            PARTITION BY HASH (id);
        CREATE TABLE part_0 PARTITION OF portal_applications FOR VALUES WITH (MODULUS 2, REMAINDER 0)
            PARTITION BY HASH (id);
        CREATE TABLE "a.b".part_00 PARTITION OF part_0 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        CREATE TABLE part_1 PARTITION OF portal_applications FOR VALUES WITH (MODULUS 2, REMAINDER 1)
        """
    )
    before = admin.catalog()
    assert len([finding for finding in check(admin.database).of("indexes") if "part_" in finding.text]) == 2
    made = [line for line in admin.setup() if line.startswith("CREATE INDEX")]
    assert len([line for line in made if ' ON "a.b".part_00 (account_id)' in line]) == 1
    assert len([line for line in made if " ON public.part_1 (account_id)" in line]) == 1
    assert admin.setup() == []
    assert [finding.verdict for finding in check(admin.database).of("indexes")] == ["pass"]
    plan = admin.database.rows(
        "SET enable_seqscan = off; EXPLAIN SELECT id FROM portal_applications WHERE account_id = 'acc_1'"
    )
    assert "Seq Scan" not in str(plan)
    admin.teardown()
    assert admin.catalog() == before


def test_a_lock_that_cannot_be_had_is_one_line_and_the_next_run_goes_on(admin: Admin) -> None:
    """ALTER TABLE must not wait long: all readers would queue behind it."""
    reader = admin.database.connect()
    with reader.cursor() as cursor:
        cursor.execute("BEGIN; SELECT FROM portal_application_settings")
        with repeated(admin.database.url(), "UPDATE portal_application_settings SET id = id WHERE id = 0"):
            failed = admin.run("setup", "--role-file", str(admin.role_file))
        assert failed.returncode == 1
        assert failed.stderr.startswith("pads-cdc: another session holds a lock")
        assert failed.stderr.count("\n") == 1
        cursor.execute("ROLLBACK")
    assert admin.setup()[-1].startswith("ALTER TABLE public.portal_application_settings REPLICA IDENTITY")
    assert admin.setup() == []


def test_setup_keeps_no_writer_waiting(admin: Admin) -> None:
    """Indexes are built beside the writers, also while a transaction is open for which the build waits. Then
    the publication is made, and all of it is taken back.
    """
    fill(admin.database, 20_000)
    admin.database.execute("DROP INDEX IF EXISTS portal_applications_account_id_idx, accounts_plan_type_idx")
    oldest = admin.database.connect()
    oldest.autocommit = False
    oldest.cursor().execute("UPDATE portal_applications SET account_id = account_id WHERE id = 'app_2'")
    write = "UPDATE portal_applications SET account_id = account_id WHERE id = 'app_1'"
    with repeated(admin.database.url(), write) as writer:
        building = threading.Thread(target=admin.setup)
        building.start()
        waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'"
        wait_until(lambda: admin.database.value(waiting) == 1, "the build waits")
        writer.goes_on(100)
        oldest.rollback()
        building.join(60)
        assert admin.setup() == []
        assert admin.setup(PLUGIN="pgoutput") != [], "the publication is made"
        assert admin.teardown() != []
    assert max(writer.waits) < 2.5


def test_row_level_security(admin: Admin, check: Check) -> None:
    fill(admin.database, 3)
    admin.database.execute("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY")
    assert f'ALTER ROLE "{admin.role}" BYPASSRLS;' in admin.setup()
    assert check(admin.role_file.read_text().strip()).the("row_security", "pass")


# --- the role


def test_a_role_that_was_there_stays(admin: Admin) -> None:
    admin.database.execute(f"CREATE ROLE {admin.role} NOLOGIN")
    done = admin.run("setup", "--role-file", str(admin.role_file))
    assert done.returncode == 1
    assert "setup does not replace the role's password" in done.stderr
    assert not admin.role_file.exists()
    done = admin.run("setup")
    assert done.returncode == 0, done.stderr
    assert f'ALTER ROLE "{admin.role}" LOGIN;' in done.stdout
    assert f'ALTER ROLE "{admin.role}" REPLICATION;' in done.stdout
    assert "has been given no password" in done.stdout
    done = admin.run("teardown")
    assert f"-- the role {admin.role} stays, with its rights: setup did not make it" in done.stdout
    assert admin.database.value("SELECT count(*) FROM pg_roles WHERE rolname = %s", (admin.role,)) == 1


def test_a_password_that_somebody_chose(admin: Admin) -> None:
    """The file is there first: it is what the role is given, and again after somebody changed it."""
    url = admin.database.url(admin.role, "it's-chos%3Den")
    admin.role_file.write_text(url)
    for _ in range(2):
        planned = admin.setup()
        assert any("PASSWORD" in statement for statement in planned)
        psycopg2.connect(url).close()
        admin.database.execute(f"ALTER ROLE {admin.role} PASSWORD 'another'")
    assert admin.role_file.read_text() == url, "the file is read, not written"


def test_a_role_that_is_used_elsewhere_stays_until_that_is_over(
    admin: Admin, database_factory: DatabaseFactory, pads_cdc: Command
) -> None:
    admin.setup()
    second = Admin(database_factory(), pads_cdc, admin.role_file.with_name("second"))
    second.role = admin.role
    assert second.run("setup").returncode == 0
    said = admin.run("teardown").stdout
    assert f"stays: it is used in the database {second.database.name}" in said
    assert f'DROP ROLE "{admin.role}";' in second.teardown()


def test_what_the_role_owns_is_never_dropped(admin: Admin) -> None:
    admin.setup()
    admin.database.execute(f"CREATE TABLE kept (); ALTER TABLE kept OWNER TO {admin.role}")
    said = admin.run("teardown").stdout
    assert "stays: it owns table public.kept" in said
    assert admin.database.value("SELECT to_regclass('kept') IS NOT NULL")
    admin.database.execute("DROP TABLE kept")
    assert admin.teardown()[-1] == f'DROP ROLE "{admin.role}";'


@pytest.mark.own_cluster
def test_amazon_rds(database: Database, pads_cdc: Command, tmp_path: Path) -> None:
    """There nobody may give the attribute; membership in a role stands for it."""
    database.execute("CREATE ROLE rds_replication")
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    planned = admin.setup()
    assert f'CREATE ROLE "{admin.role}" LOGIN;' in planned
    assert f'GRANT rds_replication TO "{admin.role}";' in planned
    assert database.value("SELECT pg_has_role(%s, 'rds_replication', 'MEMBER')", (admin.role,))
    assert admin.setup() == []
    admin.teardown()
    assert not database.rows("SELECT FROM pg_roles WHERE rolname = %s", (admin.role,))


def test_an_administrator_who_is_no_superuser(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    programs17: Programs,
    pads_cdc: Command,
    check: Check,
    tmp_path: Path,
) -> None:
    """As on Cloud SQL or Azure: one who has REPLICATION, may create roles, and owns the tables."""
    database = database_factory(cluster=cluster_factory(programs=programs17))
    owner = database.create_role("CREATEROLE REPLICATION")
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {owner.name}")
    for (table,) in database.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        database.execute(f"ALTER TABLE {table} OWNER TO {owner.name}")
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    before = admin.catalog()
    as_owner = {"ADMIN_CONNECTION_STRING": database.url(*owner)}
    admin.setup(**as_owner)
    assert admin.setup(**as_owner) == []
    assert check(admin.role_file.read_text().strip()).not_passed() == ["max_slot_wal_keep_size"]
    admin.teardown(**as_owner)
    assert admin.catalog() == before


@pytest.mark.own_cluster
def test_the_line_for_pg_hba_conf_is_all_that_the_role_needs(
    database: Database,
    pads_cdc: Command,
    check: Check,
    tmp_path: Path,
) -> None:
    """It lets the role decode in that database; another database, or a copy of the cluster, stays closed."""
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    done = admin.run("setup", "--role-file", str(admin.role_file))
    [line] = re.findall(r"^--   ((?:host|hostssl|local) .*)$", done.stdout, re.MULTILINE)
    assert line == f"host {database.name} {admin.role} 127.0.0.1/32 scram-sha-256"
    (database.cluster.data / "pg_hba.conf").write_text(
        f"host all postgres 127.0.0.1/32 scram-sha-256\n{line}\n"
    )
    database.cluster.reload()
    service = parse_dsn(admin.role_file.read_text())
    wait_until(lambda: _refused({**service, "dbname": "postgres"}), "the reload")
    assert _refused({**service, "replication": "true"})
    report = check(admin.role_file.read_text().strip())
    assert report.ready
    assert report.the("plugin", "pass")


def _refused(fields: dict[str, str]) -> bool:
    try:
        psycopg2.connect(make_dsn(**fields)).close()
    except psycopg2.OperationalError as error:
        return "no pg_hba.conf entry" in str(error)
    return False


# --- slots


def test_slots_that_are_not_ours_stay(admin: Admin, database_factory: DatabaseFactory) -> None:
    create = "SELECT pg_create_logical_replication_slot(%s, %s)"
    other = database_factory()
    admin.setup()
    after = admin.catalog()
    for database, plugin in ((admin.database, "test_decoding"), (other, "wal2json")):
        database.execute(create, (admin.slot, plugin))
        refused = admin.run("teardown")
        assert refused.returncode == 1
        assert "is not ours" in refused.stderr
        assert "nothing was done" in refused.stderr
        database.execute("SELECT pg_drop_replication_slot(%s)", (admin.slot,))
        assert admin.catalog() == after


def test_a_slot_on_a_standby(
    standby17: Replicated, database_factory: DatabaseFactory, pads_cdc: Command, tmp_path: Path
) -> None:
    database = database_factory(cluster=standby17.primary)
    admin = Admin(database, pads_cdc, tmp_path / "service.connection")
    admin.setup()
    standby17.wait_replayed()
    on_standby = database.on(standby17.standby)
    refused = admin.run("setup", ADMIN_CONNECTION_STRING=on_standby.url())
    assert (refused.returncode, "names a standby" in refused.stderr) == (1, True)

    maker = threading.Thread(
        target=on_standby.execute,
        args=("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", (admin.slot,)),
    )
    maker.start()

    def made() -> bool:
        database.execute("SELECT pg_log_standby_snapshot()")
        return not maker.is_alive()

    wait_until(made, "the slot")
    said = admin.run("teardown", "--dry-run").stdout
    assert f"no slot {admin.slot} here" in said
    planned = admin.teardown(SLOT_CONNECTION_STRING=on_standby.url())
    assert planned[0] == f"SELECT pg_drop_replication_slot('{admin.slot}');"
    assert on_standby.rows("SELECT FROM pg_replication_slots") == []


# --- mistakes


def test_an_administrator_who_may_not(admin: Admin) -> None:
    role = admin.database.create_role("CREATEROLE")
    done = admin.run("setup", ADMIN_CONNECTION_STRING=admin.database.url(*role))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "give in ADMIN_CONNECTION_STRING a role that owns the tables" in done.stderr


def test_tables_that_are_not_there(admin: Admin) -> None:
    before = admin.catalog()
    done = admin.run("setup", DB_SCHEMA="nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere does not exist" in done.stderr
    assert admin.catalog() == before


def test_a_role_file_that_is_wrong(admin: Admin) -> None:
    for text in ("user=somebody password=x dbname=y", f"user={admin.role} dbname=y", "nonsense"):
        admin.role_file.write_text(text)
        done = admin.command(
            "setup",
            "--role",
            admin.role,
            "--role-file",
            str(admin.role_file),
            ADMIN_CONNECTION_STRING=admin.database.url(),
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith("pads-cdc: --role-file")
    admin.role_file.unlink()
    missing = admin.run("setup", "--role-file", "/proc/none/here")
    assert missing.returncode == 1
    assert "--role-file: cannot write /proc/none/here" in missing.stderr
    assert not admin.database.rows("SELECT FROM pg_roles WHERE rolname = %s", (admin.role,))


def test_wrong_usage(pads_cdc: Command) -> None:
    for command in ("setup", "teardown"):
        for settings in ({}, {"ADMIN_CONNECTION_STRING": "host=x", "ADMIN_CONNECTION_STRING_FILE": "y"}):
            done = pads_cdc(command, **settings)
            assert (done.returncode, done.stdout) == (2, "")
            assert "ADMIN_CONNECTION_STRING" in done.stderr
            assert "[redacted]" not in done.stderr, "the example is there to be read"
            assert done.stderr.count("\n") == 1
