"""The driver's errors become ours: the words of a real server wherever it gives a SQLSTATE."""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError
from cdc.postgres.connection import Address
from cdc.postgres.errors import is_shutdown, translate, translated
from server.commands.demo.cluster import free_port
from server.commands.demo.programs import find_programs
from tests.plugins.server import wait_until
from tests.support.starting_up import starting_up

if TYPE_CHECKING:
    from tests.plugins.languages import SpeakingFactory
    from tests.plugins.postgres import Database, DatabaseFactory, Role

SETTING = "POSTGRES_CONNECTION_STRING"
RAISE = (
    "DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = {code!r}, MESSAGE = {text!r}, DETAIL = 's3cr3t'; END $do$"
)


def said(database: Database, statement: str) -> PadsCdcError:
    """Return what a statement's failure becomes."""
    with pytest.raises(PadsCdcError) as error, translated(SETTING):
        database.execute(statement)
    assert isinstance(error.value.__cause__, psycopg2.Error)
    assert "\n" not in str(error.value)
    assert "s3cr3t" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("57014", "cancelled"),
        ("55P03", "locked"),
        ("40P01", "deadlock"),
        ("40001", "recovery_conflict"),
        ("53300", "too_many_connections"),
        ("57P01", "shutdown"),
        ("57P02", "shutdown"),
        ("57P03", "shutdown"),
        ("XX000", "query_failed"),
        ("58030", "query_failed"),
        ("53100", "query_failed"),
    ],
)
def test_what_waiting_may_mend(database: Database, code: str, reason: str) -> None:
    error = said(database, RAISE.format(code=code, text="words of the server"))
    assert isinstance(error, SourceError)
    assert error.reason == reason
    assert "words of the server" in str(error)
    assert SETTING in str(error)
    assert is_shutdown(error) is (reason == "shutdown")


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("SELECT FROM nowhere", "MAPPING and DB_SCHEMA"),
        ("SELECT FROM nowhere.accounts", "MAPPING and DB_SCHEMA"),
        ("SELECT nothing FROM accounts", "add the column"),
    ],
)
def test_what_is_not_there(database: Database, statement: str, remedy: str) -> None:
    error = said(database, statement)
    assert isinstance(error, Refusal)
    assert remedy in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 's3cr3t'::int",
        "INSERT INTO accounts VALUES ('s3cr3t', 'none')",
        'SELECT (\'{"a": "s3cr3t\'::json)',
        "DO $$ BEGIN RAISE EXCEPTION 'the key s3cr3t'; END $$",
        "SELECT 1 / 0 FROM (VALUES ('s3cr3t')) t",
    ],
)
def test_values_of_rows_are_not_quoted(database: Database, statement: str) -> None:
    error = said(database, statement)
    assert isinstance(error, SourceError)
    assert error.reason == "about_a_row"


@pytest.mark.parametrize(
    ("text", "pid"),
    [
        ('replication slot "pads_cdc" is active for PID 4711', 4711),
        ("Replikations-Slot »pads_cdc« ist aktiv für PID 4711", 4711),
        ("object in use", None),
    ],
)
def test_who_holds_the_slot(database: Database, text: str, pid: int | None) -> None:
    error = said(database, RAISE.format(code="55006", text=text))
    assert isinstance(error, SlotHeld)
    assert error.pid == pid
    assert error.reason == "slot_held"


AT_CONNECT = 'connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Connection refused\n\tIs the server running on that host?", f"correct host and port in {SETTING}"),
        ("timeout expired", f"correct the host in {SETTING}"),
        ('invalid port number: "99999"', f"correct the port in {SETTING}"),
        ("", SETTING),
    ],
)
def test_what_libpq_says_of_a_server_that_does_not_answer(text: str, remedy: str) -> None:
    error = translate(psycopg2.OperationalError(AT_CONNECT + text), SETTING)
    assert isinstance(error, SourceError)
    assert error.reason == "unreachable"
    assert remedy in str(error)
    assert "\n" not in str(error)


