"""What befalls a running server, its database, the network between them and its clients; each fault ends by
itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from cdc.replication import pgoutput
from server.commands.demo.programs import give_to_owner
from tests.plugins.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.soak import Storm

    Fault = Callable[["Storm"], None]

_OURS = "application_name = 'pads-cdc'"


def postgres_stopped_fast(storm: Storm) -> None:
    storm.cluster.restart("fast")


def postgres_stopped_immediately(storm: Storm) -> None:
    storm.cluster.restart("immediate")


def postgres_killed(storm: Storm) -> None:
    storm.cluster.crash()
    storm.cluster.start()


def postgres_frozen(storm: Storm) -> None:
    with storm.cluster.frozen():
        _linger(storm, 3)


def backends_terminated(storm: Storm) -> None:
    storm.read.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")


def queries_cancelled(storm: Storm) -> None:
    storm.read.execute(f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {_OURS}")


def connections_cut(storm: Storm) -> None:
    storm.proxy.cut()


def network_stalled(storm: Storm) -> None:
    storm.proxy.stalled = True
    _linger(storm, 3)
    storm.proxy.stalled = False


def network_down(storm: Storm) -> None:
    storm.proxy.refusing = True
    storm.proxy.cut()
    _linger(storm, 4)
    storm.proxy.refusing = False


def server_stopped(storm: Storm) -> None:
    assert storm.server.stop() == 0, storm.server.output[-2000:]
    _linger(storm, 1)
    storm.start_server()


def server_killed(storm: Storm) -> None:
    storm.server.kill()
    storm.start_server()


def slot_dropped_while_down(storm: Storm) -> None:
    storm.server.kill()
    wait_until(lambda: _drop_slot(storm), "the slot is dropped")
    _linger(storm, 1)
    storm.start_server()


def slot_dropped_while_running(storm: Storm) -> None:
    wait_until(lambda: _drop_slot(storm), "the slot is dropped")


def clients_disconnected(storm: Storm) -> None:
    for client in storm.clients:
        client.disconnect()


def commits_hang(storm: Storm) -> None:
    """Let commits wait for a standby that is not there: they are in the WAL and nobody can see them."""
    storm.primary.configure({"synchronous_standby_names": "nobody"})
    storm.primary.reload()
    _linger(storm, 2)
    storm.primary.configure({"synchronous_standby_names": ""})
    storm.primary.reload()


def identity_changed(storm: Storm) -> None:
    identity = storm.choose.choice(
        ("FULL", "DEFAULT", "USING INDEX portal_application_settings_application_id_key")
    )
    change = f"ALTER TABLE portal_application_settings REPLICA IDENTITY {identity}"
    if storm.plugin == pgoutput.NAME:  # at once, as the writers would be refused in between
        columns = "" if identity == "FULL" else " (id, application_id)"
        change = (
            f"BEGIN; ALTER PUBLICATION pads_cdc DROP TABLE ONLY portal_application_settings; {change};"
            f"ALTER PUBLICATION pads_cdc ADD TABLE ONLY portal_application_settings{columns}; COMMIT"
        )
    _define(storm, change)


def publication_narrowed(storm: Storm) -> None:
    """Let nothing of a table through for a while, or no TRUNCATE."""
    if storm.choose.choice((True, False)):
        storm.database.execute("ALTER PUBLICATION pads_cdc DROP TABLE ONLY portal_application_settings")
    else:
        storm.database.execute("ALTER PUBLICATION pads_cdc SET (publish = 'insert, update, delete')")
    _linger(storm, 2)
    storm.database.publish()


def publication_made_anew(storm: Storm) -> None:
    storm.database.unpublish()
    _linger(storm, 2)
    storm.database.publish()


def column_added(storm: Storm) -> None:
    table = storm.choose.choice(("portal_applications", "pay_plans"))
    _define(storm, f"ALTER TABLE {table} DROP COLUMN IF EXISTS note, ADD COLUMN note TEXT DEFAULT 'none'")


def table_rewritten(storm: Storm) -> None:
    _define(storm, "VACUUM FULL portal_application_settings")


def checkpoint(storm: Storm) -> None:
    storm.database.execute("CHECKPOINT")
    storm.read.execute("CHECKPOINT")


def primary_stopped_fast(storm: Storm) -> None:
    storm.primary.restart("fast")


def primary_killed(storm: Storm) -> None:
    storm.primary.crash()
    _linger(storm, 1)
    storm.primary.start()


def primary_frozen(storm: Storm) -> None:
    with storm.primary.frozen():
        _linger(storm, 3)


def replay_paused(storm: Storm) -> None:
    if storm.read.value("SELECT pg_is_in_recovery()"):
        storm.read.rows("SELECT pg_wal_replay_pause()")
        _linger(storm, 2)
        storm.read.rows("SELECT pg_wal_replay_resume()")


def standby_promoted(storm: Storm) -> None:
    """End the primary, in good order or not, and let the standby that we read take its place."""
    if storm.choose.random() < 0.5:
        storm.primary.stop("fast")
    else:
        storm.primary.crash()
    _linger(storm, 1)
    storm.promote()


def moved_to_a_standby(storm: Storm) -> None:
    """Put a new standby between the primary and us."""
    storm.follow_a_standby()


def synchronous_names_set(storm: Storm) -> None:
    """Have commits wait for any standby at all: there is one, and we are none."""
    names = storm.choose.choice(("*", "FIRST 1 (*)", "ANY 1 (*)", '"pads-cdc", pg_receivewal'))
    with _receiving(storm):
        storm.primary.configure({"synchronous_standby_names": names})
        storm.primary.reload()
        _linger(storm, 4)
        storm.primary.configure({"synchronous_standby_names": ""})
        storm.primary.reload()


@contextmanager
def _receiving(storm: Storm) -> Iterator[None]:
    """Have a standby that holds no database, only WAL: it counts as a synchronous one."""
    primary = storm.primary
    with tempfile.TemporaryDirectory(prefix="received-", dir=primary.folder) as folder:
        give_to_owner(Path(folder))
        where = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres")
        receive = primary.programs.command(
            "pg_receivewal", "-D", folder, *where, "--synchronous", "--no-loop"
        )
        environment = {**os.environ, "PGPASSWORD": primary.password}
        with subprocess.Popen(
            receive, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as standby:
            counts = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'"
            wait_until(lambda: storm.database.value(counts) > 0, "a standby")
            yield
            standby.terminate()


def tables_migrated(storm: Storm) -> None:
    """Change tables in any order within a transaction, as a migration does that knows nothing of us."""
    tables = ["pay_plans", "accounts", "portal_applications", "portal_application_settings"]
    storm.choose.shuffle(tables)
    with closing(psycopg2.connect(storm.database.url())) as session, session.cursor() as cursor:
        try:
            cursor.execute("SET lock_timeout = '3s'")
            for table in tables[: storm.choose.randint(2, 4)]:
                cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                time.sleep(storm.choose.uniform(0.0, 0.4))
            session.commit()
        except psycopg2.errors.LockNotAvailable:
            pass  # a writer has it
        except psycopg2.errors.DeadlockDetected as error:
            storm.waits.blame(error)


def tables_locked(storm: Storm) -> None:
    """Have somebody keep a table to themselves, for longer than anybody waits for us."""
    table = storm.choose.choice(("pay_plans", "accounts", "portal_applications"))
    with closing(psycopg2.connect(storm.database.url())) as session, session.cursor() as cursor:
        with suppress(psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected):
            cursor.execute("SET lock_timeout = '2s'")
            cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            _linger(storm, 7)
        session.rollback()


def wal_sender_stopped(storm: Storm) -> None:
    """Freeze the process that sends the slot's stream, at times for so long that it is given up."""
    find = (
        "SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL"
    )
    rows = storm.read.rows(find)
    for (pid,) in rows:
        with _stopped(pid):
            _linger(storm, storm.choose.choice((2, 2, 30)))


