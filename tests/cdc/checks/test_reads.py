"""Which tables do the queries of a mapping read? Postgres says it, by locks and by dependencies of views."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.checks import NECESSARY, Verdict, preflight
from cdc.checks.dependencies import reads
from cdc.errors import Refusal, SourceError
from tests.plugins.postgres import site_of
from tests.support import BUNDLED, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from cdc.checks import Finding
    from tests.plugins.pgbouncer import PoolerFactory
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated

by_views = pytest.mark.parametrize("makes_views", [True, False], ids=["check", "serve"])
UNLISTED = """
CREATE TABLE bonus (plan_type TEXT, relays INT, PRIMARY KEY (plan_type));
CREATE SCHEMA elsewhere;
CREATE TABLE elsewhere.bonus (LIKE bonus);
CREATE FUNCTION bonuses() RETURNS SETOF bonus STABLE LANGUAGE sql AS 'SELECT * FROM public.bonus';
CREATE FUNCTION most() RETURNS INT LANGUAGE sql BEGIN ATOMIC SELECT max(relays) FROM bonus; END;
CREATE FUNCTION called(INT) RETURNS SETOF bonus LANGUAGE sql BEGIN ATOMIC SELECT 'free', $1 + most(); END;
CREATE MATERIALIZED VIEW bonus_summary AS SELECT * FROM bonus
"""
REFUSING = """
CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no DDL by day'; END $$;
CREATE EVENT TRIGGER {0} ON ddl_command_start EXECUTE FUNCTION no_ddl()
"""
ALL = "affects.toml lists all tables that the queries read; which of their columns is unknown: "
COLUMNS = "Endpoints reads accounts (id, plan_type), pay_plans (plan_type, "


def found(
    url: str, mapping: str = "grove", needed: tuple[str, ...] = (), *, makes_views: bool = True
) -> list[Finding]:
    """Return what the check says of a mapping; the checks that it needs pass."""
    with site_of(url, mapping, makes_views=makes_views) as site:
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
    [finding] = found(database_factory(name).url(), name)
    assert finding.verdict is Verdict.PASS
    assert finding.text.startswith("Endpoints reads ")


@by_views
@pytest.mark.parametrize(
    ("joined", "fault", "remedy"),
    [
        (':"schema".bonus', "bonus{}, which `reads` of affects.toml leaves out", '"bonus"]\n[[affects]]\n'),
        ("elsewhere.bonus", "bonus{} in the schema elsewhere", "move it to public"),
        (':"schema".bonuses()', "bonus{}, which `reads` of affects.toml leaves out", 'table = "bonus"\n'),
        (':"schema".called(1)', "bonus{}, which `reads`", 'column = "plan_type"\n'),
        (':"schema".bonus_summary', "bonus_summary{}: a materialized view", "query the tables behind it"),
    ],
    ids=["table", "schema", "inlined", "body", "view"],
)
def test_what_a_query_reads_unlisted(
    database: Database, tmp_path: Path, joined: str, fault: str, remedy: str, makes_views: bool
) -> None:
    """Each is a fault for `serve`, too, whose checks write nothing. A view names the columns."""
    database.execute(UNLISTED)
    mapping = joining(tmp_path, joined)
    of = found(database.url(), mapping, ("statements",), makes_views=makes_views)
    finding = next(one for one in of if one.verdict is Verdict.FAIL)
    says = fault.format(" (plan_type, relays)" if makes_views else "")
    assert finding.text.startswith(f"the query Endpoints reads {says}")
    assert remedy in finding.remedy


def test_what_a_view_alone_shows(database: Database, tmp_path: Path) -> None:
    """An operator's function is named nowhere in the query."""
    database.execute(f"""
        {UNLISTED};
        CREATE FUNCTION or_most(TEXT, TEXT) RETURNS TEXT LANGUAGE sql BEGIN ATOMIC SELECT $1 || most(); END;
        CREATE OPERATOR ### (LEFTARG = TEXT, RIGHTARG = TEXT, FUNCTION = or_most)
    """)
    values = "(VALUES ('free'::TEXT OPERATOR(public.###) 'x'::TEXT, 1))"
    mapping = joining(tmp_path, f"(SELECT * FROM {values} AS v (plan_type, relays))")
    [finding] = found(database.url(), mapping)
    assert finding.text.startswith("the query Endpoints reads bonus (relays), which `reads`")
    [finding] = found(database.url(), mapping, makes_views=False)
    assert finding.verdict is Verdict.PASS


