"""Memory is the map plus a constant, whatever is slow, away, locked or large: at real sizes, from outside."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.figures import Figure
    from tests.plugins.postgres import Database, DatabaseFactory, Replicated
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MIB = 2**20
_PAGE = 4096
_APPLICATIONS = 2_000

_SMALL = """
DO $$ BEGIN
    FOR number IN 1..%(count)s LOOP
        UPDATE portal_application_settings SET secret_key = md5(%(round)s || number)
            WHERE application_id = 'app_' || (1 + number %% 2000);
        COMMIT;
    END LOOP;
END $$
"""
_SENT = """
SELECT sent_lsn - '0/0' FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
WHERE database = current_database()
"""
_HELD = """
SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots
WHERE database = current_database()
"""


def resident(server: Server) -> int:
    """Return the bytes of memory that the server's process has now."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * _PAGE


def commit(database: Database, transactions: int) -> None:
    """Commit so many small transactions, one after the other."""
    for start in range(0, transactions, 25_000):
        database.execute(_SMALL, {"count": min(25_000, transactions - start), "round": str(start)})
        database.execute("VACUUM portal_application_settings")


def wait_steady(server: Server, database: Database) -> None:
    """Return when the server has read all that it takes for now."""
    seen: list[int] = []

    def steady() -> bool:
        seen.append(database.value(_SENT))
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    wait_until(steady, "nothing more is sent", deadline=120)
    assert server.get("/livez")[0] == 200


def test_small_transactions_behind_a_locked_table(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """1.2 kB each were kept, without a bound: 400 MB here."""
    fill(database, _APPLICATIONS)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    with closing(database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        commit(database, 400_000)
        wait_steady(server, database)
        grown = resident(server) - before
        locking.execute("COMMIT")
    figure(f"400,000 transactions behind a locked table: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0


def test_small_transactions_behind_a_locked_table_beyond_max_retained_wal(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, figure: Figure
) -> None:
    """The slot lets go again and again, and what is owed takes no room."""
    fill(database, _APPLICATIONS)
    server = serve(database, MAX_RETAINED_WAL="32MB").wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = resident(server)
    with closing(database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        commit(database, 600_000)
        wait_until(lambda: database.value(_HELD) < 64 * MIB, "the slot lets go", deadline=120)
        grown = resident(server) - before
        locking.execute("COMMIT")
    figure(f"600,000 transactions behind a locked table, MAX_RETAINED_WAL=32MB: {grown / MIB:.0f} MiB")
    wait_equal(client, database, deadline=120)
    wait_until(lambda: server.get("/healthz")[0] == 200, "healthy")
    assert grown < 150 * MIB
    assert server.stop() == 0


def test_small_transactions_while_the_standby_that_is_queried_does_not_replay(
    standby17: Replicated,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    figure: Figure,
) -> None:
    primary = database_factory(cluster=standby17.primary)
    fill(primary, _APPLICATIONS)
    standby17.wait_replayed()
    standby = primary.on(standby17.standby)
    server = serve(primary, QUERY_CONNECTION_STRING=standby.url()).wait_ready()
    client = gateway(server)
    wait_equal(client, primary)
    before = resident(server)
    standby.rows("SELECT pg_wal_replay_pause()")
    commit(primary, 400_000)
    wait_steady(server, primary)
    grown = resident(server) - before
    standby.rows("SELECT pg_wal_replay_resume()")
    figure(f"400,000 transactions while the queried standby does not replay: {grown / MIB:.0f} MiB")
    wait_equal(client, primary, deadline=120)
    assert grown < 150 * MIB
    assert server.stop() == 0
