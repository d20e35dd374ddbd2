"""Values that are longer than a message: the server sends their length in their place, whatever their type.

Everything else stays: other values, the plans of the statements, and how often a column is computed.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cdc.mapping.key_types import parameter
from cdc.mapping.mapping import load
from cdc.mapping.row_rule import CUT, MESSAGE_BYTES
from cdc.postgres.column_types import ColumnTypes
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from server.payload import encoder
from tests.e2e.test_encodings import create_database
from tests.plugins import postgres
from tests.plugins.server import fill
from tests.support import BUNDLED
from tests.support.one_table import make_one_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cdc.mapping.row_rule import Oddity
    from tests.support.cluster import Cluster

PREPARE = """
CREATE EXTENSION citext;
CREATE DOMAIN word AS TEXT;
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""
TEXTS = ("TEXT", "VARCHAR", "VARCHAR(5000000)", "BPCHAR", "CITEXT", "WORD", "TEXT COLLATE caseless")

COMPUTES = ("grove_jwt", "portal_db")
"""The mappings that compute a column that can be long. It must not be computed twice."""


def address(database: postgres.Database) -> Address:
    return Address(database.url, "QUERY_CONNECTION_STRING")


def lengths(
    database: postgres.Database, folder: Path, number: int, **keys: set[str]
) -> dict[bytes, tuple[int, bool]]:
    """Read endpoints. Return the length of one of their columns by id, and whether it was cut."""
    found: dict[bytes, tuple[int, bool]] = {}

    def look(row: tuple[Any, ...]) -> bytes:
        value = row[number]
        values = value if isinstance(value, list) else [value]
        found[row[0]] = sum(map(len, values)), values[0].startswith(CUT)
        return b""

    with (
        closing(Database(address(database), load(str(folder)), "public", look)) as reading,
        reading.read(keys or None) as read,
    ):
        assert sum(map(len, read.chunks())) == len(found)
    return found


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_read_up_to_the_length_of_a_message(
    database: postgres.Database, tmp_path: Path, kind: str
) -> None:
    """By whatever the endpoint is found. The two texts differ by one byte, and compress well."""
    folder = make_one_table(tmp_path / "one_table", secret_key=kind, plan_type="VARCHAR(20)")
    database.execute(PREPARE + (folder / "schema.sql").read_text())
    database.execute(
        "INSERT INTO endpoints (id, plan_type, secret_key) VALUES ('usual', 'plan', 'key  '),"
        " ('longest', 'plan', repeat('a', %s)), ('long', 'plan', repeat('ö', %s))",
        (MESSAGE_BYTES, MESSAGE_BYTES // 2 + 1),
    )
    for keys in ({}, {"EndpointsOfIds": {"usual", "longest", "long"}}, {"EndpointsOfPlans": {"plan"}}):
        found = lengths(database, folder, 1, **keys)
        assert found[b"usual"] == (5, False), "blanks at the end stay"
        assert found[b"longest"] == (MESSAGE_BYTES, False)
        size, cut = found[b"long"]
        assert cut
        assert size < 120


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("TEXT[]", "array_fill('user'::text, ARRAY[1000000])"),
        ("VARCHAR[]", "array_fill('user'::varchar, ARRAY[1000000])"),
        ("TEXT[]", "array_fill(NULL::text, ARRAY[5000000])"),
        ("UUID[]", "array_fill('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, ARRAY[200000])"),
    ],
)
def test_a_list_is_read_up_to_the_length_of_a_message(
    database: postgres.Database, tmp_path: Path, kind: str, value: str
) -> None:
    folder = make_one_table(tmp_path / "one_table", users=kind)
    database.execute((folder / "schema.sql").read_text())
    database.execute(
        f"INSERT INTO endpoints (id, users) VALUES ('long', {value}), ('usual', ({value})[1:2] || NULL)"
    )
    with closing(Database(address(database), load(str(folder)), "public", encoder_of(folder))) as reading:
        for keys in (None, {"EndpointsOfIds": {"long", "usual"}}):
            found, odd = everything(reading, keys)
            assert found.keys() == {"long", "usual"}
            assert found["long"] is None
            assert found["usual"]
            assert re.fullmatch(
                r"authorized_users has \d,\d{3},\d{3} bytes, more than a message can have", odd["long"].text
            )


