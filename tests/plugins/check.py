"""The commands that an operator runs once: `check`, `setup` and `teardown`, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from server.config.settings_table import rows
from tests.plugins.decoding import plugin_settings
from tests.plugins.postgres import Database

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = str(Path(sys.executable).parent / "pads-cdc")


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    verdict: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What ``check --json`` has said."""

    code: int
    ready: bool
    findings: tuple[Finding, ...]

    def of(self, check: str) -> list[Finding]:
        """Return what one check found."""
        return [finding for finding in self.findings if finding.check == check]

    def the(self, check: str, verdict: str) -> Finding:
        """Return a check's only finding that is not a pass, or its only one, which has this verdict."""
        found = [one for one in self.of(check) if one.verdict != "pass"] or self.of(check)
        assert [one.verdict for one in found] == [verdict], self.of(check)
        return found[0]

    def not_passed(self) -> list[str]:
        """Return the names of the checks that found something."""
        return [finding.check for finding in self.findings if finding.verdict != "pass"]


class Check(Protocol):
    """Runs ``pads-cdc check --json``, as the superuser unless a connection string is given."""

    def __call__(self, database: Database | str, **settings: str) -> Report: ...


@pytest.fixture
def pads_cdc(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command to its end, with no settings but those given."""
    ours = {row.environment for row in rows()}
    kept = {name: value for name, value in os.environ.items() if name not in ours}

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
            env=kept | {"STATE_FILE": str(tmp_path / "state")} | settings,
        )

    return run


@pytest.fixture
def check(pads_cdc: Callable[..., subprocess.CompletedProcess[str]], plugin: str) -> Check:
    """Run ``check`` and read its report; no secret is in it, whatever the state."""

    def run(database: Database | str, **settings: str) -> Report:
        settings = plugin_settings(plugin) | settings
        url = database.url() if isinstance(database, Database) else database
        done = pads_cdc("check", "--json", POSTGRES_CONNECTION_STRING=url, **settings)
        assert done.stdout, done.stderr
        password = url.partition("@")[0].rpartition(":")[2]
        assert password not in done.stdout + done.stderr
        report = json.loads(done.stdout)
        findings = tuple(Finding(**finding) for finding in report["findings"])
        assert done.returncode == any(finding.verdict == "fail" for finding in findings)
        assert report["ready"] == (done.returncode == 0)
        for finding in findings:
            assert bool(finding.remedy) == (finding.verdict in {"warn", "fail"}), finding
        return Report(done.returncode, report["ready"], findings)

    return run
