"""The image: its Dockerfile's steps run one by one in a clean place; the result serves a database."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.commands.demo.cluster import free_port
from tests.plugins.server import fill
from tests.support import ROOT

if TYPE_CHECKING:
    from tests.plugins.postgres import Database

HADOLINT = Path(sys.executable).with_name("hadolint")

CHECKS = r"""
say() { printf '=%s=%s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
say user "$(id -u):$(id -g)"
say state_folder "$(stat -c '%u %a' /var/lib/pads-cdc)"
say version "$(pads-cdc --version)"
say tools "$(ls /opt/pads-cdc/bin | grep -cE '^(pip|hatch|hatchling|gcc|pip-compile|mypy|pytest)' || true)"
say packages "$(/opt/pads-cdc/bin/python -c '
import importlib.metadata as m
print(*sorted(d.name.lower() for d in m.distributions()
              if d.name.lower() in {"pip", "setuptools", "wheel", "hatchling", "pytest", "grpcio-tools"}))')"
for mapping in grove grove_soft_delete grove_jwt pads_soft_delete pads_without_plans portal_db; do
  python -c "from cdc.mapping.mapping import load; load('$mapping')" || say mapping "$mapping is not there"
done
say unset "$(POSTGRES_CONNECTION_STRING= $ENTRYPOINT $CMD 2>&1; echo "exit $?")"
say insecure "$($ENTRYPOINT $CMD 2>&1; echo "exit $?")"
export HOST=127.0.0.1 METRICS_HOST=127.0.0.1
$ENTRYPOINT $CMD 2>/dev/null &
server=$!
say healthy_at_once "$(eval "$HEALTHCHECK" >/dev/null 2>&1 && echo yes || echo no)"
tries=0
until eval "$HEALTHCHECK" >/dev/null 2>&1 || [ $tries = 300 ]; do tries=$((tries + 1)); sleep 0.1; done
say healthy_later "$(eval "$HEALTHCHECK" >/dev/null 2>&1 && echo yes || echo no)"
say state_file "$(ls /var/lib/pads-cdc)"
kill -s "${STOPSIGNAL#SIG}" $server
wait $server
say stopped "exit $?"
"""


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_every_file_that_is_copied_is_let_through_and_nothing_else_is() -> None:
    """A state file, a key or .git can get into no layer, whatever somebody adds to the Dockerfile."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert copied == allowed


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="scripts/try-dockerfile mounts file systems, as root")
def test_the_steps_make_an_image_that_serves_and_holds_nothing_else(database: Database) -> None:
    # All packages are installed anew, which takes a minute and, on a busy machine, some: the mark above
    # bounds it, and nothing here waits inside libpq.
    faulthandler.cancel_dump_traceback_later()
    fill(database, 50)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
        "POSTGRES_CONNECTION_STRING": database.url(),
        "PORT": str(free_port()),
        "METRICS_PORT": str(free_port()),
    }
    done = subprocess.run(
        [ROOT / "scripts/try-dockerfile", CHECKS],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split("=", 2) for line in done.stdout.splitlines() if line.startswith("=")]
    said = {name: what.strip() for _, name, what in lines}
    insecure, unset = said.pop("insecure"), said.pop("unset")
    assert said == {
        "user": "10001:10001",
        "state_folder": "10001 700",
        "version": "pads-cdc, version 0.1.0",
        "tools": "0",
        "packages": "",
        "healthy_at_once": "no",
        "healthy_later": "yes",
        "state_file": said["state_file"],
        "stopped": "exit 0",
    }
    assert said["state_file"].startswith("state")
    assert "POSTGRES_CONNECTION_STRING" in unset
    assert unset.endswith("exit 2")
    assert "ALLOW_INSECURE" in insecure
    assert insecure.endswith("exit 2")
    assert database.cluster.password not in done.stdout + done.stderr
