"""Writers that commit at a fixed rate: PostgreSQL's pgbench."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bench.rig import Database

_SCRIPT: Final = """
\\set id random(1, :endpoints)
UPDATE portal_application_settings SET secret_key = md5(random()::text) WHERE id = :id;
"""
_CLIENTS: Final = 4
_ELAPSED, _LAG = 2, 6
"""Columns of pgbench's log, in microseconds: the time since the transaction was due, and the delay of its
start.
"""


def run(database: Database, rate: int, seconds: float) -> list[float]:
    """Return the milliseconds that each update took, with its commit. Blocks for ``seconds``."""
    cluster = database.cluster
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "script.sql"
        script.write_text(_SCRIPT)
        count = ["--define", f"endpoints={database.portal.endpoints}"]
        source = ["--host=127.0.0.1", f"--port={cluster.port}", "--username=postgres"]
        load = [f"--rate={rate}", f"--time={max(1, round(seconds))}", f"--client={_CLIENTS}"]
        how = [
            "--no-vacuum",
            "--protocol=prepared",
            f"--file={script}",
            "--log",
            f"--log-prefix={folder}/log",
        ]
        subprocess.run(  # noqa: S603 - no shell, and nothing in the command comes from outside
            [cluster.programs.folder / "pgbench", *source, *load, *how, *count, database.name],
            env={**os.environ, "PGPASSWORD": cluster.password},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines = [line.split() for log in folder.glob("log*") for line in log.read_text().splitlines()]
    return [(int(line[_ELAPSED]) - int(line[_LAG])) / 1000 for line in lines]
