"""`pads-cdc check` about the plugin and the publication, with its remedies typed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.mapping.mapping import load
from cdc.replication.publication_plan import Kind
from tests.cdc.replication.test_publication import DAMAGE, FULL
from tests.plugins.server import fill

if TYPE_CHECKING:
    from server.commands.demo.programs import Programs
    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory

pytestmark = pytest.mark.only_with("pgoutput")

CHECKS = {
    Kind.MISSED: ("publication", "fail"),
    Kind.REFUSED: ("refused_changes", "fail"),
    Kind.MORE: ("published_columns", "warn"),
}


@pytest.fixture
def ready(database: Database) -> Database:
    """A database in which nothing is left to find but what every test cluster has."""
    fill(database, 6)
    database.set_up(load("grove"))
    return database


def test_a_database_that_is_ready(ready: Database, check: Check) -> None:
    report = check(ready)
    assert report.not_passed() == ["role", "max_slot_wal_keep_size"]  # as a superuser, with no limit
    assert "pgoutput can be loaded" in report.the("plugin", "pass").text
    assert report.the("published_columns", "pass").text.startswith("only keys")


@pytest.mark.parametrize(("damage", "kind", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_remedy_mends_what_was_found(
    ready: Database, check: Check, damage: str, kind: Kind, says: str
) -> None:
    ready.execute("ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT")  # as `DAMAGE` has it
    ready.execute(damage)
    name, verdict = CHECKS[kind]
    findings = [one for one in check(ready).of(name) if says in one.text]
    assert [one.verdict for one in findings] == [verdict]
    for _ in range(5):  # the next fault of a publication that has several is found in turn
        again = [one for one in check(ready).of(name) if one.verdict == verdict]
        if not again or "pads-cdc setup" in again[0].remedy:
            break
        ready.execute(again[0].remedy)
    assert check(ready).code == 0


def test_an_identity_of_all_columns_puts_keys_into_the_stream(ready: Database, check: Check) -> None:
    ready.execute(FULL.format("portal_application_settings"))
    ready.publish()
    finding = check(ready).the("published_columns", "warn")
    assert "sends secret_key, secret_key_required of public.portal_application_settings" in finding.text
    assert "REPLICA IDENTITY FULL allows no list" in finding.text
    remedy, _, and_then = finding.remedy.partition("; and ")
    assert and_then == "run pads-cdc setup"
    ready.execute(remedy)
    ready.publish()
    assert check(ready).the("published_columns", "pass")


def test_for_all_tables(ready: Database, check: Check) -> None:
    ready.execute("CREATE TABLE keyless (id INT); DROP PUBLICATION pads_cdc")
    ready.execute("CREATE PUBLICATION pads_cdc FOR ALL TABLES")
    report = check(ready)
    assert report.the("publication", "pass"), "nothing is left out"
    assert "public.keyless" in report.the("refused_changes", "fail").text
    finding = report.the("published_columns", "warn")
    assert "API keys among them" in finding.text
    ready.execute(finding.remedy.partition(";")[0])
    ready.publish()
    assert check(ready).code == 0


def test_another_publication(ready: Database, check: Check) -> None:
    finding = check(ready, PUBLICATION="other").the("publication", "fail")
    assert finding.text == "there is no publication other"
    ready.execute(finding.remedy)
    assert check(ready, PUBLICATION="other").code == 0


def test_auto_prefers_wal2json_where_it_is_loaded(ready: Database, check: Check) -> None:
    report = check(ready, PLUGIN="auto")
    assert "wal2json can be loaded" in report.the("plugin", "pass").text
    assert report.the("publication", "pass").text == "not needed: the plugin is wal2json"


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
def test_auto_keeps_the_plugin_of_the_slot(ready: Database, check: Check, plugin: str) -> None:
    ready.execute("SELECT pg_create_logical_replication_slot('pads_cdc', %s)", (plugin,))
    report = check(ready, PLUGIN="auto")
    assert report.the("plugin", "pass").text.startswith(plugin)
    assert report.the("slot", "pass")
    ready.unpublish()
    assert check(ready, PLUGIN="auto").code == (plugin == "pgoutput")
    other = "pgoutput" if plugin == "wal2json" else "wal2json"
    finding = check(ready, PLUGIN=other).the("slot", "fail")
    assert f"is not ours: it is logical, for the plugin {plugin}" in finding.text
    assert f"PLUGIN={plugin}" in finding.remedy


def test_without_either_both_remedies_are_named(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, programs17: Programs, check: Check
) -> None:
    cluster = cluster_factory({"output_plugin_libraries": "pgoutput, test_decoding"}, programs=programs17)
    database = database_factory(cluster=cluster)
    database.unpublish()
    report = check(database, PLUGIN="auto")
    for name in ("output_plugin_libraries", "publication"):
        finding = report.the(name, "fail")
        assert "wal2json" in finding.text
        assert "pads-cdc setup" in finding.remedy
        assert "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'" in finding.remedy
    assert report.the("plugin", "skip")
    database.publish()
    report = check(database, PLUGIN="auto")
    assert report.code == 0
    assert report.the("plugin", "pass").text == "pgoutput can be loaded"
    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'pgoutput')")
    assert check(database, PLUGIN="auto").code == 0
