"""Awkward changes, on the replica identities that a plain schema has: each ends with every client equal.

What can be told from the stream must be: nothing here may be right only because of a reconcile or an audit,
except where a test says so.
"""

from __future__ import annotations

import io
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.plugins.server import expected_by, fill, wait_confirmed, wait_equal, wait_until
from tests.support.memory import peak

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory


class Scene:
    """A database, the server on it, and a client of the first and one of the last generation."""

    def __init__(self, database: Database, server: Server, clients: list[Gateway]) -> None:
        self.database = database
        self.server = server
        self.clients = clients

    def change(self, *transactions: str) -> None:
        """Commit each of these as one transaction, one right after another, and wait until all are equal."""
        with closing(self.database.connect()) as session, session.cursor() as cursor:
            for transaction in transactions:
                cursor.execute(transaction)
        self.settle()

    def settle(self) -> None:
        """Wait until every client holds what the mapping query says."""
        for client in self.clients:
            wait_equal(client, self.database)

    def reconciles(self) -> float:
        """Count the reconciles so far, audits apart."""
        return self._total("pads_cdc_reconcile_total") - self.server.metric(
            "pads_cdc_reconcile_total", reason="audit"
        )

    def published(self) -> float:
        """Count what was published so far."""
        return self._total("pads_cdc_published_total")

    def check_clean(self) -> None:
        """Nothing was lost and nothing was misunderstood."""
        assert self._total("pads_cdc_decode_errors_total") == 0
        assert self._total("pads_cdc_audit_drift_total") == 0

    def _total(self, name: str) -> float:
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.server.get("/metrics")[1].splitlines()
            if line.split("{")[0].split(" ")[0] == name
        )


@pytest.fixture
def scene(serve: ServerFactory, gateway: GatewayFactory) -> Callable[..., Scene]:
    """Scenes on databases that are ready."""

    def begin(database: Database, clients: int = 2, **settings: str) -> Scene:
        server = serve(database, **settings)
        begun = Scene(database, server, [gateway(server, refetch=one > 0) for one in range(clients)])
        begun.settle()
        # Until then the first reconcile is still to be told apart from those that a test provokes.
        wait_until(lambda: begun.reconciles() >= 1, "the first reconcile")
        return begun

    return begin


_AS_REPLICA = "SET LOCAL session_replication_role = replica;"
_INSERT = "INSERT INTO portal_applications VALUES ('quick', 'acc_1')"
_DELETE = "DELETE FROM portal_applications WHERE id = 'quick'"
_SETTINGS = (
    "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
    " VALUES ('quick', 'second', true)"
)

