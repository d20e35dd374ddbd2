"""The publication on a real server: what is wrong with it, what mends it, and whom it must never stop."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping.folder import server_queries
from cdc.replication.publication import Publication
from cdc.replication.publication_plan import Kind, Repair, repairs
from tests.plugins.postgres import fetched, site_of
from tests.plugins.server import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc.checks import Site
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory

LISTS = {
    "public.accounts": {"id"},
    "public.pay_plans": {"plan_type"},
    "public.portal_applications": {"id"},
    "public.portal_application_changes": {"id", "portal_app_id"},
    "public.portal_application_settings": {"id", "application_id"},
}
TOUCH = {
    "accounts": "id",
    "pay_plans": "plan_type",
    "portal_applications": "id",
    "portal_application_settings": "application_id",
}


@pytest.fixture
def site(database: Database) -> Iterator[Callable[[], Site]]:
    """Look at the database anew."""
    with site_of(database.url()) as known:
        yield lambda: replace(known)


def planned(site: Site) -> list[Repair]:
    return repairs("pads_cdc", site.publication, site.tables, site.database.mapping)


def published(site: Site) -> dict[str, set[str]]:
    assert site.publication is not None
    return {one.name: set(one.columns) for one in site.publication.tables}


def writable(database: Database, *tables: str) -> dict[str, bool]:
    """Tell of which tables Postgres takes updates."""
    found = {}
    with closing(database.connect()) as session, session.cursor() as cursor:
        for table in tables or TOUCH:
            try:
                cursor.execute(f"UPDATE {table} SET {TOUCH.get(table, 'id')} = {TOUCH.get(table, 'id')}")
                found[table] = True
            except (psycopg2.errors.InvalidColumnReference, psycopg2.errors.ObjectNotInPrerequisiteState):
                found[table] = False
    return found


def test_it_is_made_with_key_columns_alone(database: Database, site: Callable[[], Site]) -> None:
    [repair] = planned(site())
    assert repair.kind is Kind.MISSED
    assert "secret_key" not in repair.remedy
    database.execute(repair.remedy)
    assert published(site()) == LISTS
    assert not planned(site())
    fill(database, 10)
    assert all(writable(database).values())


FULL = "ALTER TABLE {0} REPLICA IDENTITY FULL"
BY_PARENT = (
    "ALTER TABLE portal_application_settings REPLICA IDENTITY USING INDEX"
    " portal_application_settings_application_id_key"
)
PARTITIONED = """
DROP TABLE portal_application_settings, portal_applications;
CREATE TABLE portal_applications (id VARCHAR(24) PRIMARY KEY, account_id VARCHAR(10), note TEXT)
    PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF portal_applications FOR VALUES FROM (MINVALUE) TO ('m');
CREATE TABLE high (note TEXT, account_id VARCHAR(10), id VARCHAR(24) PRIMARY KEY);
ALTER TABLE portal_applications ATTACH PARTITION high FOR VALUES FROM ('m') TO (MAXVALUE);
CREATE TABLE portal_application_settings (id SERIAL PRIMARY KEY, application_id VARCHAR(24) NOT NULL,
    secret_key VARCHAR(64), secret_key_required BOOLEAN);
