"""The ephemeral cluster: what it survives, and that nothing of it survives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from server.commands.demo.cluster import temporary_folder
from server.commands.demo.programs import ClusterError, Programs, find_programs
from tests.plugins.postgres import DEADLINE, drop_database
from tests.plugins.server import wait_until
from tests.support.cluster import ephemeral_cluster
from tests.support.command import processes_of

if TYPE_CHECKING:
    from tests.plugins.postgres import ClusterFactory, DatabaseFactory, Replicated
    from tests.support.cluster import Cluster


def ask(cluster: Cluster, query: str, *arguments: str) -> object:
    with closing(psycopg2.connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute(query, arguments or None)
        [[value]] = cursor.fetchall()
        return value


def test_decodes_with_wal2json(cluster: Cluster) -> None:
    assert ask(cluster, "SHOW wal_level") == "logical"
    create = "SELECT slot_name::text FROM pg_create_logical_replication_slot('tried', 'wal2json', true)"
    assert ask(cluster, create) == "tried"


def test_asks_for_a_password_and_shows_none(cluster: Cluster) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(cluster.url(password="wrong"))
    assert cluster.password not in repr(cluster)


def test_survives_crash_and_restart_on_its_port(cluster_factory: ClusterFactory) -> None:
    cluster = cluster_factory()
    first = cluster.pid
    with closing(psycopg2.connect(cluster.url())) as session:
        cluster.crash()
        with pytest.raises(psycopg2.OperationalError):
            session.cursor().execute("SELECT 1")
    cluster.start()
    cluster.configure({"work_mem": "5MB", "application_name": "it's"})
    cluster.restart("immediate")
    assert ask(cluster, "SHOW work_mem") == "5MB"
    assert ask(cluster, "SHOW application_name") == "it's"
    assert cluster.pid != first


def test_frozen_server_does_not_answer(cluster_factory: ClusterFactory) -> None:
    cluster = cluster_factory()
    with cluster.frozen(), pytest.raises(psycopg2.OperationalError, match="timeout"):
        psycopg2.connect(cluster.url(), connect_timeout=2)
    assert ask(cluster, "SELECT 1") == 1


def test_wrong_setting_is_one_line_that_names_it(cluster_factory: ClusterFactory) -> None:
    with pytest.raises(ClusterError, match="no_such_setting") as caught:
        cluster_factory({"no_such_setting": "on"})
    assert "\n" not in str(caught.value)


def test_missing_programs_are_one_line_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PADS_PG_BIN", str(tmp_path))
    with pytest.raises(ClusterError, match="PADS_PG_BIN"):
        find_programs()
    assert not Programs(tmp_path).has_wal2json()


def test_leaves_nothing_behind_after_an_error() -> None:
    with suppress(ZeroDivisionError), ephemeral_cluster() as cluster:
        pid = cluster.pid
        raise ZeroDivisionError
    assert not cluster.folder.exists()
    assert not _runs(pid)


def test_leaves_nothing_behind_when_we_are_killed() -> None:
    code = (
        "from server.commands.demo.cluster import ephemeral_cluster\n"
        "with ephemeral_cluster() as cluster: print(cluster.pid, cluster.folder, flush=True); input()"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with victim:
        assert victim.stdout is not None
        pid, folder = victim.stdout.readline().split()
        assert _runs(int(pid))
        victim.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE
    while Path(folder).exists() or _runs(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_does_not_reach_the_one_that_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between its fork and its own session: we hear of it when both are done."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            # To this thread: another one, of whoever runs the tests, would hear of it at once.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            assert {signal.SIGINT, signal.SIGHUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
            super().__init__(command, **options)
            assert not heard

    programs = find_programs()
    try:
        with monkeypatch.context() as patched:
            patched.setattr("server.commands.demo.cluster.subprocess.Popen", Popen)
            with temporary_folder(programs) as folder:
                assert heard == [signal.SIGINT]
                # It leads a session of its own. What it has forked looks like it until it is another program,
                # and while it becomes one itself it has no arguments.
                wait_until(
                    lambda: len([pid for pid in processes_of(str(folder)) if os.getsid(pid) == pid]) == 1,
                    "one that leads a session",
                )
                assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert not folder.exists()
    finally:
        signal.signal(signal.SIGINT, before)


def test_database_takes_its_leftovers_with_it(cluster: Cluster, database_factory: DatabaseFactory) -> None:
    """A slot, a prepared transaction, an open session and a role; another clone has none of its rows."""
    database = database_factory(cluster=cluster)
    database.execute("INSERT INTO pay_plans VALUES ('basic', 1, 1)")
    # The slot first: its creation waits for transactions that are prepared already.
    database.rows("SELECT pg_create_logical_replication_slot('leftover', 'test_decoding')")
    database.execute("BEGIN; INSERT INTO pay_plans VALUES ('pro', 1, 1); PREPARE TRANSACTION 'leftover'")
    role = database.create_role("REPLICATION")
    database.connect(*role)
    assert database_factory().value("SELECT count(*) FROM pay_plans") == 0

    drop_database(database)

    left = """
        SELECT (SELECT count(*) FROM pg_prepared_xacts)
            + (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'leftover')
            + (SELECT count(*) FROM pg_database WHERE datname = %s)
            + (SELECT count(*) FROM pg_roles WHERE rolname = %s)
    """
    assert ask(cluster, left, database.name, role.name) == 0


def test_standby_of_17_replays_decodes_and_is_promoted(
    standby17: Replicated, database_factory: DatabaseFactory
) -> None:
    database = database_factory(cluster=standby17.primary)
    database.execute("INSERT INTO pay_plans VALUES ('basic', 1, 1)")
    standby17.wait_replayed()
    replica = database.on(standby17.standby)
    assert replica.value("SELECT plan_type FROM pay_plans") == "basic"

    with ThreadPoolExecutor(1) as elsewhere:
        create = "SELECT slot_name::text FROM pg_create_logical_replication_slot('replica', 'wal2json')"
        created = elsewhere.submit(replica.value, create)
        while not created.done():  # it waits until the primary logs what is running there
            database.rows("SELECT pg_log_standby_snapshot()")
            wait([created], timeout=0.1)
    assert created.result() == "replica"

    standby17.standby.promote()
    replica.execute("INSERT INTO pay_plans VALUES ('pro', 1, 1)")
    decoded = "SELECT data FROM pg_logical_slot_get_changes('replica', NULL, NULL, 'format-version', '2')"
    assert any('"pro"' in line for (line,) in replica.rows(decoded))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