CHANGES: dict[str, tuple[str, ...]] = {
    "a settings row is deleted alone": (
        "DELETE FROM portal_application_settings WHERE application_id = 'app_1'",
    ),
    "settings move from one application to another": (
        "UPDATE portal_application_settings SET application_id = 'app_7' WHERE application_id = 'app_2'",
    ),
    "settings move on, and then go": (
        "UPDATE portal_application_settings SET application_id = 'app_14' WHERE application_id = 'app_4'",
        "UPDATE portal_application_settings SET application_id = 'app_21' WHERE application_id = 'app_14'",
        "DELETE FROM portal_application_settings WHERE application_id = 'app_21'",
    ),
    "settings trade places": (
        (
            "UPDATE portal_application_settings SET application_id = 'app_28' WHERE application_id = 'app_5';"
            "UPDATE portal_application_settings SET application_id = 'app_5' WHERE application_id = 'app_8';"
            "UPDATE portal_application_settings SET application_id = 'app_8' WHERE application_id = 'app_28'"
        ),
    ),
    "settings are renumbered, and then go": (
        (
            "UPDATE portal_application_settings SET id = id + 100000 WHERE application_id IN ('app_10',"
            " 'app_11')"
        ),
        "DELETE FROM portal_application_settings WHERE application_id = 'app_10'",
    ),
    "settings are renumbered and moved at once": (
        (
            "UPDATE portal_application_settings SET id = id + 1000000, application_id = 'app_35'"
            " WHERE application_id = 'app_13'"
        ),
        "DELETE FROM portal_application_settings WHERE application_id = 'app_35'",
    ),
    "a settings id is used again": (
        (
            "WITH gone AS (DELETE FROM portal_application_settings WHERE application_id = 'app_16'"
            " RETURNING id)"
            " INSERT INTO portal_application_settings SELECT id, 'app_42', 'reused', true FROM gone"
        ),
        "DELETE FROM portal_application_settings WHERE application_id = 'app_42'",
    ),
    "an account moves to another plan, and then its old plan changes": (
        "UPDATE accounts SET plan_type = 'plan_9' WHERE id = 'acc_3'",
        "UPDATE pay_plans SET throughput_limit = 3333 WHERE plan_type = 'plan_3'",
    ),
    "the same in one transaction": (
        (
            "UPDATE pay_plans SET throughput_limit = 4444 WHERE plan_type = 'plan_4';"
            "UPDATE accounts SET plan_type = 'plan_9' WHERE id = 'acc_4';"
            "UPDATE pay_plans SET throughput_limit = 4445 WHERE plan_type = 'plan_4'"
        ),
    ),
    "a plan changes, and then an account comes to it": (
        "INSERT INTO pay_plans VALUES ('empty', 1, 1)",
        "UPDATE pay_plans SET throughput_limit = 5555 WHERE plan_type = 'empty'",
        "UPDATE accounts SET plan_type = 'empty' WHERE id = 'acc_5'",
    ),
    "an application moves between accounts": (
        "UPDATE portal_applications SET account_id = 'acc_6' WHERE id = 'app_17'",
        "UPDATE portal_applications SET account_id = NULL WHERE id = 'app_19'",
        "UPDATE pay_plans SET monthly_relay_limit = 0 WHERE plan_type IN ('plan_6', 'plan_7')",
    ),
    "an application's key changes": ("UPDATE portal_applications SET id = 'renamed' WHERE id = 'app_49'",),
    "an application's key changes under its settings": (
        _AS_REPLICA + "UPDATE portal_applications SET id = 'renamed_2' WHERE id = 'app_20';"
        "UPDATE portal_application_settings SET application_id = 'renamed_2' WHERE application_id = 'app_20'",
    ),
    "an account's key changes, and its applications lose it": (
        _AS_REPLICA + "UPDATE accounts SET id = 'acc_new' WHERE id = 'acc_7'",
    ),
    "an account's key changes with its applications": (
        _AS_REPLICA + "UPDATE portal_applications SET account_id = 'acc_8n' WHERE account_id = 'acc_8';"
        "UPDATE accounts SET id = 'acc_8n' WHERE id = 'acc_8'",
    ),
    "a plan's key changes, and its accounts lose it": (
        _AS_REPLICA + "UPDATE pay_plans SET plan_type = 'plan_new' WHERE plan_type = 'plan_1'",
    ),
    "a plan's key changes with its accounts": (
        _AS_REPLICA + "UPDATE accounts SET plan_type = 'plan_2n' WHERE plan_type = 'plan_2';"
        "UPDATE pay_plans SET plan_type = 'plan_2n' WHERE plan_type = 'plan_2'",
    ),
    "insert and delete in two quick transactions": (_INSERT, _DELETE),
    "insert, delete and insert again": (_INSERT, _DELETE, _INSERT + ";" + _SETTINGS),
    "delete and insert in two quick transactions": (_DELETE, _INSERT),
    "delete and insert in one transaction": (_DELETE + ";" + _INSERT + ";" + _SETTINGS,),
    "insert and delete in one transaction": (
        _INSERT.replace("quick", "flash") + ";" + _DELETE.replace("quick", "flash"),
    ),
    "settings are deleted and made again with another key": (
        "DELETE FROM portal_application_settings WHERE application_id = 'quick'",
        _SETTINGS.replace("second", "third"),
    ),
    "savepoints": (
        (
            "BEGIN; SAVEPOINT a; INSERT INTO portal_applications VALUES ('kept', NULL); SAVEPOINT b;"
            "INSERT INTO portal_applications VALUES ('undone', NULL);"
            "DELETE FROM portal_application_settings WHERE application_id = 'app_22'; ROLLBACK TO b;"
            "UPDATE portal_application_settings SET secret_key = 'kept' WHERE application_id = 'app_23';"
            "RELEASE a; COMMIT"
        ),
    ),
    "everything is rolled back but one subtransaction": (
        (
            "BEGIN; SAVEPOINT a; DELETE FROM portal_application_settings; ROLLBACK TO a;"
            "DELETE FROM portal_application_settings WHERE application_id = 'app_25'; SAVEPOINT c;"
            "UPDATE pay_plans SET throughput_limit = 1; ROLLBACK TO c; COMMIT"
        ),
    ),
    "a load without triggers and foreign keys": (
        _AS_REPLICA + "INSERT INTO portal_applications SELECT 'load_' || g, 'acc_1'"
        " FROM generate_series(1, 50) g;"
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT 'load_' || g, 'loaded', true FROM generate_series(1, 60) g",
    ),
    "a delete without cascades": (
        _AS_REPLICA + "DELETE FROM portal_applications WHERE id = 'load_1'",
        "INSERT INTO portal_applications VALUES ('load_1', NULL)",
    ),
    "a cascade": ("DELETE FROM portal_applications WHERE id IN ('load_2', 'load_3')",),
    "a request for a recompute, and its row going": (
        "INSERT INTO portal_application_changes (portal_app_id) VALUES ('app_26'), ('nobody')",
        "DELETE FROM portal_application_changes",
    ),
    "a key of NULL, and one that nobody asks for": (
        "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_29'",
        "UPDATE portal_application_settings SET secret_key_required = NULL WHERE application_id = 'app_31'",
    ),
}