def test_words_of_the_driver_alone_are_put_plainly() -> None:
    cut = psycopg2.DatabaseError("error with status PGRES_COPY_BOTH and no message from the libpq")
    said = str(translate(cut, SETTING))
    assert said == f"the connection was cut off without a message from the server ({SETTING})"


def test_an_error_without_words() -> None:
    assert "InterfaceError" in str(translate(psycopg2.InterfaceError(), SETTING))


def test_a_password_is_in_no_error_of_a_connection(database: Database) -> None:
    urls = (
        database.url("nobody", "s3cr3t"),
        f"postgresql://u:s3cr3t@127.0.0.1:{free_port()}/x",
        "postgresql://u:s3cr3t@no-such-host.invalid/x",
        database.url("postgres", "s3cr3t"),
    )
    for read in [partial(str, url) for url in urls]:
        address = Address(read, SETTING)
        assert "s3cr3t" not in repr(address)
        for connect in (address.connect, address.connect_replication):
            with pytest.raises(PadsCdcError) as error:
                connect()
            assert "s3cr3t" not in str(error.value)
            assert SETTING in str(error.value)


# --- whatever the language


@pytest.mark.parametrize("language", ["de", "fr"])
def test_what_somebody_has_to_change_is_said_whatever_the_language(
    language: str, speaking: SpeakingFactory, database_factory: DatabaseFactory
) -> None:
    """One server that lacks everything, one fault after the other: each keeps its remedy."""
    listed = find_programs().knows_setting("output_plugin_libraries")
    settings = {"max_replication_slots": "1", "max_wal_senders": "1", "temp_file_limit": "1MB"}
    cluster = speaking(language, settings | ({"output_plugin_libraries": "pgoutput"} if listed else {}))
    database = database_factory(cluster=cluster)
    nobody, reader = database.create_role(), database.create_role("REPLICATION")
    database.execute(
        f"""
        GRANT SELECT ON accounts TO {nobody.name};
        ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
        CREATE TABLE large AS SELECT repeat(g::text, 500) AS filling FROM generate_series(1, 5000) g;
        GRANT SELECT ON large TO {nobody.name}
        """
    )

    def refused(role: Role, statement: str, remedy: str) -> None:
        session = database.connect(*role)
        with pytest.raises(Refusal) as error, translated(SETTING), session.cursor() as cursor:
            cursor.execute(statement)
        assert remedy in str(error.value), "the remedy is lost"
        assert isinstance(error.value.__cause__, psycopg2.Error)
        words.append(str(error.value).partition("; ")[0])

    words: list[str] = []
    slot = "SELECT pg_create_logical_replication_slot('a', 'wal2json')"
    if listed:
        refused(reader, slot, f'ALTER ROLE "{reader.name}" SET output_plugin_libraries = pgoutput, ')
    refused(nobody, slot, f'ALTER ROLE "{nobody.name}" REPLICATION;')
    refused(nobody, "SET row_security = off; TABLE accounts", f'ALTER ROLE "{nobody.name}" BYPASSRLS;')
    refused(nobody, "TABLE pay_plans", "run pads-cdc setup")
    refused(
        nobody,
        "SET work_mem = '64kB'; SELECT FROM large ORDER BY filling OFFSET 4999",
        f'ALTER ROLE "{nobody.name}" SET temp_file_limit = -1;',
    )
    refused(nobody, "SELECT nothing FROM accounts", "add the column")
    refused(nobody, "TABLE nowhere", "MAPPING and DB_SCHEMA")
    database.execute("SELECT pg_create_physical_replication_slot('the_only_one')")
    refused(reader, "SELECT pg_create_physical_replication_slot('b')", "max_replication_slots")
    # PostgreSQL 17 has no French text for this refusal.
    words = [text for text in words if "replication slots" not in text]
    english = ("permission denied", "does not exist", "in use", "exceeds", "affected by", "must be")
    assert not [text for text in words if any(word in text for word in english)], "it speaks English"


