"""The demo as people run it: what it prints, how it exits, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import wait_until
from tests.support import ROOT
from tests.support.command import Command, processes_of
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

EQUAL = re.compile(r"EQUAL: 2 subscribers hold exactly the ([\d,]+) endpoints of the mapping query")
COMMIT = r"^ *\d+\.\d{3} s  "


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files whose name marks everything that the demo starts; it ends empty."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-", dir="/tmp"))  # which postgres may enter
    folder.chmod(0o755)
    yield folder
    try:
        wait_until(lambda: not processes_of(str(folder)), "all processes of the demo have ended")
        wait_until(lambda: not list(folder.iterdir()), "the demo's folder is gone")
    finally:
        for pid in processes_of(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def demo(folder: Path, *arguments: str, **environment: str) -> Command:
    return Command("demo", "--plain", *arguments, TMPDIR=str(folder), **environment)


def process(folder: Path, name: str) -> int:
    """Return the one process of the demo whose command line begins with a program of that name."""
    [pid] = [
        pid
        for pid in processes_of(str(folder))
        if name in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    ]
    return pid


KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
"""An API key, as the demo's portal makes them."""


@pytest.mark.parametrize(
    ("plugin", "keys"), [("pgoutput", False), pytest.param("wal2json", True, marks=pytest.mark.soak)]
)
def test_no_api_key_enters_the_replication_stream(
    folder: Path, tmp_path: Path, plugin: str, keys: bool
) -> None:
    """With pgoutput; that wal2json's stream is full of them shows that the capture is one."""
    captured = tmp_path / "captured"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.captured_demo", captured, plugin],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert EQUAL.search(done.stdout)
    content = captured.read_bytes()
    assert content.count(b"app_") > 10, "the rows of applications are in it"
    assert bool(KEY.search(content)) is keys


def test_it_shows_what_it_did_and_proves_that_the_maps_are_equal(folder: Path) -> None:
    with demo(folder, "--seconds", "5") as command:
        assert command.end(60) == 0, command.told()
        assert command.errors == []
        held = EQUAL.fullmatch(command.lines[-1])
        assert held is not None, command.told()
        assert 9_500 < int(held[1].replace(",", "")) < 10_500
        commits = [line for line in command.lines if re.search(COMMIT, line)]
        assert len(commits) > 30
        assert any("plan changed" in line for line in commits)
        # Neither a key (32 hexadecimal digits) nor a password is shown.
        assert not re.search(r"[0-9a-f]{24}|postgresql://", command.told())
        text = "\n".join(command.lines)
        assert re.search(r"a rotated key was at the subscriber after p50 [\d.]+ ms, p99", text)
        assert re.search(r"staleness: [\d.]+ s at most", text)
        total = re.search(r"^total +([\d,]+) +([\d,]+) ", text, re.MULTILINE)
        assert total is not None
        assert int(total[1].replace(",", "")) == len(commits)


def test_with_relays_a_subscriber_moves_and_is_sent_everything_once(folder: Path) -> None:
    with demo(folder, "--relays", "2", "--seconds", "6") as command:
        assert command.end(120) == 0, command.told()
        said = command.told()
    assert "EQUAL: 3 subscribers hold exactly" in said
    moved = re.search(
        r"moved (\d+) times between server and relays, and was sent everything 1 time$", said, re.MULTILINE
    )
    assert moved is not None, said
    assert int(moved[1]) > 1


def test_with_envoy_a_key_that_is_taken_away_is_refused_at_the_gate(folder: Path) -> None:
    with demo(folder, "--envoy", "--seconds", "6") as command:
        line = command.lines[command.wait_line("^call it, from another terminal") - 1]
        port = int(line.rpartition(":")[2].partition("/")[0])
        caller = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        caller.request("GET", line.partition(str(port))[2])
        assert caller.getresponse().status == 200
        caller.close()
        assert command.end(90) == 0, command.told()
        assert EQUAL.fullmatch(command.lines[-1]), command.told()
        text = "\n".join(command.lines)
        refused = re.findall(
            r"^ +Envoy: the old key's first (?:401|404) [\d.,]+ ms after the commit$", text, re.MULTILINE
        )
        assert len(refused) > 5
        # On a crowded machine a few checks take longer than Envoy waits for an answer: 503.
        answers = r"^Envoy answered 200: [\d,]+  401: [\d,]+  404: [\d,]+(?:  503: \d{1,2})?$"
        assert re.search(answers, text, re.MULTILINE)
        assert re.search(r"a key that was taken away was refused there after p50 [\d.]+ ms, p99", text)
        assert not re.search(r"[0-9a-f]{24}|postgresql://", command.told())


@pytest.mark.parametrize(
    "moment", ["^starting PostgreSQL", "^filling", "^starting the server", "^connecting"]
)
def test_ctrl_c_during_the_start_is_a_clean_end(folder: Path, moment: str) -> None:
    with demo(folder) as command:
        command.wait_line(moment)
        command.interrupt()
        assert command.end() == 0, command.told()
        assert command.lines[-1] == "stopped before the workload began: there is nothing to compare"
        assert command.errors == []


