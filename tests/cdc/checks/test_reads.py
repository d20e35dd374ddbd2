"""Which tables do the queries of a mapping read? Postgres' locks say it, also where the text does not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from cdc.checks import NECESSARY, Verdict
from cdc.checks.mapping import reads
from tests.plugins.postgres import site_of
from tests.support import BUNDLED, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from cdc.checks import Finding
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated

UNLISTED = """
CREATE TABLE bonus (plan_type TEXT, relays INT, PRIMARY KEY (plan_type));
CREATE SCHEMA elsewhere;
CREATE TABLE elsewhere.bonus (LIKE bonus);
CREATE FUNCTION bonuses() RETURNS SETOF bonus STABLE LANGUAGE sql AS 'SELECT * FROM public.bonus';
CREATE MATERIALIZED VIEW bonus_summary AS SELECT * FROM bonus
"""
ADD = 'add "bonus" to `reads`, and an [[affects]] entry'


def found(database: Database, mapping: str, needed: tuple[str, ...] = ()) -> list[Finding]:
    """Return what the check says of a mapping; the checks that it needs pass."""
    with site_of(database.url(), mapping) as site:
        for check in NECESSARY:
            if check.name in needed:
                assert not [one for one in check.ask(site) if one.verdict is Verdict.FAIL]
        return list(reads(site))


def joining(tmp_path: Path, joined: str) -> str:
    """Return a mapping as grove, whose limits come from something else as well."""
    folder = shutil.copytree(ROOT / "sql/grove", tmp_path / "own", dirs_exist_ok=True)
    text = (ROOT / "sql/grove/queries.sql").read_text()
    text = text.replace("pay_plans.monthly_relay_limit AS", "bonus.relays AS").rstrip().removesuffix(";")
    joins = f"{text}\nLEFT JOIN {joined} AS bonus ON bonus.plan_type = accounts.plan_type;\n"
    (folder / "queries.sql").write_text(joins)
    return str(folder)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_mappings_read_what_they_list(name: str, database_factory: DatabaseFactory) -> None:
    [finding] = found(database_factory(name), name)
    assert finding.verdict is Verdict.PASS


def test_tables_that_only_postgres_knows_to_be_read(database: Database, tmp_path: Path) -> None:
    database.execute(UNLISTED)
    for joined, says, remedy in (
        (':"schema".bonus', '"public"."bonus"', ADD),
        ("elsewhere.bonus", '"elsewhere"."bonus"', "move it to public"),
        (':"schema".bonuses()', '"public"."bonus"', ADD),
        (':"schema".bonus_summary', '"public"."bonus_summary"', "query the tables behind it"),
    ):
        [finding] = found(database, joining(tmp_path, joined), ("statements",))
        assert finding.verdict is Verdict.FAIL, joined
        assert finding.text.startswith(
            f"the query Endpoints reads {says}, which `reads` of affects.toml leaves"
        )
        assert remedy in finding.remedy


def test_a_signal_table_that_is_read(database: Database, tmp_path: Path) -> None:
    [finding] = found(
        database,
        joining(
            tmp_path,
            '(SELECT is_delete::TEXT AS plan_type, 1 AS relays FROM :"schema".portal_application_changes)',
        ),
    )
    assert 'move "portal_application_changes" from `signals` to `reads`' in finding.remedy


def test_it_is_known_on_a_standby(
    standby17: Replicated, database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    database = database_factory(cluster=standby17.primary)
    database.execute(UNLISTED)
    standby17.wait_replayed()
    [finding] = found(database.on(standby17.standby), joining(tmp_path, ':"schema".bonus'))
    assert '"public"."bonus"' in finding.text


def test_partitions_are_in_reads_with_their_table(database: Database) -> None:
    database.execute("""
        ALTER TABLE pay_plans RENAME TO some_plans;
        CREATE TABLE pay_plans (LIKE some_plans) PARTITION BY LIST (plan_type);
        CREATE TABLE free_plans PARTITION OF pay_plans FOR VALUES IN ('free');
        CREATE TABLE other_plans PARTITION OF pay_plans DEFAULT
    """)
    [finding] = found(database, "grove")
    assert finding.verdict is Verdict.PASS
