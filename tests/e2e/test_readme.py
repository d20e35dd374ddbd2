"""What the README says, by the letter: from a bare database to a green `check` and a server that serves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.plugins.server import fill
from tests.support import ROOT
from tests.support.command import Command

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

PASSWORD = "postgresql://postgres:...@db.internal/portal"
FIVE_MINUTES = 300


def test_from_a_bare_database_to_a_green_check_in_under_five_minutes(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    [block] = [each for each in blocks if "pads-cdc setup" in each]
    lines = [
        line.partition(" #")[0].rstrip() for line in block.replace(PASSWORD, database.url()).splitlines()
    ]
    assert database.url() in lines[0]
    assert lines[-1] == "pads-cdc serve"
    fill(database, 50)
    database.execute(
        "INSERT INTO portal_application_settings (application_id, secret_key_required)"
        " SELECT id, false FROM portal_applications ON CONFLICT DO NOTHING"
    )
    database.execute("DROP ROLE IF EXISTS pads_cdc")  # of another test's setup on this cluster
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-e", "-c", "\n".join(lines[:-1])],  # noqa: S607 - wherever it is
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=FIVE_MINUTES,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert time.monotonic() - began < FIVE_MINUTES
        # The clusters of the tests have no max_slot_wal_keep_size, which is a warning.
        assert re.search(r"^\d+ pass, 1 warn$", done.stdout, re.MULTILINE), done.stdout
        server = serve((tmp_path / "pads-cdc.dsn").read_text().strip())
        with Command("watch", f"127.0.0.1:{server.grpc}", "--until-synced") as watching:
            assert watching.end() == 0
            watching.wait_line("in sync: 50 endpoints, digest verified")
        assert server.stop() == 0
    finally:
        undone = subprocess.run(
            ["pads-cdc", "teardown"],  # noqa: S607 - by PATH, as people type it
            env=environment | {"ADMIN_CONNECTION_STRING": database.url()},
            capture_output=True,
            text=True,
            check=False,
        )
    assert undone.returncode == 0, undone.stderr