def our_process_stopped(storm: Storm) -> None:
    """Freeze the server, within a read if it can be caught there: its locks must not keep anybody."""
    held = f"SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE granted AND {_OURS}"
    within = f"{held} AND relation = 'accounts'::regclass"
    until = time.monotonic() + 2
    while time.monotonic() < until:
        with _stopped(storm.server.process.pid):
            if storm.read.value(within) > 0:
                _linger(storm, 7)
                return
        time.sleep(0.003)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


FAULTS: dict[Fault, int] = {
    postgres_stopped_fast: 2,
    postgres_stopped_immediately: 2,
    postgres_killed: 2,
    postgres_frozen: 2,
    backends_terminated: 6,
    queries_cancelled: 4,
    connections_cut: 6,
    network_stalled: 2,
    network_down: 2,
    server_stopped: 3,
    server_killed: 4,
    slot_dropped_while_down: 2,
    slot_dropped_while_running: 2,
    clients_disconnected: 8,
    commits_hang: 2,
    identity_changed: 2,
    column_added: 2,
    table_rewritten: 2,
    checkpoint: 4,
    synchronous_names_set: 3,
    tables_migrated: 6,
    tables_locked: 2,
    wal_sender_stopped: 2,
    our_process_stopped: 4,
}
"""What may go wrong, and how often."""

PUBLICATION_FAULTS: dict[Fault, int] = {
    publication_narrowed: 2,
    publication_made_anew: 2,
}
"""What may go wrong where pgoutput decodes."""

FREEZING = frozenset({postgres_frozen, primary_frozen})
"""What makes everybody wait who has anything to do with the database."""

STANDBY_FAULTS: dict[Fault, int] = {
    primary_stopped_fast: 2,
    primary_killed: 2,
    primary_frozen: 2,
    replay_paused: 4,
}
"""What may go wrong, too, where a standby is read. Promotions and moves come by the storm's clock."""


def _linger(storm: Storm, most: float) -> None:
    """Leave things as they are for a random time, in seconds: here the time itself is the point."""
    time.sleep(storm.choose.uniform(0.1, most))


def _define(storm: Storm, statement: str) -> None:
    """Change a table's definition, or leave it where the writers' locks do not let us."""
    session = storm.database.connect()
    with (
        suppress(psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected),
        session.cursor() as cursor,
    ):
        cursor.execute("SET lock_timeout = '2s'")
        cursor.execute(statement)
    session.close()


def _drop_slot(storm: Storm) -> bool:
    """End whoever reads our slot and drop it, where we read; False if a reader is back before that.

    The primary of a standby has another slot, of the standby's own, which is always in use.
    """
    ours = "FROM pg_replication_slots WHERE slot_type = 'logical'"
    try:
        storm.read.execute(f"SELECT pg_terminate_backend(active_pid) {ours} AND active_pid IS NOT NULL")
        storm.read.execute(f"SELECT pg_drop_replication_slot(slot_name) {ours}")
    except (psycopg2.errors.ObjectInUse, psycopg2.errors.UndefinedObject):
        return False
    return True
