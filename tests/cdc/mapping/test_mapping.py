"""Mappings as folders: what the bundled ones say, and one clear line for whatever is wrong in one's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cdc.errors import ConfigurationError
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import Mapping, Rule, load
from tests.support import BUNDLED, ROOT

GROVE = ROOT / "sql" / "grove"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A mapping of one's own: a copy of grove's folder."""
    return Path(shutil.copytree(GROVE, tmp_path / "own"))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_mappings_load(name: str) -> None:
    mapping = load(name)
    assert mapping.name == name
    assert set(mapping.rules) == set(mapping.tables)
    assert "portal_applications" in mapping.reads
    assert mapping.signals == (() if name == "portal_db" else ("portal_application_changes",))
    for rules in mapping.rules.values():
        for rule in rules:
            assert f"%({rule.query})s" in mapping.queries[rule.query]
            assert rule.parents is None or "%" not in mapping.queries[rule.parents]


def test_what_each_table_of_the_default_affects() -> None:
    rules = {table: rule for table, (rule,) in load("grove").rules.items()}
    assert rules == {
        "portal_applications": Rule("portal_applications", "id", "EndpointsOfApplications"),
        "portal_application_settings": Rule(
            "portal_application_settings",
            "application_id",
            "EndpointsOfApplications",
            row="id",
            parents="ParentsOfSettings",
        ),
        "accounts": Rule("accounts", "id", "EndpointsOfAccounts"),
        "pay_plans": Rule("pay_plans", "plan_type", "EndpointsOfPlans"),
        "portal_application_changes": Rule(
            "portal_application_changes",
            "portal_app_id",
            "EndpointsOfApplications",
            actions=frozenset({"insert"}),
        ),
    }


def test_users_matter_to_jwt_alone() -> None:
    users = {"account_users", "users", "user_auth_providers"}
    assert users <= set(load("grove_jwt").tables)
    assert not users & {*load("grove").tables, *load("grove_soft_delete").tables}


def test_which_mappings_honour_marks_of_deleted_rows() -> None:
    honours = {name: load(name).honours_deleted for name in BUNDLED}
    assert honours == {
        "grove": set(),
        "grove_jwt": set(),
        "grove_soft_delete": {"portal_applications", "accounts"},
        "pads_soft_delete": {"portal_applications"},
        "pads_without_plans": {"portal_applications"},
        "portal_db": {"portal_applications", "portal_accounts"},
    }


def test_a_path_is_a_mapping_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(str(own)).name == "own"
    monkeypatch.chdir(own.parent)
    assert load("./own") == load("own") == load(str(own))


def test_a_bundled_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grove").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("grove").folder == GROVE


def test_no_such_mapping_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"MAPPING: .*'grov'.*grove, grove_jwt, grove_soft_delete"):
        load("grov")


def test_a_folder_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"MAPPING: the folder .* is not a mapping: .* choose grove, "
    ):
        load(str(tmp_path))