"""

DAMAGE: dict[str, tuple[str, Kind, str]] = {
    "a table is gone": (
        "ALTER PUBLICATION pads_cdc DROP TABLE accounts",
        Kind.MISSED,
        "leaves out public.accounts",
    ),
    "a condition": (
        (
            "ALTER PUBLICATION pads_cdc SET TABLE accounts (id) WHERE (id <> 'a'), pay_plans (plan_type),"
            " portal_applications (id), portal_application_changes (id, portal_app_id),"
            " portal_application_settings (id, application_id)"
        ),
        Kind.MISSED,
        "leaves out rows of public.accounts",
    ),
    "a column is gone": (
        (
            "ALTER PUBLICATION pads_cdc DROP TABLE portal_application_settings;"
            "ALTER PUBLICATION pads_cdc ADD TABLE portal_application_settings (id)"
        ),
        Kind.MISSED,
        "leaves out application_id of public.portal_application_settings",
    ),
    "without truncate": (
        "ALTER PUBLICATION pads_cdc SET (publish = 'insert, update, delete')",
        Kind.MISSED,
        "leaves out every TRUNCATE",
    ),
    "inserts alone": (
        "ALTER PUBLICATION pads_cdc SET (publish = 'insert')",
        Kind.MISSED,
        "leaves out every UPDATE, DELETE, TRUNCATE",
    ),
    "empty": (
        "DROP PUBLICATION pads_cdc; CREATE PUBLICATION pads_cdc",
        Kind.MISSED,
        "leaves out public.accounts",
    ),
    "an identity by another index": (
        (
            "ALTER TABLE pay_plans ADD other SERIAL UNIQUE;"
            "ALTER TABLE pay_plans REPLICA IDENTITY USING INDEX pay_plans_other_key"
        ),
        Kind.REFUSED,
        "every UPDATE and DELETE of public.pay_plans",
    ),
    "an identity of all columns": (FULL.format("accounts"), Kind.REFUSED, "DELETE of public.accounts"),
    "somebody else's table without a key": (
        "CREATE TABLE keyless (id INT); ALTER PUBLICATION pads_cdc ADD TABLE keyless",
        Kind.REFUSED,
        "DELETE of public.keyless",
    ),
    "without a list": (
        (
            "ALTER PUBLICATION pads_cdc DROP TABLE portal_application_settings;"
            "ALTER PUBLICATION pads_cdc ADD TABLE portal_application_settings"
        ),
        Kind.MORE,
        "sends secret_key, secret_key_required of public.portal_application_settings",
    ),
}


@pytest.mark.parametrize(("damage", "kind", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_is_found_and_mended(
    database: Database, site: Callable[[], Site], damage: str, kind: Kind, says: str
) -> None:
    fill(database, 10)
    database.execute(planned(site())[0].remedy)
    database.execute(damage)
    found = planned(site())
    assert [one for one in found if one.kind is kind and says in one.fault], found
    for repair in found:
        database.execute(repair.remedy)
    assert not [one for one in planned(site()) if not one.by_hand]
    assert LISTS.keys() <= published(site()).keys()
    assert all(LISTS[name] <= columns for name, columns in published(site()).items() if name in LISTS)
    assert all(writable(database).values())


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL", "NOTHING", BY_PARENT.rpartition("IDENTITY ")[2]])
@pytest.mark.parametrize("version", ["15", "18"])
def test_our_word_on_refused_updates_is_postgres_s(
    version: str, identity: str, cluster_factory: ClusterFactory, database_factory: DatabaseFactory
) -> None:
    """Any list of columns, or none; 18 has an opinion on generated columns too."""
    cluster = cluster_factory(programs=fetched(version) if version != "15" else None)
    database = database_factory(cluster=cluster)
    fill(database, 10)
    table = "portal_application_settings"
    database.execute(
        f"ALTER TABLE {table} ADD double BIGINT GENERATED ALWAYS AS (id * 2) STORED;"
        f"ALTER TABLE {table} REPLICA IDENTITY {identity}"
    )
    lists = ["", "(id)", "(application_id)", "(id, application_id)", "(id, application_id, secret_key)"]
    for columns in [*lists, "(id, application_id, secret_key, secret_key_required)"]:
        for actions in ("insert, update, delete, truncate", "insert"):
            database.execute(
                "DROP PUBLICATION IF EXISTS pads_cdc;"
                f"CREATE PUBLICATION pads_cdc FOR TABLE {table} {columns} WITH (publish = '{actions}')"
            )
            parameters = {"publication": "pads_cdc", "slot": "none", "tables": None}
            publication = Publication.of("", database.rows(server_queries()["Publication"], parameters))
            assert publication is not None
            [ours] = publication.tables
            assert ours.refuses is not writable(database, table)[table], (columns, actions)


def test_partitions_are_named_each_and_new_ones_come_by_their_table(
    database: Database, site: Callable[[], Site]
) -> None:
    database.execute(PARTITIONED)
    [repair] = planned(site())
    database.execute(repair.remedy)
    assert published(site())["public.high"] == published(site())["public.low"] == {"id"}
    database.execute("ALTER TABLE portal_applications DETACH PARTITION high")
    assert not planned(site())
    database.execute("CREATE TABLE later PARTITION OF portal_applications FOR VALUES FROM ('m') TO ('z')")
    assert published(site())["public.later"] == {"id", "account_id", "note"}, "it is sent from the start"
    [repair] = planned(site())
    assert repair.kind is Kind.MORE
    database.execute(repair.remedy)
    assert published(site())["public.later"] == {"id"}
    database.execute("ALTER PUBLICATION pads_cdc SET (publish_via_partition_root = true)")
    [repair, *_] = planned(site())
    assert "TRUNCATE of a partition" in repair.fault
    database.execute(repair.remedy)
    assert not planned(site())


def test_a_partition_that_cannot_be_published_keeps_its_table_out(
    database: Database, site: Callable[[], Site]
) -> None:
    """The table would bring it along: Postgres would refuse the partition's updates."""
    database.execute(PARTITIONED + "ALTER TABLE high REPLICA IDENTITY NOTHING")
    for _ in range(2):
        for repair in planned(site()):
            if not repair.by_hand:
                database.execute(repair.remedy)
        assert all(writable(database, "low", "high").values())
    assert published(site())["public.low"] == {"id"}
    assert "public.high" not in published(site())


