"""The driver's errors become ours: the words of a real server wherever it gives a SQLSTATE."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.errors import PadsCdcError, Refusal, SlotHeld, SourceError
from cdc.postgres.connection import Address
from cdc.postgres.errors import is_shutdown, translate, translated
from server.commands.demo.cluster import free_port

if TYPE_CHECKING:
    from tests.plugins.postgres import Database

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
    ("code", "text", "remedy"),
    [
        ("55000", "logical decoding requires wal_level >= logical", "set wal_level = logical"),
        (
            "58P01",
            'could not access file "wal2json": No such file or directory',
            "postgresql-VERSION-wal2json",
        ),
        ("42501", 'output plugin "wal2json" is not allowed', "output_plugin_libraries = 'pgoutput"),
        ("42501", "permission denied to use replication slots", "ALTER ROLE ... REPLICATION"),
        ("42501", 'query would be affected by row-level security policy for table "accounts"', "BYPASSRLS"),
        ("42501", "permission denied for table accounts", "GRANT SELECT"),
        ("53400", "all replication slots are in use", "max_replication_slots"),
    ],
)
def test_what_somebody_has_to_change(database: Database, code: str, text: str, remedy: str) -> None:
    error = said(database, RAISE.format(code=code, text=text))
    assert isinstance(error, Refusal)
    assert str(error).startswith(text)
    assert remedy in str(error)


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
    assert error.reason == "query_failed"


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
        ('FATAL:  password authentication failed for user "u"', f"check user and password in {SETTING}"),
        ("fe_sendauth: no password supplied", f"put a password into {SETTING}"),
        ('FATAL:  database "portal" does not exist', f"correct the database name in {SETTING}"),
        ('FATAL:  role "u" does not exist', f"correct the user in {SETTING}"),
        (
            'FATAL:  no pg_hba.conf entry for replication connection from host "10.0.0.2", user "u"',
            "add to pg_hba.conf",
        ),
        ("FATAL:  must be superuser or replication role to start walsender", "ALTER ROLE ... REPLICATION"),
        (
            "FATAL:  permission denied to start WAL sender\nDETAIL:  Only roles with the attribute may",
            "ALTER ROLE ... REPLICATION",
        ),
        ("FATAL:  unsupported startup parameter: replication", "a pooler will do only in QUERY"),
    ],
)
def test_refusals_at_connect_come_without_a_sqlstate(text: str, remedy: str) -> None:
    error = translate(psycopg2.OperationalError(AT_CONNECT + text + "\n"), SETTING)
    assert isinstance(error, Refusal)
    assert remedy in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
            "unreachable",
        ),
        ("timeout expired", "unreachable"),
        ("FATAL:  the database system is starting up", "shutdown"),
        ("FATAL:  the database system is shutting down", "shutdown"),
        ("FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent ...", "shutdown"),
        ("FATAL:  sorry, too many clients already", "too_many_connections"),
        (
            "FATAL:  number of requested standby connections exceeds max_wal_senders (2)",
            "too_many_connections",
        ),
        ("FATAL:  remaining connection slots are reserved for superusers", "too_many_connections"),
        ("FATAL:  something new", "unreachable"),
        ('invalid port number: "99999"', "unreachable"),
        ("", "unreachable"),
    ],
)
def test_what_may_pass_at_connect(text: str, reason: str) -> None:
    error = translate(psycopg2.OperationalError(AT_CONNECT + text), SETTING)
    assert isinstance(error, SourceError)
    assert error.reason == reason
    assert SETTING in str(error)
    assert "\n" not in str(error)


def test_of_several_addresses_the_one_that_answered_counts() -> None:
    text = (
        'connection to server at "::1", port 5432 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?\n"
        'connection to server at "127.0.0.1", port 5432 failed: FATAL:  database "portal" does not exist\n'
    )
    error = translate(psycopg2.OperationalError(text), SETTING)
    assert isinstance(error, Refusal)
    assert str(error).startswith('database "portal" does not exist')


def test_words_of_the_driver_alone_are_put_plainly() -> None:
    cut = psycopg2.DatabaseError("error with status PGRES_COPY_BOTH and no message from the libpq")
    said = str(translate(cut, SETTING))
    assert said == f"the connection was cut off, with no word from the server ({SETTING})"


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