@pytest.mark.both_plugins
def test_every_change_that_the_stream_tells(database: Database, scene: Callable[..., Scene]) -> None:
    fill(database, 200)
    now = scene(database)
    before = now.reconciles()
    for name, transactions in CHANGES.items():
        try:
            now.change(*transactions)
        except (AssertionError, psycopg2.Error) as error:
            raise AssertionError(f"{name}: {error}") from error
    assert now.reconciles() == before, "the stream says all of it: nothing here needs a reconcile"
    now.check_clean()


def test_changes_that_come_all_at_once(database: Database, scene: Callable[..., Scene]) -> None:
    """The same with nobody waiting in between."""
    fill(database, 200)
    now = scene(database)
    before = now.reconciles()
    now.change(*(transaction for transactions in CHANGES.values() for transaction in transactions))
    assert now.reconciles() == before
    now.check_clean()


def test_what_changes_nothing_is_not_published(database: Database, scene: Callable[..., Scene]) -> None:
    fill(database, 100)
    now = scene(database)
    before = now.published()
    now.change(
        "UPDATE portal_application_settings SET secret_key = secret_key",
        "UPDATE pay_plans SET throughput_limit = throughput_limit",
        "UPDATE accounts SET plan_type = plan_type",
        "BEGIN; DELETE FROM portal_applications; ROLLBACK",
        "INSERT INTO users VALUES ('user_1')",
    )
    now.change("UPDATE portal_application_settings SET secret_key = 'last' WHERE application_id = 'app_1'")
    assert now.published() == before + 1
    assert now.server.metric("pads_cdc_suppressed_total") > 0
    now.check_clean()