def test_tables_that_inherit_are_published_each_by_its_own_identity(
    database: Database, site: Callable[[], Site]
) -> None:
    """A table's name stands for all that inherit from it: their writers would be refused by its list."""
    database.execute(
        "CREATE TABLE more_accounts (note TEXT) INHERITS (accounts);"
        "ALTER TABLE more_accounts REPLICA IDENTITY FULL;"
        "INSERT INTO pay_plans VALUES ('plan', 1, 1); INSERT INTO more_accounts VALUES ('more', 'plan', '')"
    )
    [repair] = planned(site())
    database.execute(repair.remedy)
    assert published(site()) == LISTS | {"public.more_accounts": {"id", "plan_type", "note"}}
    database.execute("UPDATE accounts SET plan_type = 'plan'")
    for damage in (
        "ALTER PUBLICATION pads_cdc DROP TABLE ONLY accounts",
        "ALTER PUBLICATION pads_cdc DROP TABLE accounts",
        "ALTER PUBLICATION pads_cdc DROP TABLE accounts; ALTER PUBLICATION pads_cdc ADD TABLE ONLY accounts",
    ):
        database.execute(damage)
        for repair in planned(site()):
            if not repair.by_hand:
                database.execute(repair.remedy)
        assert published(site())["public.accounts"] == {"id"}
        database.execute("UPDATE accounts SET plan_type = 'plan'")
    database.execute("ALTER TABLE accounts REPLICA IDENTITY DEFAULT; UPDATE more_accounts SET note = 'x'")


def test_a_table_without_an_identity_is_left_out_and_said(
    database: Database, site: Callable[[], Site]
) -> None:
    """To have its inserts would cost its writers their updates."""
    database.execute("ALTER TABLE portal_application_changes DROP CONSTRAINT portal_application_changes_pkey")
    create, keyless = planned(site())
    assert "portal_application_changes" not in create.remedy
    assert keyless.kind is Kind.MISSED
    assert keyless.by_hand
    assert "give public.portal_application_changes a primary key" in keyless.remedy
    database.execute(create.remedy)
    assert planned(site()) == [keyless]
    database.execute("ALTER TABLE portal_application_changes ADD PRIMARY KEY (id)")
    [add] = planned(site())
    database.execute(add.remedy)
    assert not planned(site())


def test_identities_that_are_chosen_later_are_covered_before(
    database: Database, site: Callable[[], Site]
) -> None:
    """Else Postgres would refuse updates from the choice on."""
    fill(database, 10)
    database.execute(
        "ALTER TABLE pay_plans ADD other INT UNIQUE; UPDATE pay_plans SET other = throughput_limit;"
        "ALTER TABLE pay_plans ALTER other SET NOT NULL"
    )
    database.execute(planned(site())[0].remedy)
    now = site()
    [plans] = [table.oid for table in now.tables if table.mapped == "pay_plans"]
    [repair] = repairs("pads_cdc", now.publication, now.tables, now.database.mapping, {plans: ("other",)})
    database.execute(repair.remedy)
    database.execute("ALTER TABLE pay_plans REPLICA IDENTITY USING INDEX pay_plans_other_key")
    assert all(writable(database).values())


def test_for_all_tables(database: Database, site: Callable[[], Site]) -> None:
    database.execute("CREATE TABLE keyless (id INT); CREATE PUBLICATION pads_cdc FOR ALL TABLES")
    found = planned(site())
    assert {one.kind for one in found} == {Kind.REFUSED, Kind.MORE}
    assert all(one.by_hand for one in found), "what it is for besides is not ours to know"
    assert "public.keyless" in found[0].fault