@pytest.mark.parametrize("language", ["de", "fr"])
def test_refusals_at_connect_whatever_the_language(
    language: str, speaking: SpeakingFactory, database_factory: DatabaseFactory
) -> None:
    cluster = speaking(language, {"max_wal_senders": "1"})
    database = database_factory(cluster=cluster)
    role = database.create_role()

    def refused(url: str, *, decoding: bool = False) -> PadsCdcError:
        address = Address(lambda: url, SETTING)
        with pytest.raises(PadsCdcError) as error:
            (address.connect_replication if decoding else address.connect)()
        assert "\n" not in str(error.value)
        return error.value

    def remedy(url: str, remedy: str, *, decoding: bool = False) -> None:
        error = refused(url, decoding=decoding)
        assert isinstance(error, Refusal), error
        assert str(error).partition("; ")[2] == remedy

    remedy(database.url("nobody", "x"), f"check user and password in {SETTING}")
    remedy(database.url(role.name, "x"), f"check user and password in {SETTING}")
    remedy(cluster.url("nothing"), f"correct the database name in {SETTING}")
    remedy(database.url() + "?options=-cwork_memory%3D1", f"correct the options in {SETTING}")
    for option in ("role%3Dpostgres", "log_min_messages%3Ddebug5"):  # our role may set neither
        remedy(f"{database.url(*role)}?options=-c{option}", f"correct the options in {SETTING}")
    again = f'ALTER ROLE "{role.name}" REPLICATION;'
    remedy(
        database.url(*role),
        f'{again} (on RDS: GRANT rds_replication TO "{role.name}";)',
        decoding=True,
    )
    database.execute(f"{again} ALTER ROLE {role.name} CONNECTION LIMIT 0")
    error = refused(database.url(*role))
    assert isinstance(error, SourceError)
    assert error.reason == "too_many_connections"
    database.execute(f"ALTER ROLE {role.name} CONNECTION LIMIT -1 NOLOGIN")
    remedy(database.url(*role), f"correct the user in {SETTING}, or create the role with LOGIN")
    database.execute(f"ALTER ROLE {role.name} LOGIN; REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
    remedy(database.url(*role), f'GRANT CONNECT ON DATABASE "{database.name}" TO "{role.name}";')
    database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO {role.name}")

    with closing(Address(lambda: database.url(*role), SETTING).connect_replication()):
        error = refused(database.url(*role), decoding=True)
        assert isinstance(error, SourceError)
        assert error.reason == "too_many_connections"

    (cluster.data / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 scram-sha-256\n")
    cluster.reload()
    line = f"host {database.name} {role.name} 127.0.0.1/32 scram-sha-256"
    wait_until(lambda: "pg_hba.conf" in str(refused(database.url(*role))), "the reload")
    remedy(database.url(*role), f"add to pg_hba.conf, and reload: {line}")


def test_of_several_addresses_the_one_that_answers_counts(database: Database) -> None:
    port = database.cluster.port
    url = f"host=127.0.0.1,127.0.0.1 port={free_port()},{port} dbname=nothing user=postgres password="
    address = Address(lambda: url + database.cluster.password, SETTING)
    with pytest.raises(Refusal, match="correct the database name"):
        address.connect()


@pytest.mark.parametrize("language", ["de", "fr"])
def test_a_server_that_starts_is_told_from_one_that_refuses(language: str, speaking: SpeakingFactory) -> None:
    """It takes connections, says that it is not ready (57P03), in its language, and is ready later."""
    cluster = speaking(language)
    address = Address(cluster.url, SETTING)

    def starting() -> PadsCdcError | None:
        with pytest.raises(PadsCdcError) as error:
            address.connect()
        return error.value if is_shutdown(error.value) else None

    with starting_up(cluster):
        error = wait_until(starting, "57P03")
        assert error is not None
        assert "database system" not in str(error), "it speaks English"

    def ready() -> bool:
        with suppress(SourceError):
            address.connect().close()
            return True
        return False

    wait_until(ready, "it lets us in")
