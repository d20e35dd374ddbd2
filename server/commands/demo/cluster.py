"""An ephemeral Postgres cluster with logical decoding, for ``pads-cdc demo`` and for the tests.

``ephemeral_cluster`` is a context manager. The server listens on 127.0.0.1 only, has a random password, keeps
all its files in one temporary folder, and is removed when the context ends. It can use wal2json if that is
installed.

A *sentinel* does the removal. It is a shell that waits for the end of a pipe whose other side only our
process holds, and then stops the server and removes the folder. The kernel closes the pipe however our
process ends, so even ``kill -9`` leaves nothing behind. (A parent death signal would not suffice: it depends
on the *thread* that started the server, and removes no folder.)
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from server.commands.demo.programs import ClusterError, Programs, find_programs, give_to_owner
from server.commands.interrupt import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DEADLINE = 60
"""Maximum time for a server's start, in seconds."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # No socket file: its path is limited to 107 bytes, and we do not choose the temporary folder's name.
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "40",
    "max_replication_slots": "40",
    "max_prepared_transactions": "20",
    # The data is thrown away at the end. Without fsync, a crash of only the server loses nothing.
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "timezone": "UTC",
}
_PLUGINS = {"output_plugin_libraries": "pgoutput, test_decoding, wal2json"}
"""Newer minor releases refuse a plugin that is not listed here; older ones do not start with this setting."""

_SENTINEL = 'cat >/dev/null; folder=$1; shift; "$@"; rm -rf -- "$folder"'


@dataclass(frozen=True)
class Cluster:
    """A Postgres server. Each method blocks until it is done."""

    programs: Programs
    folder: Path
    port: int
    password: str = field(repr=False)
    """The password of the superuser (postgres)."""

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Return a connection string, by default the superuser's.

        It contains a password, so do not print it.
        """
        return f"postgresql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises FileNotFoundError if the server is not running."""
        return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    def start(self) -> None:
        """Start the server. Returns when it accepts connections (read-only ones if it is a standby)."""
        log = self.folder / "postgres.log"
        try:
            self._pg_ctl("start", "-l", str(log), "-t", str(_DEADLINE))
        except ClusterError as error:
            # Quote the server's log, because pg_ctl only says that there is one.
            lines = log.read_text().splitlines() if log.exists() else []
            said = "; ".join(
                line.partition(":  ")[2] for line in lines[-3:] if "LOG:  " in line or "FATAL:  " in line
            )
            raise ClusterError(f"the server does not start: {said or error}") from None

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append settings to postgresql.conf. The server reads them at its start, and the last line for a
        name wins.
        """
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            for name, value in settings.items():
                conf.write("{} = '{}'\n".format(name, value.replace("'", "''")))

    def _pg_ctl(self, action: str, *options: str) -> None:
        self.programs.run("pg_ctl", action, "-D", str(self.data), "-s", *options, cwd=self.folder)


@contextmanager
def ephemeral_cluster(
    settings: Mapping[str, str] | None = None,
    *,
    programs: Programs | None = None,
) -> Iterator[Cluster]:
    """Make and start a primary, in about 2 s. ``settings`` override our own. Raises ClusterError."""
    programs = programs or find_programs()
    with temporary_folder(programs) as folder:
        cluster = Cluster(programs, folder, free_port(), secrets.token_urlsafe(16))
        password_file = folder / "password"
        password_file.write_text(cluster.password)
        password_file.chmod(0o600)
        give_to_owner(password_file)
        how = (
            "--auth=scram-sha-256",
            "--locale=C.UTF-8",
            "--encoding=UTF8",
            "--no-sync",
            f"--pwfile={password_file}",
        )
        programs.run("initdb", "-D", str(cluster.data), "-U", "postgres", *how, cwd=folder)
        password_file.unlink()
        listed = programs.has_wal2json() and programs.knows_setting("output_plugin_libraries")
        plugins = _PLUGINS if listed else {}
        cluster.configure(_SETTINGS | plugins | {"port": str(cluster.port)} | dict(settings or {}))
        cluster.start()
        yield cluster


def free_port() -> int:
    """Return a free port of 127.0.0.1.

    It is below the usual ephemeral ports. An ephemeral port could be assigned to a client that reconnects
    while the server is down, and the client could even connect to itself.
    """
    while True:
        port = random.randint(20_000, 32_000)  # noqa: S311 - it need not be unpredictable
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def temporary_folder(programs: Programs) -> Iterator[Path]:
    """Make the folder for one cluster. At the end the sentinel stops the server and removes the folder."""
    with uninterrupted():
        folder = Path(tempfile.mkdtemp(prefix="pads-cdc-", dir=_temporary_root()))
        stop = programs.command("pg_ctl", "stop", "-D", str(folder / "data"), "-m", "immediate", "-s")
        sentinel = subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
            ["/bin/sh", "-c", _SENTINEL, "sentinel", str(folder), *stop],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C goes to the terminal's process group, which must not include the sentinel.
            start_new_session=True,
        )
    try:
        give_to_owner(folder)
        yield folder
    finally:
        sentinel.communicate()


def _temporary_root() -> str:
    """Return the folder for temporary files.

    If we are root and the user postgres could not enter it, return /tmp.
    """
    chosen = Path(tempfile.gettempdir()).resolve()
    enterable = all(folder.stat().st_mode & 0o001 for folder in (chosen, *chosen.parents))
    return str(chosen) if enterable or os.geteuid() != 0 else "/tmp"  # noqa: S108 - mkdtemp makes the name inside it
