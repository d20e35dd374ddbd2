"""What `pads-cdc check` tells people to type is typed, on servers of each kind: then the check passes."""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2.extensions import make_dsn

from cdc.checks import FURTHER, NECESSARY, Check, Deployment, Finding, Verdict, run
from cdc.errors import PadsCdcError
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as Queried
from server.payload import encode
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_until
from tests.server.commands.test_check import DROP_UNIQUE, OTHER_IDENTITY, retain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from tests.plugins.check import Check as CheckCommand
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated
    from tests.plugins.server import ServerFactory

SETTING = "POSTGRES_CONNECTION_STRING"
GIB = 2**30
CHECKS: dict[str, Check[Deployment]] = {one.name: one for one in FURTHER} | {
    one.name: one for one in NECESSARY
}


@contextmanager
def deployment(
    url: str,
    *,
    slot_name: str = "pads_cdc",
    plugin: str = "wal2json",
    retained: int = GIB,
    failover: bool = False,
) -> Iterator[Deployment]:
    """Ask as `check` does, in this process."""
    address = Address(lambda: url, SETTING)
    with closing(Queried(address, load("grove"), "public", encode)) as queried:
        yield Deployment(
            source=address,
            database=queried,
            queries=server_queries(),
            schema="public",
            slot_name=slot_name,
            plugin=plugin,
            publication_name="pads_cdc",
            failover=failover,
            max_retained_wal=retained,
            state_file=Path("state"),
        )


def found(database: Database | str, name: str, **settings: Any) -> list[Finding]:
    """Return what one check finds that is not in order; ``settings`` are `deployment`'s."""
    with deployment(database if isinstance(database, str) else database.url(), **settings) as site:
        return [
            one for _, one in run((replace(CHECKS[name], needs=()),), site) if one.verdict is not Verdict.PASS
        ]


def statements(remedy: str) -> list[str]:
    """Return the statements of a remedy, each to its semicolon."""
    return re.findall(r"\b(?:ALTER|CREATE|DROP|GRANT|ROLLBACK|SELECT|SHOW)\b [^;]*;", remedy)


# --- tables

DROP_KEY = "ALTER TABLE accounts DROP CONSTRAINT accounts_pkey CASCADE"
TWICE = f"{DROP_UNIQUE}; INSERT INTO portal_application_settings (application_id) VALUES ('app_1')"


@pytest.mark.parametrize(
    ("damage", "name", "says", "beside"),
    [
        (DROP_KEY, "replica_identity", "REPLICA IDENTITY FULL;", None),
        (
            f"{DROP_KEY}; CREATE UNIQUE INDEX other ON accounts (id)",
            "replica_identity",
            "USING INDEX other;",
            None,
        ),
        (
            DROP_UNIQUE,
            "replica_identity",
            "REPLICA IDENTITY DEFAULT;",
            "CREATE UNIQUE INDEX ON portal_application_settings (application_id)",
        ),
        (OTHER_IDENTITY, "replica_identity", "USING INDEX ", None),
        (
            f"{OTHER_IDENTITY}; ALTER TABLE pay_plans DROP CONSTRAINT pay_plans_pkey CASCADE",
            "replica_identity",
            "REPLICA IDENTITY FULL;",
            None,
        ),
        (
            f"{DROP_UNIQUE}; ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT",
            "replica_identity",
            "add a unique index that has",
            "CREATE UNIQUE INDEX ON portal_application_settings (application_id)",
        ),
        (DROP_KEY, "unique_keys", "ADD UNIQUE", None),
        (
            TWICE,
            "unique_keys",
            "ADD UNIQUE",
            "DELETE FROM portal_application_settings WHERE application_id = '{}' AND secret_key IS NULL",
        ),
    ],
)
def test_what_a_table_lacks(
    database: Database, damage: str, name: str, says: str, beside: str | None
) -> None:
    """A primary key that somebody else could add is left aside: what is said beside it is typed."""
    fill(database, 6)
    database.set_up(load("grove"))
    database.execute("DELETE FROM pay_plans WHERE plan_type <> 'plan_0'")
    database.execute(damage)
    first = found(database, name)
    assert any(says in one.remedy for one in first), first
    for _ in range(4):
        for finding in found(database, name):
            typed = statements(finding.remedy)
            if beside is not None:
                duplicates = [row for one in typed if one.startswith("SELECT") for row in database.rows(one)]
                database.execute(beside.format(*(duplicates[0] if duplicates else ())))
            for statement in typed:
                if not statement.startswith("SELECT"):
                    database.execute(statement)
            beside = None
    assert found(database, name) == []