@pytest.mark.both_plugins
@pytest.mark.parametrize("identity", ["RESTART", "CONTINUE"])
def test_truncate(database: Database, scene: Callable[..., Scene], identity: str) -> None:
    """Of each table, and reloaded in the same transaction: with RESTART the serial ids come again."""
    fill(database, 60)
    now = scene(database)
    reload = (
        "INSERT INTO pay_plans VALUES ('plan_0', 1, 1), ('plan_1', 2, 2) ON CONFLICT DO NOTHING;"
        "INSERT INTO accounts VALUES ('acc_0', 'plan_0'), ('acc_1', 'plan_1') ON CONFLICT DO NOTHING;"
        "INSERT INTO portal_applications SELECT 'app_' || g, 'acc_' || g % 2 FROM generate_series(1, 20) g"
        " ON CONFLICT DO NOTHING;"
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT id, 'again', true FROM portal_applications ORDER BY random() ON CONFLICT DO NOTHING;"
    )
    for table in (
        "portal_application_changes",
        "portal_application_settings",
        "portal_applications",
        "accounts",
        "users",
        "pay_plans",
        "portal_application_settings, account_users",
    ):
        now.change(f"TRUNCATE {table} {identity} IDENTITY CASCADE")
        now.change(reload)
        now.change("DELETE FROM portal_application_settings WHERE id % 2 = 0")
        now.change(f"TRUNCATE {table} {identity} IDENTITY CASCADE; {reload}")
        now.change(
            "DELETE FROM portal_application_settings WHERE id = 3",
            "UPDATE portal_application_settings SET application_id = (SELECT id FROM portal_applications"
            " EXCEPT SELECT application_id FROM portal_application_settings LIMIT 1) WHERE id = 4",
        )
    # Looking at the tables' shapes would find it in the end: it must not come to that. A truncate that
    # changes nothing for clients is not waited for, and may share a reconcile with the next one.
    assert now.server.metric("pads_cdc_reconcile_total", reason="truncate") >= 5
    now.check_clean()


@pytest.mark.soak
@pytest.mark.timeout(170)
def test_a_load_of_100_000_rows_and_a_transaction_of_1_000_000_changes(
    database: Database, scene: Callable[..., Scene]
) -> None:
    fill(database, 1_000)
    now = scene(database, clients=1)
    with closing(database.connect()) as session, session.cursor() as cursor:
        rows = "".join(f"copied_{number}\tacc_{number % 100}\n" for number in range(100_000))
        cursor.copy_expert("COPY portal_applications FROM STDIN", io.StringIO(rows))
    wait_until(lambda: len(now.clients[0].map) == 101_000, "all of them", deadline=90)
    wait_equal(now.clients[0], database)
    before = peak(now.server)
    # The worst of it: none of the keys comes twice, and rows of which only memory knows the parents.
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            " SELECT id, 'copied', true FROM portal_applications WHERE starts_with(id, 'copied');"
            "INSERT INTO portal_application_changes (portal_app_id)"
            " SELECT 'wanted_' || g FROM generate_series(1, 800000) g;"
            "UPDATE portal_application_settings SET secret_key = 'w8'"
        )
    now.server.wait_metric(1, "pads_cdc_reconcile_total", reason="large")
    wait_equal(now.clients[0], database, deadline=90)
    assert now.clients[0].key("app_1") == "w8"
    grown = peak(now.server) - before
    assert grown < 100 * 2**20, f"{grown / 2**20:.0f} MiB more for one transaction"
    now.check_clean()


def test_interleaved_transactions_that_commit_in_the_other_order(
    database: Database, scene: Callable[..., Scene]
) -> None:
    fill(database, 100)
    now = scene(database)
    before = now.reconciles()
    with closing(database.connect()) as first, closing(database.connect()) as second:
        one, other = first.cursor(), second.cursor()
        one.execute("BEGIN; UPDATE pay_plans SET throughput_limit = 10001 WHERE plan_type = 'plan_1'")
        other.execute("BEGIN; UPDATE pay_plans SET throughput_limit = 10002 WHERE plan_type = 'plan_2'")
        one.execute("DELETE FROM portal_application_settings WHERE application_id = 'app_2'")
        other.execute("UPDATE accounts SET plan_type = 'plan_5' WHERE id = 'acc_1'")
        one.execute("UPDATE portal_applications SET account_id = 'acc_2' WHERE id = 'app_1'")
        other.execute(
            "UPDATE portal_application_settings SET application_id = 'app_7' WHERE application_id = 'app_5'"
        )
        one.execute("INSERT INTO portal_applications SELECT 'one_' || g FROM generate_series(1, 3000) g")
        other.execute("INSERT INTO portal_applications SELECT 'other_' || g FROM generate_series(1, 3000) g")
        other.execute("COMMIT")
        now.settle()
        other.execute("DELETE FROM portal_application_settings WHERE application_id = 'app_7'")
        one.execute("COMMIT")
        now.settle()
    assert now.reconciles() == before
    now.check_clean()


