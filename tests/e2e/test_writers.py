"""What docs/operate.md says a writer or a migration can wait for, where no other test has one beside it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_losses import wait_healthy
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support import ROOT
from tests.support.repeated import MOST, repeated

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory

WRITE = "UPDATE accounts SET plan_type = plan_type WHERE id = 'acc_1'"
RIPPLE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1"


def took(database: Database, statement: str) -> float:
    began = time.monotonic()
    database.execute(statement)
    return time.monotonic() - began


def test_a_slot_that_is_being_made_keeps_nobody_waiting(database: Database, serve: ServerFactory) -> None:
    """It waits for a transaction that runs, and nobody waits for it."""
    fill(database, 100)
    running = database.connect()
    running.autocommit = False
    running.cursor().execute("INSERT INTO portal_application_changes (portal_app_id) VALUES ('app_1')")
    with repeated(database.url(), WRITE) as writer:
        server = serve(database)
        making = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'active' AND query LIKE 'CREATE_REPLICATION_SLOT%'
        """
        wait_until(lambda: database.value(making) == 1, "the slot is being made")
        for migration in (
            "ALTER TABLE accounts ADD COLUMN note TEXT",
            "CREATE INDEX CONCURRENTLY ON accounts (note)",
            "VACUUM FULL accounts",
        ):
            assert took(database, migration) < MOST, migration
        writer.goes_on()
        assert database.value(making) == 1
        running.rollback()
        wait_healthy(server.wait_ready())


@pytest.mark.soak
@pytest.mark.own_cluster
def test_a_server_that_is_idle_holds_back_no_vacuum(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """Neither by a snapshot nor by its slot, whose ``catalog_xmin`` follows what is confirmed."""
    fill(database, 100)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    held = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'pads-cdc' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
            AND backend_type <> 'walsender' AND state <> 'active'
    """
    database.execute("CREATE TABLE others (id INT); INSERT INTO others VALUES (1)")
    with repeated(database.url(), "UPDATE others SET id = id") as writer:
        for _ in range(3):
            database.execute(RIPPLE)
            wait_equal(client, database)
            writer.goes_on()
            wait_until(lambda: database.value(held) == 0, "the reads are over", 5)
            assert database.value("SELECT count(*) FROM pg_replication_slots WHERE xmin IS NOT NULL") == 0
        database.execute("CREATE TABLE churn (id INT)")
        database.execute("DROP TABLE churn")
        dropped = database.value("SELECT pg_current_xact_id()::text::int8")

        def let_go() -> bool:
            database.execute("CHECKPOINT")  # which logs the running transactions, by which the slot moves on
            writer.goes_on()
            return bool(
                database.value("SELECT catalog_xmin::text::int8 > %s FROM pg_replication_slots", (dropped,))
            )

        wait_until(let_go, "vacuum may remove what was dropped")


def test_each_row_of_the_table_has_a_bound_and_a_test() -> None:
    text = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
    table = text.partition("## What of ours a writer or a migration can wait for")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(.+)\|(.+)\|(.+)\|(.+)\|$", table, re.MULTILINE)[2:]
    assert len(rows) > 10
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for what, _, bound, shown in rows:
        assert bound.strip(), what
        tests = re.findall(r"`(test_\w+)`", shown)
        assert tests, what
        assert set(tests) <= written, set(tests) - written


def test_what_is_committed_during_a_pause_is_read_together(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Without a pause each commit would be read by itself, at a cost to the writers."""
    fill(database, 100)
    server = serve(database, module="tests.support.long_pauses").wait_ready()
    client = gateway(server)
    wait_healthy(server)
    rotate = "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = 'app_1'"
    reads, seen = "pads_cdc_requery_seconds_count", "pads_cdc_transactions_total"
    database.execute(rotate, ("before",))
    wait_equal(client, database)
    before = server.metric(reads), server.metric(seen)
    began = time.monotonic()
    for number in range(5):
        database.execute(rotate, (f"key {number}",))
    wait_equal(client, database)
    assert time.monotonic() - began > 1.0, "there was no pause"
    wait_until(lambda: server.metric(seen) == before[1] + 5, "all five are counted")
    assert server.metric(reads) == before[0] + 1