@pytest.mark.parametrize(
    ("damage", "name", "says", "typed"),
    [
        ("DROP TABLE pay_plans CASCADE", "tables", "create it (see grove/schema.sql)", load("grove").schema),
        (
            "DELETE FROM portal_application_settings WHERE application_id = 'app_3'",
            "endpoints",
            "insert their settings, with secret_key_required = true",
            "INSERT INTO portal_application_settings VALUES (DEFAULT, 'app_3', 'k', true)",
        ),
        (
            "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'",
            "endpoints",
            "secret_key_required = false",
            "UPDATE portal_application_settings SET secret_key_required = false WHERE secret_key IS NULL",
        ),
        (
            "ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE BIGINT",
            "limits",
            "make it INT",
            "ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE INT",
        ),
        (
            """
            ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE BIGINT;
            UPDATE pay_plans SET monthly_relay_limit = 5000000000
            """,
            "odd_rows",
            "correct them, and prevent such values by a type or a CHECK",
            """
            UPDATE pay_plans SET monthly_relay_limit = 5;
            ALTER TABLE pay_plans ADD CHECK (monthly_relay_limit < 2147483648)
            """,
        ),
        (
            "ALTER TABLE portal_application_settings ALTER secret_key TYPE BYTEA USING secret_key::BYTEA",
            "column_types",
            "change its type to text",
            "ALTER TABLE portal_application_settings ALTER secret_key TYPE TEXT USING 'as before'",
        ),
        (
            "ALTER TABLE accounts DROP CONSTRAINT accounts_plan_type_fkey, ALTER plan_type TYPE INT USING 1",
            "statements",
            "give the columns that are compared one type",
            "ALTER TABLE accounts ALTER plan_type TYPE VARCHAR(25) USING 'plan_0'",
        ),
        (
            "ALTER TABLE pay_plans DROP COLUMN throughput_limit",
            "statements",
            "add the column",
            "ALTER TABLE pay_plans ADD COLUMN throughput_limit INT",
        ),
    ],
)
def test_what_words_ask_for(database: Database, damage: str, name: str, says: str, typed: str) -> None:
    fill(database, 6)
    database.set_up(load("grove"))
    if name == "endpoints":
        database.execute(
            "UPDATE portal_application_settings SET secret_key_required = true, secret_key = 'k'"
        )
    before = found(database, name)
    database.execute(damage)
    assert any(says in one.remedy for one in found(database, name)), found(database, name)
    if typed == load("grove").schema:
        created = re.search(r"CREATE TABLE pay_plans .*?;", typed, re.DOTALL)
        assert created is not None
        typed = created[0]
    database.execute(typed.replace("%", "%%"))
    assert found(database, name) == before


# --- slots and servers


def test_a_slot_that_somebody_else_has(database: Database, database_factory: DatabaseFactory) -> None:
    """Another name is free; the plugin that is named is the slot's."""
    slot = f"slot_of_{database.name}"
    create = "SELECT pg_create_logical_replication_slot(%s, %s)"
    database.execute(create, (slot, "pgoutput"))
    [finding] = found(database, "slot", slot_name=slot)
    assert finding.remedy == "choose another SLOT_NAME, or PLUGIN=pgoutput"
    assert not found(database, "slot", slot_name=slot, plugin=finding.remedy.partition("PLUGIN=")[2])
    assert not found(database, "slot", slot_name=f"{slot}_2")
    [finding] = found(database_factory(), "slot", slot_name=slot, plugin="pgoutput")
    assert finding.remedy == "choose another SLOT_NAME"


