"""A real PgBouncer, Debian's, in transaction mode before one server or several."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Protocol

import psycopg2
import pytest

from server.commands.demo.cluster import free_port
from tests.plugins.postgres import NOT_TO_BE_HAD
from tests.plugins.server import wait_until
from tests.support import ON_DEBIAN, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import Database


class PoolerFactory(Protocol):
    """Puts a pooler before the server that listens on ``port``; returns the database's connection string.

    ``replication`` asks for one that passes replication connections on.
    """

    def __call__(self, database: Database, port: int, *, replication: bool = False) -> str: ...


@cache
def fetched(*arguments: str) -> str:
    """Return the program, fetched where it is not installed; a failure is no skip, except on another
    distribution than Debian.
    """
    fetch = subprocess.run(
        [ROOT / "scripts/fetch-pgbouncer", *arguments], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if fetch.returncode == NOT_TO_BE_HAD and not ON_DEBIAN:
        pytest.skip(fetch.stderr.strip().splitlines()[-1])
    if fetch.returncode != 0:
        pytest.fail(f"scripts/fetch-pgbouncer: {fetch.stderr.strip()}")
    return fetch.stdout.strip()


def passes_replication() -> bool:
    """Return whether the system's PgBouncer passes replication connections on, as from 1.23 on."""
    told = subprocess.run([fetched(), "--version"], check=True, capture_output=True, text=True).stdout
    major, minor = told.split()[1].split(".")[:2]
    return (int(major), int(minor)) >= (1, 23)


@pytest.fixture
def pooler() -> Iterator[PoolerFactory]:
    """Poolers of a test's own."""
    with ExitStack() as poolers:

        def start(database: Database, port: int, *, replication: bool = False) -> str:
            pgbouncer = fetched("replication") if replication else fetched()
            own, cluster = free_port(), database.cluster
            users = _own(cluster.folder / "users.txt", f'"postgres" "{cluster.password}"\n')
            configuration = _own(
                cluster.folder / "pgbouncer.ini",
                f"""
                [databases]
                * = host=127.0.0.1 port={port}
                [pgbouncer]
                listen_addr = 127.0.0.1
                listen_port = {own}
                unix_socket_dir =
                auth_type = scram-sha-256
                auth_file = {users}
                pool_mode = transaction
                min_pool_size = 4
                server_round_robin = 1
                server_check_delay = 0
                """.replace(" " * 16, ""),
            )
            command = [pgbouncer, str(configuration)]
            if os.geteuid() == 0:  # which it refuses to run as
                command[:0] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            poolers.callback(process.wait, 30)
            poolers.callback(process.kill)  # asked to end, a newer one waits for its clients
            url = f"postgresql://postgres:{cluster.password}@127.0.0.1:{own}/{database.name}"
            wait_until(lambda: _answers(url), "the pooler answers")
            return url

        yield start


def _own(path: Path, content: str) -> Path:
    """Write a file that the pooler may read, and nobody else."""
    path.write_text(content)
    path.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(path, "postgres", "postgres")
    return path


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True