@pytest.mark.both_plugins
def test_prepared_transactions(database: Database, scene: Callable[..., Scene], serve: ServerFactory) -> None:
    """They count when they are committed, however long ago they were prepared, and across our restarts."""
    fill(database, 50)
    now = scene(database)
    with closing(database.connect()) as session, session.cursor() as cursor:
        for name, statement in (
            (
                "kept",
                "UPDATE portal_application_settings SET secret_key = 'kept' WHERE application_id = 'app_1'",
            ),
            ("gone", "DELETE FROM portal_application_settings WHERE application_id = 'app_2'"),
            ("late", "DELETE FROM portal_application_settings WHERE application_id = 'app_4'"),
        ):
            cursor.execute(f"BEGIN; {statement}; PREPARE TRANSACTION '{database.name}_{name}'")
        now.change("INSERT INTO portal_applications VALUES ('meanwhile')")
        assert now.clients[0].key("app_1") == "key_1"
        cursor.execute(f"COMMIT PREPARED '{database.name}_kept'")
        now.settle()
        assert now.clients[0].key("app_1") == "kept"
        cursor.execute(f"ROLLBACK PREPARED '{database.name}_gone'")
        assert now.server.stop() == 0
        now.server = serve(database, PORT=str(now.server.grpc))
        now.change("INSERT INTO portal_applications VALUES ('and again')")
        assert now.clients[0].key("app_4") == "key_4"
        cursor.execute(f"COMMIT PREPARED '{database.name}_late'")
        now.settle()
        assert now.clients[0].key("app_4") is None
    now.check_clean()


@pytest.mark.both_plugins
@pytest.mark.parametrize(
    "identity", ["FULL", "USING INDEX portal_application_settings_application_id_key", "DEFAULT"]
)
def test_replica_identities(database: Database, scene: Callable[..., Scene], identity: str) -> None:
    """Each from the start, and changed to it while running."""
    fill(database, 100)
    database.execute(f"ALTER TABLE portal_application_settings REPLICA IDENTITY {identity}")
    database.execute("ALTER TABLE accounts REPLICA IDENTITY FULL")
    database.publish()
    now = scene(database)
    steps = (
        "UPDATE portal_application_settings SET application_id = 'app_7' WHERE application_id = 'app_{0}'",
        "UPDATE portal_application_settings SET id = id + 1000 WHERE application_id = 'app_7'",
        "DELETE FROM portal_application_settings WHERE application_id = 'app_7'",
        "UPDATE accounts SET plan_type = 'plan_{0}' WHERE id = 'acc_3'",
    )
    before = now.reconciles()
    for step in steps:
        now.change(step.format(1))
    assert now.reconciles() == before
    for number, other in enumerate(("DEFAULT", "FULL", identity), 2):
        database.execute(f"ALTER TABLE portal_application_settings REPLICA IDENTITY {other}")
        database.publish()
        for step in steps:
            now.change(step.format(number))
    now.check_clean()