@pytest.mark.parametrize("file", ["schema.sql", "queries.sql", "affects.toml", "setup.sql"])
def test_a_missing_file(own: Path, file: str) -> None:
    (own / file).unlink()
    complain(own, file, "cannot be read: No such file")
    (own / file).write_bytes(b"\xff\xfe")
    complain(own, file, "cannot be read: not UTF-8")


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("reads = [", "reads = ", "affects.toml", "not TOML"),
        (
            "reads = [",
            "read = [",
            "the file",
            "unknown key read; known are affects, endpoint_keys, honours_deleted, key_columns, reads",
        ),
        ("reads = [", "reads = []\nunused = [", "the file", "unknown key unused"),
        ("key_columns = {", 'key_columns = "plan_type" #', "key_columns", "must be a table"),
        ('= "account_id",', "= 1,", "key_columns EndpointsOfAccounts", "must be a name"),
        ('= "account_id",', '= "account",', "key_columns EndpointsOfAccounts", "no column account"),
        ("{ EndpointsOfAccounts", "{ EndpointsOfUsers", "key_columns", "no query EndpointsOfUsers"),
        ("{ EndpointsOfAccounts", "{ EndpointsOfApplications", "key_columns", "is in endpoint_keys"),
        ('"portal_applications", ', '"portal_apps", ', "reads", "schema.sql creates no table portal_apps"),
        ('"portal_applications", ', "5, ", "the file reads", "must be a list of names"),
        ('signals = ["portal_application_changes"]', "signals = 1", "the file signals", "must be a list"),
        ('signals = ["portal_application_changes"]', 'signals = ["users"]', "[[affects]] 5 table", "neither"),
        (
            "signals = [",
            'honours_deleted = ["accounts"]\nsignals = [',
            "accounts",
            "no column deleted or deleted_at",
        ),
        ('table = "accounts"\n', "", "[[affects]] 3 table", "is missing"),
        ('table = "accounts"', 'table = ["accounts"]', "[[affects]] 3 table", "must be a name"),
        ('table = "accounts"', 'table = "users"', "[[affects]] 3 table", "users is neither in reads nor in"),
        (
            '[[affects]]\ntable = "accounts"\ncolumn = "id"\nquery = "EndpointsOfAccounts"\n',
            "",
            "accounts",
            "no [[affects]] says what",
        ),
        (  # the deletes of a table that the mapping reads
            'query = "EndpointsOfAccounts"\n',
            'query = "EndpointsOfAccounts"\nactions = ["insert", "update"]\n',
            "accounts",
            "its [[affects]] entries leave out delete",
        ),
        (
            'column = "plan_type"',
            'column = "plan"',
            "[[affects]] 4 column",
            "pay_plans has no column plan in",
        ),
        ('column = "plan_type"\n', "", "[[affects]] 4 column", "is missing"),
        ('"EndpointsOfPlans"', '"EndpointsOfPlan"', "[[affects]] 4 query", "no query EndpointsOfPlan"),
        ('"EndpointsOfPlans"', '"Endpoints"', "[[affects]] 4 query", "Endpoints must take @keys"),
        ('row = "id"\n', "", "[[affects]] 2", "only make sense together"),
        ('row = "id"', 'row = "nr"', "[[affects]] 2 row", "no column nr"),
        ('"ParentsOfSettings"', '"ParentsOf"', "[[affects]] 2 parents", "no query ParentsOf"),
        ('"ParentsOfSettings"', '"EndpointsOfPlans"', "[[affects]] 2 parents", "must take no parameters"),
        ('["insert"]', '["inserted"]', "[[affects]] 5 actions", "must be some of delete, insert, update"),
        ('["insert"]', "[]", "[[affects]] 5 actions", "must be some of"),
        ('["insert"]', '"insert"', "[[affects]] 5 actions", "must be a list"),
        ("actions =", "action =", "[[affects]] 5", "unknown key action; known are actions, column"),
    ],
)
def test_whatever_is_wrong_is_one_line_that_says_where(
    own: Path, old: str, new: str, where: str, what: str
) -> None:
    replace(own / "affects.toml", old, new)
    complain(own, "affects.toml", where, what)


def test_keys_in_a_column_are_refused_where_rows_can_take_endpoints_away(tmp_path: Path) -> None:
    """Such a delete would name no id, and only an audit would find it."""
    own = Path(shutil.copytree(GROVE.parent / "grove_soft_delete", tmp_path / "own"))
    replace(own / "affects.toml", "key_columns = {", 'key_columns = { EndpointsOfAccounts = "account_id",')
    complain(own, "key_columns EndpointsOfAccounts", "rows of accounts can take endpoints away")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_table_that_a_query_names_is_in_reads(name: str, tmp_path: Path) -> None:
    """Each table is left out once, with what says what it affects."""
    own = Path(shutil.copytree(GROVE.parent / name, tmp_path / name))
    text = (own / "affects.toml").read_text()
    for table in load(name).reads:
        without = re.sub(rf'"{table}",? ?(?=[^=]*\])', "", text, count=1)
        without = re.sub(rf'\[\[affects\]\]\ntable = "{table}"\n(?:\w+ = .*\n)*', "", without)
        (own / "affects.toml").write_text(without)
        complain(own, f"affects.toml: reads: leaves out {table}, which the query ", f'reads: add "{table}"')


def test_a_name_that_a_query_gives_to_something_else_is_no_table(own: Path) -> None:
    replace(
        own / "queries.sql", "NULL::TEXT[] AS", "(WITH users AS (SELECT 1) SELECT NULL::TEXT[] FROM users) AS"
    )
    assert "users" not in load(str(own)).reads


def test_an_index_is_on_columns_that_there_are(own: Path) -> None:
    replace(own / "setup.sql", "(plan_type)", "(plan)")
    complain(own, "setup.sql", "the index accounts_plan_type_idx: accounts has no column plan in schema.sql")


def test_tables_may_have_their_schema(own: Path) -> None:
    """As pg_dump writes them."""
    replace(own / "schema.sql", "CREATE TABLE accounts", "CREATE TABLE public.accounts")
    assert load(str(own)).reads == load("grove").reads


@pytest.mark.parametrize("text", ["affects = 5", 'affects = ["x"]', "[affects]\ntable = 5"])
def test_affects_of_another_shape(own: Path, text: str) -> None:
    (own / "affects.toml").write_text(f'reads = ["accounts"]\n{text}\n')
    complain(own, "affects.toml", "must be [[affects]] tables")