def test_ctrl_c_that_is_hit_again_and_again_changes_nothing(folder: Path) -> None:
    with demo(folder) as command:
        command.wait_line(COMMIT)
        while command.process.poll() is None:
            command.interrupt()
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(0.005)
        assert command.end() == 0, command.told()
        assert command.errors == []
        assert EQUAL.fullmatch(command.lines[-1]), command.told()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_the_terminal_s_end_do_as_ctrl_c_does(folder: Path, number: signal.Signals) -> None:
    with demo(folder) as command:
        command.wait_line(COMMIT)
        for meaningless in (signal.SIGUSR1, signal.SIGUSR2):
            command.process.send_signal(meaningless)
        command.wait_line(COMMIT, command.wait_line(COMMIT))
        command.process.send_signal(number)
        assert command.end() == 0, command.told()
        assert EQUAL.fullmatch(command.lines[-1]), command.told()


@pytest.mark.parametrize("moment", ["^starting the server", COMMIT])
def test_even_killed_it_leaves_nothing_behind(folder: Path, moment: str) -> None:
    with demo(folder) as command:
        command.wait_line(moment)
        command.process.kill()
        command.end()


@pytest.mark.parametrize(
    ("victim", "says"),
    [("server serve", "the demo's server has ended"), ("bin/postgres", "the demo's database failed")],
)
def test_what_dies_in_the_middle_of_it_is_one_line(folder: Path, victim: str, says: str) -> None:
    with demo(folder) as command:
        command.wait_line(COMMIT)
        os.kill(process(folder, victim), signal.SIGKILL)
        assert command.end() == 1, command.told()
        [line] = command.errors
        assert line.startswith(f"pads-cdc: {says}")


@pytest.mark.slow
@pytest.mark.soak
def test_maps_that_are_not_equal_are_not_called_equal(folder: Path) -> None:
    with demo(folder, "--seconds", "3") as command:
        command.wait_line(COMMIT)
        os.kill(process(folder, "server serve"), signal.SIGSTOP)
        assert command.end(60) == 1, command.told()
        assert command.lines[-1].startswith("DIFFERENT: the 2 subscribers do not hold"), command.told()
        assert any(line.startswith("the server did not stop cleanly") for line in command.lines)


def test_without_postgres_it_says_what_to_install(folder: Path) -> None:
    with demo(folder, PADS_PG_BIN=str(folder)) as command:
        assert command.end() == 1
        [line] = command.errors
        assert line.startswith("pads-cdc: PADS_PG_BIN does not name")


def test_settings_in_the_environment_are_meant_for_another_server(folder: Path) -> None:
    other = {
        "PORT": "1",
        "POSTGRES_CONNECTION_STRING_FILE": "/nowhere",
        "MAPPING": "none",
        "PGOPTIONS": "-c x",
    }
    with demo(folder, "--seconds", "1", **other) as command:
        assert command.end(60) == 0, command.told()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_on_a_terminal_it_is_the_screen_of_watch_and_ctrl_c_closes_it(
    folder: Path, width: int, height: int
) -> None:
    with Terminal("demo", width=width, height=height, TMPDIR=str(folder)) as terminal:
        terminal.wait("key rotated")
        wait_until(lambda: len(terminal.frames()) > 10, "some frames")
        terminal.type("\x03")
        assert terminal.end() == 0
        shown = terminal.frame()
        for words in (
            # watch's: how the feed stands, and its changes.
            r"in sync, digest verified",
            r"[\d,]+ endpoints +[\d,]+ api key",
            r"revision [\d,]+ +at most \d\.\d s behind +digest [0-9a-f]{8} verified",
            r"at +change +endpoint +auth +plan +calls/s +capacity$",
            r"upsert +\w+ +\w+ \w+ +\w+ +([\d,]+|any) +([\d,]+/month|any)$",
            # The demo's: lag, totals, each commit with what it affected and when the subscriber had it.
            r"source: [\d,]+ bytes of WAL behind, exact \d\.\d s ago",
            r"commits on the way",
            r"p50 +p99 +max$",
            r"^total( +[\d,.]+){2}( +[\d,.]+ ms){3}$",
            r"at +commit +of +changed +had it after$",
            r"^ *\d+\.\d\d s  (key|account|application|plan) \w+ +\w+.* +[\d,]+ +[\d.,]+ ms$",
        ):
            assert re.search(words, shown, re.MULTILINE), (words, shown)
        assert all(len(line) <= width for line in shown.splitlines()), shown
        assert ("\nkey rotated" in shown) == (height >= 40)  # latencies by kind, where there is room
        summary = terminal.after()
        assert all(len(line) <= width for line in summary.splitlines()), summary
        assert EQUAL.fullmatch(summary.strip().splitlines()[-1].strip())