@by_views
def test_a_signal_table_that_is_read(database: Database, tmp_path: Path, makes_views: bool) -> None:
    changes = '(SELECT is_delete::TEXT AS plan_type, 1 AS relays FROM :"schema".portal_application_changes)'
    [finding] = found(database.url(), joining(tmp_path, changes), makes_views=makes_views)
    assert finding.remedy == 'move "portal_application_changes" from `signals` to `reads`, in affects.toml'


def test_it_is_known_on_a_standby(
    standby17: Replicated, database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    """No view can be made there. `check` says so, and the locks say which tables are missing."""
    database = database_factory(cluster=standby17.primary)
    database.execute(UNLISTED)
    standby17.wait_replayed()
    url = database.on(standby17.standby).url()
    for joined in (':"schema".bonus', ':"schema".called(1)'):
        [finding] = found(url, joining(tmp_path, joined))
        assert finding.text.startswith("the query Endpoints reads bonus, which `reads` of")
    [finding] = found(url)
    assert finding.verdict is Verdict.PASS
    assert finding.text.startswith(f"{ALL}POSTGRES_CONNECTION_STRING leads to a standby")


# --- where no view can be made, and what making one costs others


def test_without_the_right_to_make_temporary_views(database: Database) -> None:
    """A read-only default of the role is no such right: what the check makes is rolled back."""
    role = database.create_role("REPLICATION")
    database.execute(f"""
        GRANT pg_read_all_data TO {role.name};
        ALTER ROLE {role.name} SET default_transaction_read_only = on
    """)
    [finding] = found(database.url(*role))
    assert finding.text.startswith(COLUMNS)
    database.execute(f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC")
    [finding] = found(database.url(*role))
    assert (finding.verdict, finding.text) == (
        Verdict.PASS,
        f"{ALL}{role.name} may not make temporary tables",
    )


def test_what_serve_asks_before_it_starts_is_no_ddl(database: Database, tmp_path: Path) -> None:
    """An event trigger refuses all DDL: `serve` does not notice; `check` says why it knows no columns."""
    database.execute(UNLISTED + ";" + REFUSING.format(database.name))
    mapping = joining(tmp_path, ':"schema".called(1)')
    with ExitStack() as sites:
        preflight.check(lambda: sites.enter_context(site_of(database.url())))
        with pytest.raises(Refusal) as refused:
            preflight.check(lambda: sites.enter_context(site_of(database.url(), mapping)))
    assert "reads bonus, which `reads` of affects.toml leaves out" in str(refused.value)
    assert str(refused.value).endswith('"bonus"] (`pads-cdc check` shows all of it)')
    [finding] = found(database.url())
    assert finding.verdict is Verdict.PASS
    assert finding.text.startswith(f"{ALL}no view of the query Endpoints")
    assert finding.text.endswith(" can be made: no DDL by day")


def test_through_a_pooler(database: Database, pooler: PoolerFactory) -> None:
    """Whose sessions others share, with temporary tables of theirs. Nothing stays behind in one."""
    url = pooler(database, database.cluster.port)
    with closing(psycopg2.connect(url)) as session, session.cursor() as other:
        session.autocommit = True
        for table in ("pg_class", "pg_depend", "accounts"):
            other.execute(f"CREATE TEMPORARY TABLE {table} ()")
        for _ in range(8):
            [finding] = found(url)
            assert finding.text.startswith(COLUMNS)
    assert database.rows("SELECT FROM pg_class WHERE relname LIKE 'pads_cdc%' AND relkind = 'v'") == []


def test_a_migration_goes_first(database: Database) -> None:
    """Its lock is waited for as long as by any read of ours, and the check is to be made again."""
    with database.connect().cursor() as other:
        other.execute("BEGIN; LOCK TABLE accounts")
        with pytest.raises(SourceError, match="another session holds a lock"):
            found(database.url())
        other.execute("ROLLBACK")


def test_partitions_are_in_reads_with_their_table(database: Database) -> None:
    database.execute("""
        ALTER TABLE pay_plans RENAME TO some_plans;
        CREATE TABLE pay_plans (LIKE some_plans) PARTITION BY LIST (plan_type);
        CREATE TABLE free_plans PARTITION OF pay_plans FOR VALUES IN ('free');
        CREATE TABLE other_plans PARTITION OF pay_plans DEFAULT
    """)
    [finding] = found(database.url())
    assert finding.verdict is Verdict.PASS
