"""Which names a mapping's statements find, and what is said of those that they do not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cdc.errors import ConfigurationError, Refusal
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from tests.plugins.server import fill
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.plugins import postgres
    from tests.plugins.check import Check

SETTING = "QUERY_CONNECTION_STRING"
ODD = 'a "b" %% c'
"""Also what psycopg2 takes for a parameter."""


def encode(columns: tuple[Any, ...]) -> bytes:
    return "|".join(one.decode() if isinstance(one, bytes) else str(one) for one in columns).encode()


@pytest.fixture
def reading(database: postgres.Database) -> Iterator[Callable[..., Database]]:
    """Make what reads the test's database by a mapping, by default as its superuser."""
    opened: list[Database] = []

    def make(mapping: str = "grove", schema: str = "public", url: str | None = None) -> Database:
        address = Address(lambda: url or database.url(), SETTING)
        opened.append(Database(address, load(mapping), schema, encode))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str, str], str]:
    """Make a mapping of one's own: `grove` with something else in its queries; returns the folder's path."""

    def make(old: str, new: str) -> str:
        folder = Path(shutil.copytree(ROOT / "sql/grove", tmp_path / "own"))
        queries = (folder / "queries.sql").read_text()
        assert old in queries
        (folder / "queries.sql").write_text(queries.replace(old, new))
        return str(folder)

    return make


def rows(database: Database, **keys: set[str]) -> dict[str, bytes | None]:
    with database.read(keys or None) as read:
        return {id_: payload for chunk in read.chunks() for id_, payload in chunk}


def test_a_schema_of_any_name(database: postgres.Database, reading: Callable[..., Database]) -> None:
    fill(database, 3)
    database.execute('ALTER SCHEMA public RENAME TO "{}"'.format(ODD.replace('"', '""')))
    read = reading(schema=ODD)
    assert len(rows(read)) == 3
    assert len(rows(read, EndpointsOfPlans={"plan_0"}, EndpointsOfApplications={"app_2"})) == 3
    assert read.parents([rule for rules in read.mapping.rules.values() for rule in rules])


# --- what a mapping of one's own may use


def test_what_has_its_schema_is_used(
    database: postgres.Database, reading: Callable[..., Database], own: Callable[[str, str], str]
) -> None:
    """A function, a type and an operator of the tables' schema, by its placeholder and by its name."""
    fill(database, 3)
    database.execute(
        """
        CREATE FUNCTION twice(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1 || $1';
        CREATE OPERATOR #! (FUNCTION = twice, RIGHTARG = text)
        """
    )
    named = ":\"schema\".twice(OPERATOR(public.#!) settings.secret_key) || 'auth0_google'::public.auth_type"
    found = rows(reading(own("settings.secret_key,", f"{named} AS secret_key,")))
    assert found["app_1"] == b"app_1|key_1key_1key_1key_1auth0_google|True|None|acc_0|plan_0|0|0"


@pytest.mark.parametrize(
    ("instead", "missing"),
    [
        ("twice(settings.secret_key) AS secret_key,", "function twice(character varying) does not exist"),
        ("#! settings.secret_key AS secret_key,", "operator does not exist: #! character varying"),
        ("'auth0_google'::auth_type::text AS secret_key,", 'type "auth_type" does not exist'),
        ("(SELECT max(id) FROM others) AS secret_key,", 'relation "others" does not exist'),
    ],
)
def test_what_has_none_is_not_found_and_the_remedy_works(
    database: postgres.Database,
    reading: Callable[..., Database],
    own: Callable[[str, str], str],
    check: Check,
    instead: str,
    missing: str,
) -> None:
    fill(database, 3)
    database.execute(
        """
        CREATE TABLE others (id text);
        CREATE FUNCTION twice(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1 || $1';
        CREATE OPERATOR #! (FUNCTION = twice, RIGHTARG = text)
        """
    )
    folder = own("settings.secret_key,", instead)
    with pytest.raises(Refusal, match=re.escape(missing)):
        rows(reading(folder))
    finding = check(database, MAPPING=folder).the("statements", "fail")
    assert missing in finding.text
    if "relation" in missing:
        assert "name it in `reads` of affects.toml" in finding.remedy
        return
    assert "name its schema in the mapping's query" in finding.remedy
    queries = Path(folder) / "queries.sql"
    mended = re.sub(r"(twice\(|auth_type)", r'"public".\1', queries.read_text()).replace(
        "#!", "OPERATOR(public.#!)"
    )
    queries.write_text(mended)
    assert len(rows(reading(folder))) == 3
    assert check(database, MAPPING=folder).the("statements", "pass")


