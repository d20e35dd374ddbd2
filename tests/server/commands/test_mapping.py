"""`pads-cdc mapping new` and `test`: what is right passes, and whatever is left out is named."""

from __future__ import annotations

import json
import re
import shutil
import time
import tomllib
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.checks import Site, Verdict
from cdc.checks import changes as trial_of_changes
from cdc.checks.copies import Copies
from cdc.checks.dependencies import rolled_back
from cdc.errors import Refusal, SourceError
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database as Queried
from server.commands.mapping import scratch
from server.commands.mapping.new import FILES
from server.commands.mapping.trial import examine, on_scratch
from server.payload import encode
from tests.support import BUNDLED, ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cdc.checks import Finding
    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated

TEMPLATE = ROOT / "server/commands/mapping/template"
ENTRY = re.compile(r'\[\[affects\]\]\ntable = "(\w+)"\n(?:\w+ = .*\n)*')


@pytest.fixture
def empty(database: Database) -> Database:
    """A database without tables."""
    database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return database


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """What `mapping new` writes."""
    return shutil.copytree(TEMPLATE, tmp_path / "own")


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def address(database: Database) -> Address:
    return Address(database.url, "DATABASE")


def wrong(
    found: Iterable[tuple[str, Finding]], verdict: Verdict = Verdict.FAIL
) -> list[tuple[str, str, str]]:
    """Return the findings of a verdict: check, text and remedy."""
    return [(name, one.text, one.remedy) for name, one in found if one.verdict is verdict]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_mappings_pass(name: str, empty: Database) -> None:
    """On rows that are made up, of which each column that the query reads matters somewhere."""
    found = [*on_scratch(ROOT / "sql" / name, empty.url(), "public")]
    assert wrong(found) == wrong(found, Verdict.WARN) == wrong(found, Verdict.SKIP) == []
    [[_, said]] = [one for one in found if one[0] == "changes"]
    tried, altered = re.findall(r"(\d+) changes|; (\d+) altered", said.text)
    assert int(tried[0]) >= int(altered[1]) > 30


def test_the_new_mapping_passes(empty: Database, own: Path) -> None:
    found = [*on_scratch(own, empty.url(), "public")]
    assert wrong(found) == wrong(found, Verdict.WARN) == []


