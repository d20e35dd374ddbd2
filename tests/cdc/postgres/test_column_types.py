"""Lists of users, and flags, of every type that a column may have: served as they print, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc.checks import NECESSARY, Verdict, run
from tests.plugins.postgres import site_of
from tests.support.one_table import make_one_table
from tests.support.typed import PREPARE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database

USERS = {
    "VARCHAR(20)[]": "{one,two}",
    "CHAR(12)[]": '{"one  ",two}',
    "CITEXT[]": "{One,TWO}",
    "LOOSE[]": "{One,TWO}",
    "WORDS": "{one,two}",
    "UUID[]": "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}",
    "SMALLINT[]": "{1,2}",
    "NUMERIC[]": "{1.50,NaN,Infinity}",
    "DOUBLE PRECISION[]": "{1e300,0.1}",
    "MOOD[]": '{glad,"so so"}',
    "TEXT[]": '{"a,b","\\"quoted\\"","\\\\",é,NULL,""}',
}
FLAGS = {
    "BOOLEAN": ("t", "f"),
    "SMALLINT": ("1", "0"),
    "BIGINT": ("-1", "0"),
    "NUMERIC": ("0.5", "0.00"),
    "DOUBLE PRECISION": ("1e300", "-0"),
    "TEXT": ("yes", "no"),
    "CHAR(8)": ("true", "false"),
    "CITEXT": ("ON", "OFF"),
    "CERTAIN": ("y", "n"),
}


def refusals(database: Database, mapping: Path) -> list[str]:
    """Return why `serve` would not start."""
    with site_of(database.url(), str(mapping)) as site:
        return [found.text for _, found in run(NECESSARY, site) if found.verdict is Verdict.FAIL]


def served(database: Database, mapping: Path) -> dict[str, GatewayEndpoint]:
    """Return what a server would send, by id."""
    assert refusals(database, mapping) == []
    with site_of(database.url(), str(mapping)) as site, site.database.read() as read:
        rows = [row for chunk in read.chunks() for row in chunk]
    return {name: GatewayEndpoint.FromString(payload) for name, payload in rows if payload is not None}


def made(database: Database, folder: Path, **types: str) -> Path:
    """Make the one table with columns of these types."""
    mapping = make_one_table(folder / "one_table", **types)
    database.execute(PREPARE + (mapping / "schema.sql").read_text())
    return mapping


@pytest.mark.parametrize("kind", USERS)
def test_users_of_any_type_are_served_as_they_print(database: Database, tmp_path: Path, kind: str) -> None:
    mapping = made(database, tmp_path, users=kind)
    database.execute("INSERT INTO endpoints (id, users) VALUES ('some', %s), ('none', '{}')", (USERS[kind],))
    found = served(database, mapping)
    printed = database.value("SELECT users::TEXT[] FROM endpoints WHERE id = 'some'")
    assert {*found["some"].auth.jwt.authorized_users} == {*printed} - {None}
    assert found["none"].auth.HasField("jwt")
    assert not found["none"].auth.jwt.authorized_users


@pytest.mark.parametrize("kind", FLAGS)
def test_flags_of_any_type_are_read_as_postgres_means_them(
    database: Database, tmp_path: Path, kind: str
) -> None:
    mapping = made(database, tmp_path, required=kind)
    database.execute(
        "INSERT INTO endpoints (id, secret_key, required) VALUES ('closed', 'key', %s), ('open', 'key', %s)",
        FLAGS[kind],
    )
    found = served(database, mapping)
    assert found["closed"].auth.static_api_key.api_key == "key"
    assert found["open"].auth.HasField("no_auth")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(("users", kind) for kind in ("TEXT", "JSONB", "HSTORE", "PAIR", "XML", "INT4RANGE")),
        *(("required", kind) for kind in ("MOOD", "BIT(1)", "JSONB", "TEXT[]", "BYTEA", "UUID")),
    ],
)
def test_a_type_that_is_no_list_or_no_flag_is_refused_by_the_column_s_name(
    database: Database, tmp_path: Path, column: str, kind: str
) -> None:
    mapping = made(database, tmp_path, **{column: kind})
    assert any(f"endpoints.{column}, is " in text for text in refusals(database, mapping))