def test_definitions_that_change(database: Database, scene: Callable[..., Scene]) -> None:
    """They send no events: a look at the tables' shapes finds them, long before the next audit."""
    fill(database, 60)
    now = scene(database)
    settings = (
        "CREATE TABLE portal_application_settings (id SERIAL PRIMARY KEY, application_id VARCHAR(24) NOT NULL"
        " UNIQUE REFERENCES portal_applications (id) ON DELETE CASCADE, secret_key VARCHAR(64),"
        " secret_key_required BOOLEAN)"
    )
    some = (
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT id, 'fresh', true FROM portal_applications WHERE id LIKE 'app_1%'"
    )
    now.change("ALTER TABLE portal_applications ADD COLUMN name TEXT DEFAULT 'nameless'")
    now.change(
        "ALTER TABLE portal_application_settings DROP COLUMN secret_key_required;"
        "ALTER TABLE portal_application_settings ADD COLUMN secret_key_required BOOLEAN DEFAULT true"
    )
    now.change("UPDATE portal_application_settings SET secret_key = 'after' WHERE application_id = 'app_1'")
    now.change(f"DROP TABLE portal_application_settings; {settings}")
    database.publish()
    now.change(some)
    now.change(f"DROP TABLE portal_application_settings; {settings}; {some}")
    database.publish()
    now.change("DELETE FROM portal_application_settings WHERE application_id = 'app_1'")
    database.execute("DROP TABLE portal_application_settings")
    now.clients[0].wait(lambda one: len(one.map) == 60, "its map")
    now.change(settings)
    database.publish()
    now.change(some)
    now.change("ALTER TABLE portal_application_settings ALTER COLUMN secret_key TYPE TEXT USING 'rewritten'")
    for number in (1, 2, 3):  # with rows in them, such transactions do not look like DDL
        now.change(
            "ALTER TABLE portal_application_settings"
            f" ALTER COLUMN secret_key TYPE VARCHAR({60 + number}) USING 'rewritten_{number}';"
            f"UPDATE pay_plans SET throughput_limit = {number} WHERE plan_type = 'plan_1'"
        )
    now.check_clean()


def test_a_collation_that_changes(database: Database, scene: Callable[..., Scene]) -> None:
    """No row is written, and accounts are found that were not found before."""
    fill(database, 60)
    database.execute(
        "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        "ALTER TABLE portal_applications DROP CONSTRAINT portal_applications_account_id_fkey;"
        "UPDATE portal_applications SET account_id = upper(account_id)"
    )
    now = scene(database)
    now.change("ALTER TABLE portal_applications ALTER account_id TYPE VARCHAR(10) COLLATE caseless")
    assert any(b"plan_1" in payload for payload in now.clients[0].map.values())
    now.change("UPDATE accounts SET plan_type = 'plan_2' WHERE id = 'acc_1'")
    now.change("UPDATE pay_plans SET throughput_limit = 77")
    now.check_clean()


def test_a_column_renamed_and_back(
    database: Database, scene: Callable[..., Scene], gateway: GatewayFactory
) -> None:
    fill(database, 60)
    now = scene(database)
    before = dict(now.clients[0].map)
    database.execute("ALTER TABLE portal_application_settings RENAME COLUMN secret_key TO api_key")
    database.execute("UPDATE portal_application_settings SET api_key = 'late' WHERE application_id = 'app_1'")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    wait_until(lambda: now.server.get("/healthz")[0] == 503, "it says so")
    assert "key_" not in now.server.get("/healthz")[1]
    assert now.server.get("/readyz") == (200, "ok"), "a broken query must not become a gateway outage"
    newcomer = gateway(now.server)
    newcomer.wait(lambda one: one.map == before, "what the server holds")
    database.execute("ALTER TABLE portal_application_settings RENAME COLUMN api_key TO secret_key")
    now.settle()
    wait_equal(newcomer, database)
    wait_until(lambda: now.server.get("/healthz") == (200, "ok"), "healthy again")
    now.check_clean()


