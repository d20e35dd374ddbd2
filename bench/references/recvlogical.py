"""The limit of decoding: PostgreSQL's pg_recvlogical, which discards everything."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Final

from cdc.mapping.mapping import load
from cdc.replication import pgoutput, wal2json

if TYPE_CHECKING:
    from bench.rig import Database


def options(plugin: str = wal2json.NAME) -> dict[str, str]:
    """Return the plugin's options, exactly as our server sets them."""
    if plugin == pgoutput.NAME:
        return pgoutput.options("pads_cdc")
    return wal2json.options(("public", table) for table in load("grove").tables)


_STATUS_SECONDS: Final = "1"


def read(database: Database, slot: str, end: str, plugin: str) -> float:
    """Read a slot up to a position; return the seconds that this took, including the program's start."""
    cluster = database.cluster
    given = [f"--option={name}={value}" for name, value in options(plugin).items()]
    source = [
        "--host=127.0.0.1",
        f"--port={cluster.port}",
        "--username=postgres",
        f"--dbname={database.name}",
    ]
    how = ["--no-loop", f"--status-interval={_STATUS_SECONDS}", "--fsync-interval=0", "--file=/dev/null"]
    what = ["--start", f"--slot={slot}", f"--endpos={end}"]
    began = time.monotonic()
    subprocess.run(  # noqa: S603 - no shell, and nothing in the command comes from outside
        [cluster.programs.folder / "pg_recvlogical", *source, *how, *what, *given],
        env={**os.environ, "PGPASSWORD": cluster.password},
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return time.monotonic() - began