def test_it_is_the_example_of_the_document() -> None:
    page = (ROOT / "docs/mappings.md").read_text()
    blocks = dict(
        re.findall(r"^`(\S+\.(?:sql|toml))`[^\n]*\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    assert {*blocks} == {*FILES}
    for name, block in blocks.items():
        assert _bare(block) == _bare((TEMPLATE / name).read_text()), name


def _bare(text: str) -> list[str]:
    """Return lines without comments and blanks; names of queries are comments that count."""
    lines = (line.rstrip() for line in text.splitlines())
    return [line for line in lines if line and not re.match(r"--(?! name: )|#", line)]


@pytest.mark.parametrize("name", BUNDLED)
def test_what_is_taken_out_of_affects_toml_is_named(name: str, empty: Database, tmp_path: Path) -> None:
    """Each table of `reads`, the entries of each table, and both: the table, its columns, what to type."""
    folder = ROOT / "sql" / name
    scratch.fill(empty.url(), folder, "public")
    own = shutil.copytree(folder, tmp_path / name)
    text = (folder / "affects.toml").read_text()
    reads = load(name).reads
    for table in reads:
        unlisted = re.sub(rf'\n? *"{table}",? ?(?=[^=]*\])', "", text, count=1)
        for broken, listed in (
            (unlisted, False),
            (without(text, table), True),
            (without(unlisted, table), False),
        ):
            assert broken not in (text, unlisted) or not listed
            (own / "affects.toml").write_text(broken)
            [(check, fault, remedy), *others] = wrong(examine(own, address(empty), "public"))
            assert check == "dependencies"
            assert others == []
            named = re.search(rf"\b{table} \(\w+(, \w+)*\)|reads it \(\w+(, \w+)*\)", fault)
            assert named is not None, fault
            if listed:
                assert fault.startswith(f"changes of {table} would be missed: the query Endpoints reads it (")
            else:
                assert "which `reads` of affects.toml leaves out" in fault
                assert set(tomllib.loads(remedy.partition(": ")[2].partition("\n")[0])["reads"]) == set(reads)
            entry = f'[[affects]]\ntable = "{table}"\ncolumn = "'
            assert (entry in remedy) == (broken != unlisted)


def without(text: str, table: str) -> str:
    """Return an affects.toml without the entries of a table."""
    return ENTRY.sub(lambda found: "" if found[1] == table else found[0], text)


def test_what_is_typed_as_it_says_is_right(empty: Database, own: Path) -> None:
    """The remedies for a table that is nowhere in affects.toml."""
    text = (own / "affects.toml").read_text()
    edit(own / "affects.toml", ('"tiers", ', ""))
    (own / "affects.toml").write_text(without((own / "affects.toml").read_text(), "tiers"))
    scratch.fill(empty.url(), own, "public")
    [(_, _, remedy)] = wrong(examine(own, address(empty), "public"))
    reads, _, entry = remedy.removeprefix("write in affects.toml: ").partition("\n")
    edit(own / "affects.toml", ('reads = ["teams", "tokens"]', reads))
    with (own / "affects.toml").open("a") as file:
        file.write(f"\n{entry}\n")
    assert wrong(examine(own, address(empty), "public", partial(scratch.set_up, empty.url()))) == []
    assert sorted((own / "affects.toml").read_text().split()) == sorted(text.split())


def test_an_entry_goes_by_the_table_that_is_referred_to(empty: Database, own: Path) -> None:
    """A table that has an endpoint's parent, with the memory of its rows: typed as it says, all is found."""
    edit(
        own / "schema.sql",
        ("secret TEXT NOT NULL", "note TEXT"),
    )
    with (own / "schema.sql").open("a") as file:
        file.write("CREATE TABLE members (id BIGINT PRIMARY KEY, team_id BIGINT REFERENCES teams, name TEXT)")
    names = "(SELECT array_agg(members.name) FROM members WHERE members.team_id = teams.id)"
    edit(own / "queries.sql", ("NULL::TEXT[]", names), ("tokens.secret", "tokens.note"))
    (own / "sample.sql").unlink()
    scratch.fill(empty.url(), own, "public")
    [(_, _, remedy)] = wrong(examine(own, address(empty), "public"))
    entry, _, query = remedy.partition("\nand to queries.sql:\n")
    reads, _, entry = entry.removeprefix("write in affects.toml: ").partition("\n")
    edit(own / "affects.toml", ('reads = ["tiers", "teams", "tokens"]', reads))
    for name, text in (("affects.toml", entry), ("queries.sql", query)):
        with (own / name).open("a") as opened:
            opened.write(f"\n{text}\n")
    edit(own / "setup.sql", (':"schema".tokens TO', ':"schema".tokens, :"schema".members TO'))
    assert 'query = "EndpointsOfTeams"\nrow = "id"\nparents = "ParentsOfMembers"' in entry
    set_up = partial(scratch.set_up, empty.url())
    found = wrong(examine(own, address(empty), "public", set_up))
    assert found == [], found


@pytest.mark.parametrize(
    ("file", "changes", "says", "types"),
    [
        (  # a condition that hides what is to be deleted
            "queries.sql",
            [
                (
                    "FROM tokens\nWHERE",
                    "FROM tokens\nINNER JOIN teams ON teams.id = tokens.team_id AND NOT teams.closed\nWHERE",
                )
            ],
            "an update of teams.closed altered the endpoint 00000000-0000-0000-0000-00000000000",
            "the entries for teams (EndpointsOfTeams by id)",
        ),
        (  # a second way from a table to endpoints
            "queries.sql",
            [("tiers.name = teams.tier", "tiers.name = coalesce(teams.tier, 'small')")],
            "an update of tiers.calls_a_second altered the endpoint 00000000-0000-0000-0000-000000000004",
            "the entries for tiers (EndpointsOfTiers by name)",
        ),
        (  # the wrong column
            "affects.toml",
            [('table = "tokens"\ncolumn = "id"', 'table = "tokens"\ncolumn = "secret"')],
            "an insert or delete of a row of tokens altered the endpoint",
            "the entries for tokens (EndpointsOfTokens by secret)",
        ),
        (  # the wrong query
            "affects.toml",
            [('query = "EndpointsOfTeams"', 'query = "EndpointsOfTokens"')],
            "an update of teams.closed altered the endpoint",
            "EndpointsOfTokens by id",
        ),
    ],
    ids=["condition", "second-way", "column", "query"],
)
def test_changes_that_are_missed(
    empty: Database, own: Path, file: str, changes: list[tuple[str, str]], says: str, types: str
) -> None:
    edit(own / file, *changes)
    found = [one for one in wrong(on_scratch(own, empty.url(), "public")) if one[0] == "changes"]
    assert any(says in fault and types in remedy for _, fault, remedy in found), found


def site(database: Database, reading: Queried) -> Site:
    return Site(
        source=address(database),
        database=reading,
        queries=server_queries(),
        schema="public",
        slot_name="",
        publication_name="",
    )


def test_keys_in_a_column_do_not_find_what_is_gone(empty: Database, own: Path) -> None:
    """Where the text of the query does not show that a table takes endpoints away, the changes do."""
    scratch.fill(empty.url(), own, "public")
    mapping = replace(load(str(own)), key_columns={"EndpointsOfTeams": "account_id"})
    with closing(Queried(address(empty), mapping, "public", encode)) as reading:
        found = [
            ("", one) for one in trial_of_changes.changes(site(empty, reading), frozenset(), trusted=True)
        ]
    assert [remedy for _, _, remedy in wrong(found)] == 3 * [
        "take EndpointsOfTeams out of key_columns, in affects.toml: it cannot find endpoints that are gone"
    ]


def test_a_result_with_an_id_twice_and_without_one(empty: Database, own: Path) -> None:
    edit(own / "queries.sql", ("tokens.id AS endpoint_id,", "nullif(teams.tier, 'large') AS endpoint_id,"))
    found = wrong(on_scratch(own, empty.url(), "public"))
    assert [fault for check, fault, _ in found if check == "ids"] == [
        "the query Endpoints: endpoint_id small comes in 2 rows",
        "the query Endpoints: endpoint_id is NULL in 2 rows",
    ]


def test_types_and_columns_that_are_not_there(empty: Database, own: Path) -> None:
    edit(
        own / "queries.sql", ("tiers.calls_a_second AS throughput_limit", "teams.closed AS throughput_limit")
    )
    [(check, fault, _)] = wrong(on_scratch(own, empty.url(), "public"))
    assert (check, fault.split(" is ")[1]) == ("column_types", "boolean, not a number")
    edit(own / "queries.sql", ("teams.closed AS throughput_limit", "tiers.calls_a_second"))
    [(check, fault, remedy)] = wrong(examine(own, address(empty), "public"))
    assert (check, fault) == ("statements", "the query Endpoints returns no column throughput_limit")
    assert "`... AS throughput_limit`" in remedy
    edit(own / "queries.sql", ("tokens.id AS endpoint_id,", ""))
    [(check, fault, _)] = wrong(examine(own, address(empty), "public"))
    assert fault == "the query Endpoints returns no column endpoint_id, throughput_limit"
    edit(own / "queries.sql", ("tokens.secret AS", "tokens.password AS"))
    [(check, fault, _)] = wrong(examine(own, address(empty), "public"))
    assert (check, fault) == ("dependencies", "the query Endpoints: column tokens.password does not exist")


def test_other_ways_to_write_what_is_right(empty: Database, own: Path) -> None:
    """Columns come in any order, so it is not the first one that says how ids are compared. A table may be
    named with its schema. The last teams have no tokens: to see what a team's key alters, its new value must
    be none that a team has.
    """
    text = (own / "queries.sql").read_text()
    [columns] = re.findall(r"(?<=SELECT\n)    tokens.id AS endpoint_id,\n.*?(?=\nFROM)", text, re.DOTALL)
    edit(
        own / "queries.sql",
        (columns, ",\n".join(reversed(columns.split(",\n")))),
        ("FROM tokens\nINNER", "FROM public.tokens\nINNER"),
    )
    with (own / "sample.sql").open("a") as file:
        file.write("INSERT INTO teams SELECT generate_series(4, 9), 'small';\n")
    found = [*on_scratch(own, empty.url(), "public")]
    assert wrong(found) == wrong(found, Verdict.WARN) == []


def test_marks_of_deleted_rows_that_a_mapping_of_ones_own_ignores(empty: Database, own: Path) -> None:
    edit(own / "schema.sql", ("secret TEXT NOT NULL", "secret TEXT NOT NULL,\n    deleted_at TIMESTAMPTZ"))
    [(check, _, remedy), *_] = wrong(on_scratch(own, empty.url(), "public"))
    assert check == "soft_delete"
    assert remedy.startswith("leave out such rows of tokens by a condition in the query Endpoints; ")


def test_rows_are_made_up_as_far_as_a_key_goes(empty: Database, own: Path) -> None:
    """The key of an enum has few values. Where no row can be made up, the user is asked for some."""
    (own / "sample.sql").unlink()
    sizes = "CREATE TYPE size AS ENUM ('S', 'L');\nCREATE TABLE sizes (size size PRIMARY KEY);\nCREATE TABLE"
    edit(own / "schema.sql", ("CREATE TABLE tiers", f"{sizes} tiers"))
    scratch.fill(empty.url(), own, "public")
    assert empty.rows("SELECT size FROM sizes ORDER BY 1") == [("S",), ("L",)]
    edit(own / "schema.sql", ("PRIMARY KEY);", "PRIMARY KEY CHECK (size > 'L'));"))
    empty.execute("DROP SCHEMA public CASCADE")
    [(check, fault, remedy)] = wrong(on_scratch(own, empty.url(), "public"))
    assert check == "schema"
    assert "no rows can be made up for sizes (new row for relation" in fault
    assert remedy == "write INSERT statements into it, with rows of which Endpoints finds some"


def test_a_query_that_can_use_no_index_is_named(empty: Database, own: Path) -> None:
    """Whether setup.sql has none, or the query compares something else than the column."""
    edit(own / "queries.sql", ("tokens.team_id = ANY(@keys", "tokens.team_id + 0 = ANY(@keys"))
    [(check, fault, _)] = wrong(on_scratch(own, empty.url(), "public"), Verdict.WARN)
    assert (check, fault.partition(":")[0]) == (
        "indexes",
        "the query EndpointsOfTeams has no index to find rows of tokens",
    )
    (own / "setup.sql").write_text("")
    empty.execute("DROP SCHEMA public CASCADE")
    faults = [fault for _, fault, _ in wrong(on_scratch(own, empty.url(), "public"), Verdict.WARN)]
    named = {name for fault in faults for name in re.findall(r"the query (\w+) has no index", fault)}
    assert named == {"EndpointsOfTeams", "EndpointsOfTiers"}


def test_views_and_functions(empty: Database, own: Path) -> None:
    """Views are seen through, and so are bodies that the catalog has; of other functions it is said."""
    edit(
        own / "schema.sql",
        ("CREATE TABLE tiers", "CREATE TABLE bonuses (tier TEXT, calls INT);\nCREATE TABLE tiers"),
    )
    edit(
        own / "queries.sql",
        ("NULL::INT AS cap", ':"schema".of_tier(tiers.name) + :"schema".nobody_knows() AS cap'),
        ("LEFT JOIN tiers", 'LEFT JOIN :"schema".slow_tiers AS tiers'),
    )
    edit(own / "affects.toml", ('reads = ["tiers", ', "reads = ["))
    scratch.fill(empty.url(), own, "public")
    empty.execute("""
        CREATE VIEW slow_tiers AS SELECT * FROM tiers WHERE calls_a_second < 9;
        CREATE FUNCTION nobody_knows() RETURNS INT LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;
        CREATE FUNCTION of_tier(tier TEXT) RETURNS INT STABLE LANGUAGE sql BEGIN ATOMIC
            SELECT max(bonuses.calls) FROM bonuses WHERE bonuses.tier = of_tier.tier; END
    """)
    found = [*examine(own, address(empty), "public")]
    faults = [fault for _, fault, _ in wrong(found)]
    assert any("reads bonuses (tier, calls), which `reads`" in fault for fault in faults), faults
    assert any("reads tiers (name, calls_a_second), which `reads`" in fault for fault in faults)
    assert any("reads slow_tiers" in fault and "a view" in fault for fault in faults)
    [(_, unknown, _)] = wrong(found, Verdict.WARN)
    assert (
        unknown
        == "the query Endpoints calls public.nobody_knows(), and it is unknown what this function reads"
    )


def test_tables_are_listed_in_the_order_of_their_references(empty: Database, own: Path) -> None:
    edit(own / "affects.toml", ('["tiers", "teams", "tokens"]', '["tokens", "teams", "tiers"]'))
    [(_, _, remedy)] = wrong(on_scratch(own, empty.url(), "public"), Verdict.WARN)
    assert remedy == 'write in affects.toml: reads = ["tiers", "teams", "tokens"]'


# --- on a given database


def test_a_given_database_is_left_as_it_is(
    empty: Database, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is written, no trigger runs, and while changes are tried no table of its is locked."""
    empty.execute(f"""
        {(own / "schema.sql").read_text()}
        INSERT INTO tiers SELECT 'tier ' || n, n FROM generate_series(1, 200) AS n;
        INSERT INTO teams SELECT n, 'tier ' || 1 + n % 200 FROM generate_series(1, 3000) AS n;
        INSERT INTO tokens SELECT gen_random_uuid(), 1 + n % 3000, 'k' || n FROM generate_series(1, 9000) n;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'written to'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON tokens EXECUTE FUNCTION refuse();
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON teams EXECUTE FUNCTION refuse()
    """)
    mapping = load(str(own))
    empty.set_up(mapping)
    everything = "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM {} AS t"
    before = [empty.value(everything.format(table)) for table in ("teams", "tokens")]
    locked: list[object] = []
    run = trial_of_changes.Changes.run

    def looking(self: trial_of_changes.Changes) -> None:
        ours = "ARRAY['tiers', 'teams', 'tokens']::regclass[]"
        locked.extend(empty.rows(f"SELECT mode FROM pg_locks WHERE relation = ANY ({ours})"))
        run(self)
        locked.append("looked")

    monkeypatch.setattr(trial_of_changes.Changes, "run", looking)
    found = [*examine(own, address(empty), "public")]
    assert wrong(found) == wrong(found, Verdict.WARN) == []
    assert locked == ["looked"]
    [[_, said]] = [one for one in found if one[0] == "changes"]
    assert int(re.findall(r"with (\d+) endpoints", said.text)[0]) >= 20
    assert [empty.value(everything.format(table)) for table in ("teams", "tokens")] == before
    assert empty.rows("SELECT FROM pg_class WHERE relname LIKE 'pads_cdc%' OR relpersistence = 't'") == []


def test_who_waits_for_a_lock_gives_up(empty: Database, own: Path) -> None:
    scratch.fill(empty.url(), own, "public")
    with empty.connect().cursor() as other:
        other.execute("BEGIN; LOCK TABLE teams")
        with pytest.raises(SourceError, match="another session holds a lock"):
            list(examine(own, address(empty), "public"))
        other.execute("ROLLBACK")


@pytest.mark.soak
def test_a_search_that_takes_too_long_is_done_without(empty: Database, own: Path) -> None:
    edit(own / "queries.sql", ("tokens.secret AS secret_key", "tokens.secret || pg_sleep(0.3) AS secret_key"))
    scratch.fill(empty.url(), own, "public")
    empty.execute("INSERT INTO tokens SELECT gen_random_uuid(), 1, 'k' FROM generate_series(1, 100)")
    with (
        closing(Queried(address(empty), load(str(own)), "public", encode)) as reading,
        closing(reading.address.connect()) as connection,
        rolled_back(connection, "DATABASE") as cursor,
    ):
        copies = Copies(site(empty, reading), cursor, trusted=True)
        began = time.monotonic()
        copies.make()
        assert 5 <= time.monotonic() - began < 8
        assert len(copies.rows("tokens")) == 60


def test_a_very_long_row_is_not_copied(empty: Database, own: Path) -> None:
    """Neither from a small table, whose rows are all copied, nor from one that is searched."""
    scratch.fill(empty.url(), own, "public")
    for more in (0, 100):
        empty.execute(
            "INSERT INTO tokens SELECT gen_random_uuid(), 1, 'k' FROM generate_series(1, %s);"
            "INSERT INTO tokens SELECT gen_random_uuid(), 1, repeat('k', 2000000)",
            [more],
        )
        with (
            closing(Queried(address(empty), load(str(own)), "public", encode)) as reading,
            closing(reading.address.connect()) as connection,
            rolled_back(connection, "DATABASE") as cursor,
        ):
            copies = Copies(site(empty, reading), cursor, trusted=True)
            copies.make()
            rows = copies.rows("tokens")
        assert rows
        assert all(len(value or "") < 1_000 for _, values in rows for value in values)


def test_without_the_right_to_make_temporary_tables(empty: Database, own: Path) -> None:
    scratch.fill(empty.url(), own, "public")
    role = empty.create_role()
    empty.execute(
        f"REVOKE TEMPORARY ON DATABASE {empty.name} FROM PUBLIC; GRANT pg_read_all_data TO {role.name}"
    )
    look = partial(examine, own, Address(partial(empty.url, *role), "DATABASE"), "public")
    to_type = f'GRANT TEMPORARY ON DATABASE "{empty.name}" TO "{role.name}";'
    with pytest.raises(Refusal, match=f"{to_type}$"):
        list(look())
    empty.execute(to_type)
    assert not wrong(look())


def test_on_a_standby(standby17: Replicated, database_factory: DatabaseFactory) -> None:
    database = database_factory(cluster=standby17.primary)
    standby17.wait_replayed()
    with pytest.raises(Refusal, match="DATABASE leads to a standby"):
        list(examine(ROOT / "sql/grove", address(database.on(standby17.standby)), "public"))


def test_through_a_pooler(empty: Database, own: Path, pooler: PoolerFactory) -> None:
    """In transaction mode, whose sessions others share: the same is found, and nothing is left there."""
    scratch.fill(empty.url(), own, "public")
    edit(own / "queries.sql", ("ANY(@keys::BIGINT[])", "ANY(@keys::BIGINT[]) AND tokens.secret = 'key 1'"))
    url = pooler(empty, empty.cluster.port)
    with closing(psycopg2.connect(url)) as session, session.cursor() as other:
        session.autocommit = True
        for table in ("pg_class", "pg_depend"):
            other.execute(f"CREATE TEMPORARY TABLE {table} ()")
        directly = [*examine(own, address(empty), "public")]
        assert wrong(directly)[0][0] == "changes"
        for _ in range(2):
            assert [*examine(own, Address(lambda: url, "DATABASE"), "public")] == directly
    left = "SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind IN ('r', 'v') ORDER BY 1"
    assert empty.rows(left) == [("pg_class",), ("pg_depend",)]


# --- the command


def test_the_command(pads_cdc: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """`mapping new`, then `mapping test` on a server that it starts, and that is gone afterwards."""
    own = tmp_path / "own"
    written = pads_cdc("mapping", "new", str(own))
    assert (written.returncode, written.stderr) == (0, "")
    assert sorted(path.name for path in own.iterdir()) == sorted(FILES)
    (own / "queries.sql").unlink()
    (own / "sample.sql").write_text("-- mine")
    again = pads_cdc("mapping", "new", str(own))
    assert again.returncode == 2
    assert "schema.sql, affects.toml, setup.sql, sample.sql" in again.stderr
    assert not (own / "queries.sql").exists()
    shutil.copy(TEMPLATE / "queries.sql", own)
    (own / "sample.sql").unlink()
    tested = pads_cdc("mapping", "test", str(own), "--json")
    assert (tested.returncode, tested.stderr) == (0, ""), tested.stdout
    assert {one["verdict"] for one in json.loads(tested.stdout)["findings"]} == {"pass"}


def test_the_command_on_a_database(
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]], empty: Database, own: Path
) -> None:
    scratch.fill(empty.url(), own, "public")
    edit(own / "affects.toml", ('reads = ["tiers", ', "reads = ["))
    tested = pads_cdc("mapping", "test", str(own), "--database", empty.url())
    assert tested.returncode == 1
    lines = tested.stdout.splitlines()
    assert lines[1] == '      write in affects.toml: reads = ["tiers", "teams", "tokens"]'
    assert empty.cluster.password not in tested.stdout + tested.stderr
    nowhere = pads_cdc("mapping", "test", str(own / "none"))
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
