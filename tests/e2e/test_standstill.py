"""Some calls of psycopg2 stop all threads of a process while they wait: none of ours may wait in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

_SLEEPS = "SELECT FROM pg_stat_activity WHERE application_name = 'pads-cdc' AND wait_event = 'PgSleep'"
_UNREAD = """
import os
import resource
import sys
import psycopg2
from psycopg2.extras import LogicalReplicationConnection
from cdc.freshness import Freshness
from cdc.lsn import Lsn
from cdc.replication import feedback

feedback._SIGN = 0.0
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
clients = [os.dup(0) for _ in range(1100)]
connection = psycopg2.connect(sys.argv[1], connection_factory=LogicalReplicationConnection)
cursors = connection.cursor(), connection.cursor()
cursors[0].execute("CREATE_REPLICATION_SLOT unread TEMPORARY LOGICAL wal2json")
cursors[0].start_replication_expert(b"START_REPLICATION SLOT unread LOGICAL 0/0")
print("ready", flush=True)
input()
signs, freshness = feedback.Feedback(*cursors), Freshness()
for _ in range(100_000):
    signs.send(freshness, Lsn(1))
print("done", flush=True)
"""
"""Sends as much feedback as 28 hours bring, in a process with as many connections as a server may have."""


@pytest.mark.own_cluster
def test_a_frozen_server_in_the_middle_of_a_read_does_not_delay_the_end(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    """A request to cancel the read waits for the frozen postmaster."""
    folder = tmp_path / "slow"
    folder.mkdir()
    for file in (ROOT / "sql/grove").iterdir():
        text = file.read_text().replace(
            "settings.secret_key,",
            "settings.secret_key || CASE WHEN settings.secret_key = 'slow'"
            " THEN pg_catalog.pg_sleep(40)::text ELSE '' END AS secret_key,",
        )
        (folder / file.name).write_text(text)
    fill(database, 1)
    server = serve(database, MAPPING=str(folder))
    database.execute("UPDATE portal_application_settings SET secret_key = 'slow'")
    wait_until(lambda: database.rows(_SLEEPS), "the read is at work")
    with database.cluster.frozen():
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10


def test_a_wal_sender_that_reads_nothing_keeps_no_other_thread(database: Database) -> None:
    """A full connection takes no more signs of life: sending one would wait, with the interpreter."""
    process = subprocess.Popen(
        [sys.executable, "-c", _UNREAD, database.url()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    pid = database.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'unread'")
    os.kill(pid, signal.SIGSTOP)
    try:
        said, _ = process.communicate("\n", timeout=30)
    finally:
        os.kill(pid, signal.SIGCONT)
        process.kill()
        process.wait()
    assert said == "done\n"