def test_a_view_is_not_read(
    database: postgres.Database, reading: Callable[..., Database], own: Callable[[str, str], str]
) -> None:
    """Its functions would run with our rights, and whoever owns it changes it as he likes."""
    database.execute("CREATE VIEW plans AS SELECT * FROM pay_plans")
    folder = own("LEFT JOIN pay_plans ON pay_plans", "LEFT JOIN public.plans AS pay_plans ON pay_plans")
    with pytest.raises(Refusal, match="put its query into the mapping"):
        rows(reading(folder))


def test_a_with_that_hides_a_table_is_refused(own: Callable[[str, str], str]) -> None:
    folder = own(
        "SELECT\n    applications.id AS endpoint_id,",
        "WITH accounts AS (SELECT 1) SELECT\n    applications.id AS endpoint_id,",
    )
    with pytest.raises(ConfigurationError, match="Endpoints: WITH accounts: that is the name of a"):
        load(folder)


# --- types with operators of their own

CITEXT = """
CREATE EXTENSION citext;
ALTER TABLE accounts DROP CONSTRAINT accounts_plan_type_fkey;
ALTER TABLE pay_plans ALTER plan_type TYPE {type};
ALTER TABLE accounts ALTER plan_type TYPE {type};
ALTER TABLE accounts ADD FOREIGN KEY (plan_type) REFERENCES pay_plans (plan_type);
UPDATE accounts SET plan_type = upper(plan_type)
"""


@pytest.mark.parametrize("type_", ["citext", "any_case"])
def test_a_type_is_compared_by_its_own_operators(
    database: postgres.Database, reading: Callable[..., Database], check: Check, type_: str
) -> None:
    """As text, no account would have the limits of its plan."""
    fill(database, 40)
    database.execute(CITEXT.format(type="citext"))
    if type_ != "citext":
        database.execute(
            f"""
            CREATE DOMAIN {type_} AS citext;
            ALTER TABLE pay_plans ALTER plan_type TYPE {type_};
            ALTER TABLE accounts ALTER plan_type TYPE {type_}
            """
        )
    read = reading()
    assert rows(read)["app_2"] == b"app_2|key_2|True|None|acc_2|PLAN_2|2|2000"
    finding = check(database).the("operators", "pass")
    assert "accounts.plan_type is of type citext, whose operators are in the schema public" in finding.text
    assert check(database).the("statements", "pass")


def test_operators_that_others_could_put_there_are_refused_and_the_remedies_work(
    database: postgres.Database, reading: Callable[..., Database], check: Check
) -> None:
    fill(database, 10)
    database.execute(CITEXT.format(type="citext"))
    mallory = database.create_role()
    database.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    session = database.connect(*mallory)
    with session.cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION stolen(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'it runs'; END $$;
            CREATE OPERATOR = (FUNCTION = stolen, LEFTARG = varchar, RIGHTARG = varchar)
            """
        )
    typed = []
    for fault in ("PUBLIC may create others", "has made the operator =", "has made the function stolen"):
        with pytest.raises(Refusal, match=fault):
            rows(reading())
        report = check(database)
        findings = report.of("operators")
        assert {finding.verdict for finding in findings} == {"fail"}
        assert any("accounts.plan_type" in finding.text and fault in finding.text for finding in findings)
        assert report.the("statements", "skip")
        database.execute(findings[0].remedy)
        typed.append(findings[0].remedy)
    assert typed == [
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
        "DROP OPERATOR public.=(character varying,character varying);",
        "DROP ROUTINE public.stolen(character varying,character varying);",
    ]
    assert check(database).the("operators", "pass")
    assert len(rows(reading())) == 10


def test_types_that_the_mapping_does_not_use_do_not_matter(
    database: postgres.Database, reading: Callable[..., Database], check: Check
) -> None:
    fill(database, 3)
    database.execute(
        """
        CREATE EXTENSION citext;
        CREATE TYPE colour AS ENUM ('red');
        ALTER TABLE accounts ADD remark citext, ADD paint colour;
        GRANT CREATE ON SCHEMA public TO PUBLIC
        """
    )
    assert len(rows(reading())) == 3
    assert check(database).the("operators", "pass").text == "all operators are those of pg_catalog"