def test_a_mapping_reads_something(own: Path) -> None:
    (own / "affects.toml").write_text("")
    complain(own, "affects.toml", "reads: names no table")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("-- name: Endpoints :many", "-- name: All :many", "needs a query Endpoints"),
        ("NULL::TEXT[]", "@keys", "needs a query Endpoints without parameters"),
        (
            "-- name: Endpoints :many",
            "-- name: EndpointsOfPlans :many",
            "there are two queries EndpointsOfPlans",
        ),
        (
            "-- name: Endpoints :many",
            "-- name: Endpoints :one",
            "the line `-- name: Endpoints :one`",
        ),
        (
            "-- name: Endpoints :many",
            "",
            "the statement after the query ParentsOfSettings, `SELECT applications.id AS endpoint_id, ",
        ),
        (
            "pay_plans.plan_type = accounts.plan_type;",
            "true; SELECT 1;",
            "the statement after the query Endpoints, `SELECT 1...`, has no name",
        ),
    ],
)
def test_whatever_is_wrong_with_the_queries(own: Path, old: str, new: str, what: str) -> None:
    replace(own / "queries.sql", old, new)
    complain(own, "queries.sql", what)


def test_what_a_mapping_includes_must_be_there(own: Path) -> None:
    """A copy of a bundled mapping finds what it shares with others; anything else lies where it says."""
    replace(own / "queries.sql", "../shared/endpoints_of.sql", "more.sql")
    complain(own, "more.sql: cannot be read: No such file")
    (own / "more.sql").write_text((GROVE.parent / "shared" / "endpoints_of.sql").read_text())
    assert load(str(own)).queries == load("grove").queries


def complain(own: Path, *words: str) -> None:
    """Expect one line, with the file's path and all words."""
    with pytest.raises(ConfigurationError) as raised:
        load(str(own))
    [line] = str(raised.value).splitlines()
    assert line.startswith(str(own))
    assert all(word in line for word in words), line


def test_composed_statements_are_of_known_kinds() -> None:
    mapping = load("grove")
    with pytest.raises(KeyError):
        mapping.compose(["EndpointsOfUsers"])
    with pytest.raises(ValueError, match="nothing"):
        mapping.compose([])


def test_kinds_in_any_order_make_the_same_statement() -> None:
    mapping = load("grove")
    kinds = ["EndpointsOfPlans", "EndpointsOfApplications"]
    assert mapping.compose(kinds) == mapping.compose(dict.fromkeys(reversed(kinds)))


def test_setup_names_schema_and_role() -> None:
    statements = load("grove").setup_statements('my "schema"', "me")
    assert statements[1] == 'GRANT USAGE ON SCHEMA "my ""schema""" TO "me"'
    assert "set_config('pads_cdc.schema', 'my \"schema\"', false)" in statements[0]
    assert not any(':"' in statement or ":'" in statement for statement in statements)
    assert len(load("grove").setup_statements("public", None)) == len(statements) - 2


def test_a_mapping_shows_no_walls_of_text() -> None:
    assert "SELECT" not in repr(load("grove_jwt"))
    assert isinstance(load("grove_jwt"), Mapping)


def test_the_servers_own_queries_keep_their_parameters_names() -> None:
    queries = server_queries()
    assert "%(schema)s" in queries["Relations"]
    assert "@" not in queries["Relations"]


def test_mappings_are_told_apart_by_what_they_make_and_not_by_their_comments(
    own: Path, tmp_path: Path
) -> None:
    """Tokens, and the second server of a pair, go by it: of another mapping nothing may be taken over."""
    grove = load("grove").fingerprint("1", "public")
    assert load(str(own)).fingerprint("1", "public") == grove == load("grove").fingerprint("1", "public")
    assert (
        len({grove, load("grove").fingerprint("2", "public"), load("grove").fingerprint("1", "other")}) == 3
    )
    replace(own / "queries.sql", "-- Every present endpoint", "-- Every endpoint")
    replace(own / "affects.toml", "# An operator, or", "# Somebody, or")
    assert load(str(own)).fingerprint("1", "public") == grove
    for file, old, new in (
        ("queries.sql", "    settings.secret_key,", "    upper(settings.secret_key) AS secret_key,"),
        ("queries.sql", "newer.id > settings.id", "newer.id < settings.id"),
        ("affects.toml", 'actions = ["insert"]', 'actions = ["insert", "update"]'),
        ("affects.toml", 'signals = ["portal_application_changes"]', "signals = []"),
        ("affects.toml", ', EndpointsOfPlans = "plan_type" }', " }"),
    ):
        other = tmp_path / "other"
        shutil.copytree(GROVE, other)
        replace(other / file, old, new)
        if new == "signals = []":
            text = (other / file).read_text()
            (other / file).write_text(text[: text.index("# An operator")])
        assert load(str(other)).fingerprint("1", "public") != grove, new
        shutil.rmtree(other)