@pytest.mark.soak
def test_a_prepared_transaction_of_another_database(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """The slot waits for it, too; only there can it be ended."""
    cluster = cluster_factory()
    database, other = (database_factory(cluster=cluster) for _ in range(2))
    other.execute("BEGIN; CREATE TABLE theirs (); PREPARE TRANSACTION 'theirs'")
    [finding] = found(database, "slot")
    ended = re.search(r"(ROLLBACK PREPARED [^;]*;) \(in the database (\w+)\)", finding.remedy)
    assert ended is not None
    assert ended[2] == other.name
    other.execute(ended[1])
    assert not found(database, "slot")


def test_limits_on_the_slot(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> None:
    """Each way out that is named, one after the other, down to a slot that is dropped."""
    cluster = cluster_factory({"min_wal_size": "32MB"})
    database = database_factory(cluster=cluster)
    mib = 2**20

    def typed(name: str, retained: int) -> str:
        [finding] = found(database, name, retained=retained)
        for statement in statements(finding.remedy):
            database.execute(statement)
        if "pg_reload_conf" in finding.remedy:
            wait_until(lambda: not found(database, name, retained=retained), "the reload")
        return finding.remedy

    assert "'256MB'" in typed("max_slot_wal_keep_size", 64 * mib)
    # Ours is not below the server's: either may be changed.
    [finding] = found(database, "retained_wal", retained=512 * mib)
    ours = re.match(r"MAX_RETAINED_WAL=(\d+)MB, or ", finding.remedy)
    assert ours is not None
    assert not found(database, "retained_wal", retained=int(ours[1]) * mib)
    assert "'1GB'" in typed("retained_wal", 512 * mib)
    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'wal2json')")
    retain(database, segments=4)
    assert "pg_drop_replication_slot('pads_cdc')" in typed("retained_wal", 32 * mib)
    assert not found(database, "retained_wal", retained=32 * mib)
    assert not database.rows("SELECT FROM pg_replication_slots")


@pytest.mark.parametrize("keep", ["0", pytest.param("1MB", marks=pytest.mark.soak)])
def test_a_server_that_keeps_next_to_nothing(
    keep: str, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """No value of ours is below that."""
    database = database_factory(cluster=cluster_factory({"max_slot_wal_keep_size": keep}))
    [finding] = found(database, "retained_wal")
    assert "MAX_RETAINED_WAL=" not in finding.remedy
    for statement in statements(finding.remedy):
        database.execute(statement)
    wait_until(lambda: not found(database, "retained_wal"), "the reload")


@pytest.mark.soak
def test_a_slot_that_was_lost(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    check: CheckCommand,
    serve: ServerFactory,
) -> None:
    """The server is started, as the message says: it drops the slot by itself, and makes it anew."""
    cluster = cluster_factory({"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB"})
    database = database_factory(cluster=cluster)
    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', %s)", (database.plugin,))
    retain(database, segments=10)
    database.execute("CHECKPOINT")
    status = "SELECT wal_status FROM pg_replication_slots"
    wait_until(lambda: database.value(status) == "lost", "the slot is lost")
    finding = check(database, MAX_RETAINED_WAL="32MB").the("slot", "warn")
    assert "the server drops it, creates a new one" in finding.text
    assert finding.remedy == "see max_slot_wal_keep_size and standby"
    serve(database, MAX_RETAINED_WAL="32MB").wait_ready()
    wait_until(lambda: database.value(status) == "reserved", "it is made anew")
    assert check(database, MAX_RETAINED_WAL="32MB").the("slot", "pass")


@pytest.mark.soak
def test_a_slot_that_goes_when_it_is_idle(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    cluster = cluster_factory({"idle_replication_slot_timeout": "7min"}, programs=fetched("18"))
    database = database_factory(cluster=cluster)
    about = [one for one in found(database, "max_slot_wal_keep_size") if "idle" in one.text]
    assert "idle_replication_slot_timeout is 7min" in about[0].text
    for statement in statements(about[0].remedy):
        database.execute(statement)
    wait_until(
        lambda: all("idle" not in one.text for one in found(database, "max_slot_wal_keep_size")), "the reload"
    )


@pytest.mark.soak
def test_wal_level_on_a_primary_and_for_its_standby(
    standby17: Replicated, database_factory: DatabaseFactory, check: CheckCommand
) -> None:
    """Both remedies name a restart."""
    primary = database_factory(cluster=standby17.primary)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    primary.execute("ALTER SYSTEM SET wal_level = 'replica'")
    standby17.primary.restart()
    standby17.wait_replayed()
    finding = wait_until(lambda: check(standby).of("plugin")[0], "the standby answers")
    assert finding.remedy.startswith("on the primary: ALTER SYSTEM SET wal_level = 'logical';")
    [own] = found(primary, "wal_level")
    typed = re.search(r"\((ALTER SYSTEM SET wal_level = '\w+');", own.remedy)
    assert typed is not None
    assert typed[1] in finding.remedy
    primary.execute(typed[1])
    standby17.primary.restart()
    standby17.wait_replayed()
    assert not found(primary, "wal_level")
    wait_until(lambda: check(standby).the("plugin", "pass"), "the standby follows")


# --- standbys


def on(place: str, remedy: str) -> list[str]:
    """Return the statements that are to be typed at a place, in words such as "on the primary"."""
    places = re.split(r"\b(on (?:the primary|this standby|[\w.]+:\d+|[\w.]+)): ", remedy)
    return [
        one
        for at, text in zip(places[1::2], places[2::2], strict=True)
        if at == place
        for one in statements(text)
    ]


@pytest.mark.soak
def test_a_standby_that_loses_slots(standby17: Replicated, database_factory: DatabaseFactory) -> None:
    """What keeps the slot on it, for one that is read there."""
    primary = database_factory(cluster=standby17.primary)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    for setting in ("hot_standby_feedback = off", "primary_slot_name = ''"):
        standby.execute(f"ALTER SYSTEM SET {setting}")
    standby17.standby.reload()
    wait_until(lambda: len(found(standby, "standby")) == 2, "both are found")
    for finding in found(standby, "standby"):
        for statement in on("on the primary", finding.remedy):
            primary.execute(statement)
        for statement in on("on this standby", finding.remedy):
            standby.execute(statement)
    wait_until(lambda: not found(standby, "standby"), "both are mended")
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'standby_1'"
    wait_until(lambda: primary.value(active), "the standby uses its slot")


@pytest.mark.soak
def test_a_standby_that_keeps_no_slot_for_its_promotion(
    standby17: Replicated, database_factory: DatabaseFactory
) -> None:
    """Everything that it lacks, as a role that is shown little."""
    primary = database_factory(cluster=standby17.primary)
    fill(primary, 6)
    role = primary.create_role("REPLICATION")
    primary.set_up(load("grove"), role.name)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    for setting in ("hot_standby_feedback = off", "primary_slot_name = ''"):
        standby.execute(f"ALTER SYSTEM SET {setting}")
    standby17.standby.reload()
    wait_until(lambda: standby.value("SHOW hot_standby_feedback") == "off", "the reload")
    hosts = f"{standby17.primary.port},{standby17.standby.port}"
    there = f"127.0.0.1:{standby17.standby.port}"
    both = make_dsn(
        host="127.0.0.1,127.0.0.1",
        port=hosts,
        dbname=primary.name,
        user=role.name,
        password=role.password,
        target_session_attrs="primary",
    )
    [alone] = [
        one for one in found(primary.url(*role), "failover", failover=True) if "hosts given" in one.text
    ]
    assert alone.remedy == f"name all hosts in {SETTING}: host=a,b target_session_attrs=primary"
    typed: list[str] = []

    def type_all() -> bool:
        """Type all that is said; tells whether nothing is left."""
        findings = found(both, "failover", failover=True)
        for finding in findings:
            assert finding.remedy != alone.remedy
            if finding.remedy in typed:  # a reload takes a moment
                continue
            if "add dbname=postgres to the end of primary_conninfo" in finding.remedy:
                source = standby.value("SHOW primary_conninfo")
                standby.execute("ALTER SYSTEM SET primary_conninfo = %s", (f"{source} dbname=postgres",))
            for place, server in (("on the primary", primary), (f"on {there}", standby)):
                for statement in on(place, finding.remedy):
                    server.execute(statement)
            typed.append(finding.remedy)
        return not findings

    wait_until(type_all, "nothing is left to type")
    for part in (
        "synchronized_standby_slots",
        "sync_replication_slots = on",
        "hot_standby_feedback = on",
        "pg_create_physical_replication_slot",
        "primary_slot_name",
        "GRANT pg_read_all_settings",
        "primary_conninfo",
    ):
        assert any(part in one for one in typed), f"{part}: {typed}"


# --- the connection string


CORRECTED: tuple[tuple[dict[str, str | None], str, dict[str, str]], ...] = (
    ({"sslmode": "require"}, "give sslmode=prefer in", {"sslmode": "prefer"}),
    ({"host": "/none"}, "give host=... in", {}),
    ({"host": "no-such-host.invalid"}, "correct the host in", {}),
    ({"port": "1"}, "correct host and port in", {}),
    ({"port": "99999"}, "correct the port in", {}),
    ({"password": "x"}, "check user and password in", {}),
    ({"password": None}, "put a password into", {}),
    ({"dbname": "nowhere"}, "correct the database name in", {}),
    ({"options": "-cwork_memory=1"}, "correct the options in", {}),
)
"""What is wrong in a connection string, what is said, and what is added to one that is right."""


def test_a_connection_string_is_corrected(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", "/none")
    sound = {
        "host": "127.0.0.1",
        "port": str(database.cluster.port),
        "dbname": database.name,
        "user": "postgres",
        "password": database.cluster.password,
    }

    def connect(changed: dict[str, Any]) -> None:
        Address(lambda: make_dsn(**sound | changed), SETTING).connect().close()

    for wrong, says, right in CORRECTED:
        with pytest.raises(PadsCdcError, match=re.escape(says)):
            connect(wrong)
        connect(right)


@pytest.mark.soak
def test_a_server_that_is_full(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> None:
    cluster = cluster_factory(
        {"max_connections": "5", "superuser_reserved_connections": "0", "max_wal_senders": "1"}
    )
    database = database_factory(cluster=cluster)
    address = Address(database.url, SETTING)
    held: list[Connection] = []

    def connect_ten() -> None:
        while len(held) < 10:
            held.append(address.connect())

    with pytest.raises(PadsCdcError, match="raise max_connections or max_wal_senders"):
        connect_ten()
    for session in held:
        session.close()
    database.execute("ALTER SYSTEM SET max_connections = 20")
    cluster.restart()
    held.clear()
    connect_ten()
    for session in held:
        session.close()