def encoder_of(folder: Path) -> Callable[[tuple[Any, ...]], bytes]:
    return encoder(load(str(folder)).columns)


def everything(
    reading: Database, keys: dict[str, set[str]] | None
) -> tuple[dict[str, bytes | None], dict[str, Oddity]]:
    """Read endpoints; return them, and the odd ones."""
    found: dict[str, bytes | None] = {}
    odd: dict[str, Oddity] = {}
    with reading.read(keys) as read:
        for chunk in read.chunks():
            found.update(chunk)
            odd.update((name, one) for name, one in read.odd.items() if one is not None)
    return found, odd


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("secret_key", "TEXT"),
        ("secret_key", "BYTEA"),
        ("secret_key", "JSONB"),
        ("secret_key", "CITEXT"),
        ("required", "TEXT"),
        ("account_id", "TEXT"),
        ("plan_type", "TEXT"),
        ("throughput", "TEXT"),
        ("capacity", "TEXT"),
    ],
)
def test_a_row_with_a_long_value_is_left_out_and_named(
    database: postgres.Database, tmp_path: Path, column: str, kind: str
) -> None:
    """A limit is too long rather than no number, though "000...1" would be one."""
    folder = make_one_table(tmp_path / "one_table", **{column: kind})
    database.execute("CREATE EXTENSION citext;" + (folder / "schema.sql").read_text())
    value = "to_jsonb(repeat('0', 5000000))" if kind == "JSONB" else f"repeat('0', 5000000)::{kind}"
    database.execute(f"INSERT INTO endpoints (id, {column}) VALUES ('long', {value}), ('other', NULL)")
    with closing(Database(address(database), load(str(folder)), "public", encoder_of(folder))) as reading:
        for keys in (None, {"EndpointsOfIds": {"long", "other"}}):
            found, odd = everything(reading, keys)
            assert found["long"] is None
            assert found["other"]
            assert odd.keys() == {"long"}
            assert odd["long"].reason == "too_large"
            assert re.fullmatch(
                rf"{column}\w* has \d+,\d{{3}},\d{{3}} bytes, more than a message can have",
                odd["long"].text.replace("secret_key_", ""),
            )


@pytest.mark.parametrize("kind", TEXTS)
def test_an_id_that_is_too_long_is_no_endpoint_and_is_named_by_its_beginning(
    database: postgres.Database, tmp_path: Path, kind: str
) -> None:
    """Two of them that begin alike are still no endpoint, and one that nobody has is as good as gone."""
    folder = make_one_table(tmp_path / "one_table", id=kind)
    database.execute(PREPARE + (folder / "schema.sql").read_text())
    database.execute(
        "INSERT INTO endpoints (id) VALUES ('usual'), (repeat('i', 4800000)), (repeat('i', 4800000) || 'j')"
    )
    names = {"usual", "i" * 4_800_000, "i" * 4_800_000 + "j", "k" * 4_800_000}
    with closing(Database(address(database), load(str(folder)), "public", encoder_of(folder))) as reading:
        for keys in (None, {"EndpointsOfIds": names}):
            with reading.read(keys) as read:
                found: dict[str, bytes | None] = {}
                odd: dict[str, Oddity | None] = {}
                for chunk in read.chunks():
                    found.update(chunk)
                    odd.update(read.odd)
            assert found.keys() == {"usual"}
            assert odd.pop("k" * 40 + "...", None) is None
            [(name, oddity)] = odd.items()
            assert name == "i" * 40 + "..."
            assert oddity is not None
            assert oddity.reason == "too_large"
            assert re.fullmatch(
                r"endpoint_id has 4,800,00[01] bytes, more than a message can have", oddity.text
            )


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
def test_an_id_in_another_encoding_is_named_by_its_beginning(
    cluster: Cluster, tmp_path: Path, encoding: str
) -> None:
    """In SQL_ASCII the beginning may end within a character, or be no text at all."""
    letter = {"LATIN1": "\\xe9", "EUC_JP": "\\xc6fc", "SQL_ASCII": "\\xff"}[encoding]
    with ExitStack() as ending:
        database = postgres.Database(cluster, f"test_long_{encoding.lower()}", "wal2json", "grove", ending)
        create_database(cluster, database.name, encoding)
        ending.callback(postgres.drop_database, database)
        folder = make_one_table(tmp_path / "one_table")
        database.execute((folder / "schema.sql").read_text())
        database.execute(
            f"INSERT INTO endpoints (id) SELECT repeat(letter, 4800000 / octet_length(letter))"
            f" FROM convert_from('{letter}', '{encoding}') AS letter UNION ALL SELECT 'usual'"
        )
        reading = Database(address(database), load(str(folder)), "public", encoder_of(folder))
        ending.enter_context(closing(reading))
        found, odd = everything(reading, None)
    assert found.keys() == {"usual"}
    [(name, oddity)] = odd.items()
    assert name.startswith({"LATIN1": "éé", "EUC_JP": "日日", "SQL_ASCII": "\\xff\\xff"}[encoding])
    assert len(name) < 50
    assert oddity.text == "endpoint_id has 4,800,000 bytes, more than a message can have"


