"""Databases in every encoding that a server can have: text is text, and a value that is none stops nobody."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping.mapping import load
from cdc.postgres.encoding import Encoding
from tests.cdc.postgres.test_encoding import CLIENT_ONLY, REFUSED
from tests.e2e.test_odd_rows import wait_odd
from tests.plugins.postgres import Database, drop_database
from tests.plugins.server import endpoints_of
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import CompletedProcess

    from tests.plugins.check import Check
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory
    from tests.support.cluster import Cluster

OFTEN = ("LATIN1", "SQL_ASCII", "EUC_JP", "UTF8")
"""Those that are tested each time."""


class Encoded:
    """A database in an encoding, and some text that only it has."""

    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.name = name
        self.encoding = Encoding.named(name)

    def word(self, number: int) -> str:
        """Return text that is not ASCII, as far as the encoding has that."""
        if self.name == "SQL_ASCII":
            return f"ü{number}"
        if self.name == "UTF8" or self.name.startswith("EUC"):
            return f"\u65e5\u672c {number}"
        high = (bytes([byte]) for byte in range(0xC0, 0xFF))
        letters = [text for raw in high if (text := self._text(raw)).isalpha()]
        return f"{''.join(letters[number : number + 6])}{number}"  # some have fewer letters than that

    def _text(self, raw: bytes) -> str:
        try:
            return self.encoding.text(raw)
        except UnicodeDecodeError:
            return ""

    def no_text(self) -> str | None:
        """Return SQL of a value that is no text; None in an encoding in which everything is."""
        for byte in range(0x80, 0x100):
            raw = b"no " + bytes([byte])
            if not self._text(raw):
                try:
                    self.database.execute(f"SELECT convert_from('\\x{raw.hex()}', '{self.name}')")
                except psycopg2.Error:
                    continue
                return f"convert_from('\\x{raw.hex()}', '{self.name}')"
        return None

    def execute(self, statement: str, *values: object) -> None:
        """Run a statement as a program with text in UTF-8 does."""
        with closing(psycopg2.connect(self.database.url(), client_encoding="UTF8")) as session:
            session.autocommit = True
            session.cursor().execute(statement, values)

    def endpoints(self) -> dict[str, bytes]:
        """Return what the mapping says, as the server converts it, without what it cannot convert."""
        with (
            closing(psycopg2.connect(self.database.url(), client_encoding="UTF8")) as session,
            session.cursor() as cursor,
        ):
            cursor.execute(
                f"SELECT * FROM ({load('grove').queries['Endpoints']}) AS endpoint"
                " WHERE endpoint_id NOT LIKE 'odd%%'",
                {},
            )
            return endpoints_of(cursor)


@pytest.fixture
def encoded(cluster: Cluster, plugin: str) -> Iterator[Callable[[str], Encoded]]:
    """Databases with the schema of ``grove``, and something in it, by their encodings."""
    with ExitStack() as ending:

        def make(name: str) -> Encoded:
            database = Database(cluster, f"test_in_{name.lower()}", plugin, "grove", ending)
            create_database(cluster, database.name, name)
            ending.callback(drop_database, database)
            database.execute((ROOT / "sql/grove/schema.sql").read_text())
            database.publish()
            database.execute("ALTER TABLE portal_application_settings ADD COLUMN note TEXT")
            made = Encoded(database, name)
            for number in range(4):
                word = made.word(number)
                made.execute("INSERT INTO pay_plans VALUES (%s, 7, 1)", f"p {word}")
                made.execute("INSERT INTO accounts VALUES (%s, %s)", f"c {word}"[:10], f"p {word}")
                made.execute("INSERT INTO portal_applications VALUES (%s, %s)", f"a {word}", f"c {word}"[:10])
                made.execute(
                    "INSERT INTO portal_application_settings VALUES (DEFAULT, %s, %s, true, %s)",
                    f"a {word}",
                    f"k {word}",
                    f"n {word}",
                )
            return made

        yield make


def create_database(cluster: Cluster, name: str, encoding: str) -> None:
    with closing(psycopg2.connect(cluster.url())) as session:
        session.autocommit = True
        session.cursor().execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        )


def server_encodings(cluster: Cluster) -> list[str]:
    with closing(psycopg2.connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute("SELECT pg_encoding_to_char(number) FROM generate_series(0, 100) number")
        return [name for (name,) in cursor.fetchall() if name and name not in CLIENT_ONLY]


def serves_text(made: Encoded, serve: Callable[[Database], Server], gateway: GatewayFactory) -> None:
    """See every kind of change arrive, in every column, without anything being read twice for it."""
    server = serve(made.database)
    client = gateway(server)
    wait(made, client)
    word, other = made.word(1), made.word(2)
    for statement, *values in (
        ("UPDATE pay_plans SET throughput_limit = 9 WHERE plan_type = %s", f"p {word}"),
        ("UPDATE accounts SET plan_type = %s WHERE id = %s", f"p {other}", f"c {word}"[:10]),
        ("UPDATE portal_application_settings SET note = %s", f"nobody reads {word} \u00e9"[:20]),
        ("UPDATE portal_application_settings SET secret_key = %s WHERE application_id = %s",
         f"new {word}", f"a {word}"),
        ("DELETE FROM portal_application_settings WHERE application_id = %s", f"a {word}"),
        ("UPDATE portal_applications SET id = %s WHERE id = %s", f"b {word}", f"a {word}"),
        ("DELETE FROM portal_applications WHERE id = %s", f"b {word}"),
        ("INSERT INTO portal_applications VALUES (%s, %s)", f"again {word}"[:20], f"c {other}"[:10]),
        ("INSERT INTO portal_application_changes (portal_app_id) VALUES (%s)", f"a {other}"),
    ):  # fmt: skip
        try:
            made.execute(statement, *values)
        except psycopg2.errors.UntranslatableCharacter:  # no é there
            made.execute(statement, *(str(value).replace("\u00e9", "e") for value in values))
        wait(made, client)
    no_text = made.no_text()
    if no_text is not None:
        made.execute(f"INSERT INTO pay_plans VALUES ({no_text}, 1, 1)")
        made.execute(f"INSERT INTO accounts VALUES ('odd', {no_text})")
        made.execute("INSERT INTO portal_applications VALUES ('odd plan', 'odd')")
        made.execute(f"INSERT INTO portal_applications VALUES ('odd' || {no_text})")
        made.execute("INSERT INTO portal_applications VALUES ('odd key')")
        made.execute(
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            f" VALUES ('odd key', {no_text}, true)"
        )
        wait_odd(
            server,
            "odd plan (plan_type is not text",
            "odd key (secret_key is not text",
            "(endpoint_id is not text",
        )
        made.execute(f"UPDATE pay_plans SET throughput_limit = 8 WHERE plan_type = {no_text}")
        made.execute("UPDATE pay_plans SET throughput_limit = 10")
        wait(made, client)
        made.execute("DELETE FROM portal_applications WHERE id LIKE 'odd%%'")
        wait_odd(server)
        wait(made, client)
    assert server.metric("pads_cdc_reconcile_total") == 1, "the start's"
    assert server.metric("pads_cdc_decode_errors_total") == 0
    assert server.stop() == 0


def wait(made: Encoded, client: Gateway) -> None:
    oracle = made.endpoints()
    client.wait(lambda one: one.map == oracle, f"{made.name}: {sorted(oracle)}")


@pytest.mark.both_plugins
@pytest.mark.parametrize("name", OFTEN)
def test_text_of_an_encoding_is_served_and_what_is_none_stops_nobody(
    name: str, encoded: Callable[[str], Encoded], serve: ServerFactory, gateway: GatewayFactory
) -> None:
    serves_text(encoded(name), serve, gateway)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_text_of_every_encoding_is_served(
    cluster: Cluster, encoded: Callable[[str], Encoded], serve: ServerFactory, gateway: GatewayFactory
) -> None:
    names = [name for name in server_encodings(cluster) if name not in (*REFUSED, *OFTEN)]
    assert len(names) >= 25
    for name in names:
        made = encoded(name)
        serves_text(made, partial(serve, SLOT_NAME=made.database.name), gateway)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_encoding_that_cannot_be_decoded_is_refused_by_its_name(
    name: str, cluster: Cluster, check: Check, pads_cdc: Callable[..., CompletedProcess[str]]
) -> None:
    with ExitStack() as ending:
        database = Database(cluster, f"test_in_{name.lower()}", "wal2json", "grove", ending)
        create_database(cluster, database.name, name)
        try:
            report = check(database)
            assert any(name in finding.text for finding in report.findings if finding.verdict == "fail")
            done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=database.url(), PORT="0", METRICS_PORT="0")
            assert done.returncode == 1
            assert name in done.stderr
            assert "(pg_dump) into one with the encoding UTF8" in done.stderr
        finally:
            with closing(psycopg2.connect(cluster.url())) as session:
                session.autocommit = True
                session.cursor().execute(f"DROP DATABASE {database.name}")