_PARTITIONED = """
DROP TABLE portal_application_settings, portal_applications;
CREATE SCHEMA parts;
CREATE TABLE portal_applications (id VARCHAR(24) PRIMARY KEY, account_id VARCHAR(10) REFERENCES accounts (id))
    PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF portal_applications FOR VALUES FROM (MINVALUE) TO ('m');
CREATE TABLE parts.high PARTITION OF portal_applications FOR VALUES FROM ('m') TO ('t')
    PARTITION BY HASH (id);
CREATE TABLE parts.high_0 PARTITION OF parts.high FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts.high_1 PARTITION OF parts.high FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE portal_application_settings (
    id SERIAL, application_id VARCHAR(24) NOT NULL, secret_key VARCHAR(64), secret_key_required BOOLEAN,
    PRIMARY KEY (id)
) PARTITION BY HASH (id);
CREATE TABLE settings_0 PARTITION OF portal_application_settings FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts.settings_1 PARTITION OF portal_application_settings
    FOR VALUES WITH (MODULUS 2, REMAINDER 1);
"""


@pytest.mark.both_plugins
def test_partitions(database: Database, scene: Callable[..., Scene]) -> None:
    """The plugin names leaves; those that come and go while running bring rows that no event tells of."""
    database.execute(_PARTITIONED)
    database.publish()
    fill(database, 60)
    now = scene(database)
    before = now.reconciles()
    now.change("INSERT INTO portal_applications SELECT 'p_' || g, 'acc_1' FROM generate_series(1, 20) g")
    now.change("UPDATE portal_applications SET id = 'q_' || id WHERE id LIKE 'p\\_%'")
    now.change("UPDATE portal_applications SET id = 'b_' || id WHERE id LIKE 'q\\_%5'")
    now.change("UPDATE portal_application_settings SET id = id + 1001")
    now.change("DELETE FROM portal_application_settings WHERE application_id IN ('app_1', 'app_2')")
    now.change("UPDATE pay_plans SET throughput_limit = 99")
    assert now.reconciles() == before
    now.change("TRUNCATE parts.high_0")
    now.change("TRUNCATE parts.settings_1")
    now.change(
        "CREATE TABLE parts.last PARTITION OF portal_applications FOR VALUES FROM ('t') TO ('w')",
        "INSERT INTO portal_applications VALUES ('u_1', 'acc_1'), ('v_1', 'acc_2')",
    )
    now.change("UPDATE portal_applications SET account_id = 'acc_3' WHERE id IN ('u_1', 'v_1')")
    now.change(
        "CREATE TABLE ready (LIKE portal_applications INCLUDING ALL)",
        "INSERT INTO ready SELECT 'w_' || g FROM generate_series(1, 10) g",
    )
    now.change("ALTER TABLE portal_applications ATTACH PARTITION ready FOR VALUES FROM ('w') TO (MAXVALUE)")
    now.change("DELETE FROM portal_applications WHERE id = 'w_1'")
    now.change("ALTER TABLE portal_applications DETACH PARTITION ready")
    now.change("DROP TABLE parts.high")
    now.change("TRUNCATE portal_applications")
    now.change("INSERT INTO portal_applications SELECT 'a_' || g FROM generate_series(1, 5) g")
    now.check_clean()


def test_a_partition_that_is_being_detached(database: Database, scene: Callable[..., Scene]) -> None:
    """Queries read it no more, although it is a partition until older transactions have ended: for ever, if
    the session that detaches it is ended before.
    """
    database.execute(_PARTITIONED)
    database.publish()
    fill(database, 60)
    now = scene(database)
    detach = "ALTER TABLE portal_applications DETACH PARTITION low CONCURRENTLY"
    with closing(database.connect()) as session, closing(database.connect()) as older:
        session.cursor().execute("SET statement_timeout = 0")
        older.cursor().execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM portal_applications")
        detaching = threading.Thread(target=session.cursor().execute, args=(detach,))
        detaching.start()
        pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        wait_until(lambda: database.value(pending) == 1, "it is being detached")
        now.settle()
        assert not now.clients[0].map
        assert database.value(pending) == 1
        older.cursor().execute("ROLLBACK")
        detaching.join()
    now.change("INSERT INTO low VALUES ('detached')", "INSERT INTO portal_applications VALUES ('n_1')")
    now.check_clean()