def test_a_row_whose_parent_is_too_long_is_unknown(database: postgres.Database) -> None:
    """So a change of it costs a read of everything."""
    database.execute(
        "ALTER TABLE portal_application_settings"
        " DROP CONSTRAINT portal_application_settings_application_id_fkey,"
        " DROP CONSTRAINT portal_application_settings_application_id_key, ALTER application_id TYPE TEXT;"
        "INSERT INTO portal_application_settings (application_id) VALUES ('app_1'), (repeat('a', 5000000))"
    )
    mapping = load("grove")
    rules = [rule for of_table in mapping.rules.values() for rule in of_table if rule.parents]
    with closing(Database(address(database), mapping, "public", encoder(mapping.columns))) as reading:
        [rows] = reading.parents(rules).values()
    assert rows.rows == [("1", "app_1")]


def explained(database: postgres.Database, statement: str, keys: dict[str, list[str]]) -> str:
    """Return the plan of a prepared statement, without the costs and the columns."""
    rows = database.rows(f"EXPLAIN (COSTS OFF) {statement}", keys)
    return "\n".join(line for (line,) in rows)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_plans_stay_and_nothing_is_computed_twice(
    database_factory: postgres.DatabaseFactory, name: str
) -> None:
    """Though all texts of the tables are of unlimited length."""
    database = database_factory(mapping=name)
    tables = load(name).reads
    for table, column in database.rows(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND data_type = 'character varying' AND table_name = ANY (%s)",
        (list(tables),),
    ):
        database.execute(f"ALTER TABLE {table} ALTER {column} TYPE TEXT")
    if name == "grove":
        fill(database, 3_000)
    with closing(Database(address(database), load(name), "public", encoder(load(name).columns))) as reading:
        types, mapping = reading.types, reading.mapping
    assert not types.columns["secret_key"].limited
    unbounded = ColumnTypes(
        id_type=replace(types.id_type, limited=True),
        columns={column: replace(one, limited=True) for column, one in types.columns.items()},
    )
    kinds = sorted({rule.query for rules in mapping.rules.values() for rule in rules})
    for wanted in (None, *([kind] for kind in kinds), kinds):
        keys = {parameter(kind): ["app_1", "acc_1", "plan_1"] for kind in wanted or ()}
        with_bounds, without = (
            mapping.full(each.columns, each.id_type)
            if wanted is None
            else mapping.compose(wanted, each.columns, each.id_type)
            for each in (types, unbounded)
        )
        assert len(with_bounds) > len(without) + 1_000
        plan, before = explained(database, with_bounds, keys), explained(database, without, keys)
        if name in COMPUTES:
            plan = re.sub(r" *->  Subquery Scan on found(_\d+)?\n", "", plan)
        assert [one.strip() for one in plan.splitlines()] == [one.strip() for one in before.splitlines()]


def test_a_column_of_limited_length_costs_nothing(database: postgres.Database) -> None:
    mapping = load("grove")
    with closing(Database(address(database), mapping, "public", encoder(mapping.columns))) as reading:
        types = reading.types
    statement = mapping.full(types.columns, types.id_type)
    assert statement.count(CUT.decode()) == 1, "that of authorized_users"