@pytest.mark.both_plugins
@pytest.mark.parametrize("schema", ['We ird."x', "ein,Schema*mit\\allem'drin%s", "Größe"])
def test_identifiers_that_need_escaping(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, schema: str
) -> None:
    """The tables are in a schema of that name, and beside it, first in everybody's path, are others like
    them.
    """
    fill(database, 10)
    quoted = '"' + schema.replace('"', '""') + '"'
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("CREATE SCHEMA " + quoted.replace("%", "%%"), ())
        for table in (
            "pay_plans", "accounts", "portal_applications", "portal_application_settings",
            "portal_application_changes",
        ):  # fmt: skip
            cursor.execute(
                f"CREATE TABLE {quoted}.{table} (LIKE public.{table} INCLUDING ALL);"
                f"INSERT INTO {quoted}.{table} SELECT * FROM public.{table}".replace("%", "%%"),
                (),
            )
        cursor.execute(f'CREATE TABLE {quoted}."le af" (LIKE public.users)'.replace("%", "%%"), ())
        cursor.execute("SELECT set_config('search_path', %s, false)", (quoted,))
        database.publish(schema)
        server = serve(database, DB_SCHEMA=schema)
        client = gateway(server)
        for statement in (
            "SELECT",
            "DELETE FROM portal_application_settings WHERE application_id = 'app_1'",
            "INSERT INTO portal_applications VALUES ('it''s \"odd\", \\ 100%% ü\u2028', 'acc_0')",
            "UPDATE pay_plans SET throughput_limit = 42",
            "TRUNCATE portal_application_settings",
        ):
            cursor.execute(statement, ())
            _wait_for_schema(client, session, schema)
        database.execute("DELETE FROM public.portal_applications")
        cursor.execute("INSERT INTO portal_applications VALUES ('last', NULL)")
        _wait_for_schema(client, session, schema)
    assert server.metric("pads_cdc_decode_errors_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1, "polling would hide it all"
    assert server.metric("pads_cdc_reconcile_total", reason="polling") == 0


def _wait_for_schema(client: Gateway, session: connection, schema: str) -> None:
    """Wait until the client holds what the session finds in this schema."""
    oracle = expected_by(session, schema=schema)
    client.wait(lambda one: one.map == oracle, "the rows of the tables in our schema")


def test_a_transaction_longer_than_the_sender_waits(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, scene: Callable[..., Scene]
) -> None:
    """Rows that stream in for longer than ``wal_sender_timeout`` keep the connection alive."""
    database = database_factory(cluster=cluster_factory({"wal_sender_timeout": "1s"}))
    fill(database, 100)
    now = scene(database)
    writer = threading.Thread(
        target=database.execute,
        args=(("INSERT INTO portal_application_changes (portal_app_id) SELECT 'app_1' || g"
              " FROM generate_series(1, 300000) g"),),
    )  # fmt: skip
    writer.start()
    now.change("UPDATE pay_plans SET throughput_limit = 5")
    writer.join()
    now.settle()
    now.check_clean()


def test_what_cannot_be_handled_is_answered_once(database: Database, scene: Callable[..., Scene]) -> None:
    """A key that is none: counted, answered by comparing everything, confirmed, and never read again."""
    database.unpublish()  # while a column is listed, its type stays as it is
    database.execute("ALTER TABLE portal_application_changes ALTER portal_app_id TYPE boolean USING true")
    database.publish()
    fill(database, 50)
    now = scene(database)
    before = now.reconciles()
    now.change(
        "INSERT INTO portal_application_changes (portal_app_id) VALUES (true);"
        "DELETE FROM portal_applications WHERE id = 'app_1'"
    )
    assert now.server.metric("pads_cdc_decode_errors_total", reason="key_shape") == 1
    wait_until(lambda: now.reconciles() == before + 1, "one reconcile")
    wait_confirmed(database)
    now.change("UPDATE pay_plans SET throughput_limit = 7")
    assert now.server.metric("pads_cdc_source_reconnects_total") == 0
    assert now.server.stop() == 0
