"""Log lines when nobody reads them: nothing waits, what is missing is counted, and nothing else is lost."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.observe.log_writer import LogWriter, unblock
from tests.plugins.server import DEADLINE, Server, fill, wait_equal, wait_until
from tests.support.memory import MIB, resident

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.figures import Figure
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory

STOP, START = b"\x13", b"\x11"
"""Ctrl-S and Ctrl-Q."""


class Ends:
    """Two ends of something that is written and read; as a test makes it, and as the program got it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "terminal":
            self.reader, self.writer = pty.openpty()
            os.set_blocking(self.reader, False)
        elif kind == "socket":
            pair = socket.socketpair()
            self.reader, self.writer = (one.detach() for one in pair)
        else:
            self.reader, self.writer = os.pipe()
        self.shared = os.dup(self.writer)
        """The same open file in another process, so to say."""
        self.report: list[int] = []
        self._read: list[bytes] = []

    def stop(self) -> None:
        """Have nothing read from now on."""
        if self.kind == "terminal":
            os.write(self.reader, STOP)

    def read(self, until: bytes) -> bytes:
        """Go on reading, up to these bytes."""
        if self.kind == "terminal":
            os.write(self.reader, START)
        deadline = time.monotonic() + DEADLINE
        os.set_blocking(self.reader, False)
        while until not in (text := b"".join(self._read).replace(b"\r\n", b"\n")):
            assert time.monotonic() < deadline, text[-200:]
            with suppress(BlockingIOError):
                self._read.append(os.read(self.reader, 65536))
        return text

    def close(self) -> None:
        for descriptor in (self.reader, self.writer, self.shared):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture(params=["pipe", "terminal", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    ends = Ends(request.param)
    yield ends
    ends.close()


def write_until_dropped(writer: LogWriter, lines: int = 100) -> int:
    """Write numbered lines until so many were dropped; returns the next number."""
    number = 0
    while writer.dropped < lines:
        writer.write(f"line {number} {'x' * 80}\n")
        number += 1
    return number


def test_nobody_reads_and_nothing_waits(ends: Ends) -> None:
    at_once = unblock(ends.writer)
    writer = LogWriter(ends.writer, ends.report.append, at_once=at_once, queued=10_000)
    ends.stop()
    began = time.monotonic()
    written = write_until_dropped(writer)
    assert time.monotonic() - began < DEADLINE
    assert ends.report == [], "it is not said before it can be"
    kept = written - 100
    text = ends.read(f"line {kept - 1} ".encode())
    assert [int(line.split()[1]) for line in text.splitlines()[:kept]] == list(range(kept)), (
        "in order and whole"
    )
    wait_until(lambda: ends.report == [100], "it is said how many are missing")
    writer.write("afterwards\n")
    ends.read(b"afterwards\n")


def test_a_library_that_writes_by_itself_does_not_wait_either(ends: Ends) -> None:
    unblock(ends.writer)
    ends.stop()
    began = time.monotonic()
    with suppress(BlockingIOError):
        for _ in range(100_000):
            os.write(ends.writer, b"E0000 00:00:1764312345.000000 a line of gRPC's own\n")
    assert time.monotonic() - began < DEADLINE


def test_what_another_program_shares_stays_as_it_was(ends: Ends) -> None:
    """A shell whose terminal refuses writes is of no use any more."""
    unblock(ends.writer)
    assert not fcntl.fcntl(ends.shared, fcntl.F_GETFL) & os.O_NONBLOCK


def test_in_the_ordinary_case_a_line_is_out_when_write_returns(ends: Ends) -> None:
    writer = LogWriter(ends.writer, ends.report.append, at_once=unblock(ends.writer))
    if ends.kind == "terminal":
        os.set_blocking(ends.reader, True)
    writer.write("the last words\n")
    assert os.read(ends.reader, 100).rstrip() == b"the last words"


def test_the_end_waits_for_a_slow_reader_and_not_for_a_gone_one() -> None:
    ends = Ends("pipe")
    unblock(ends.writer)
    writer = LogWriter(ends.writer, ends.report.append, queued=10_000)
    number = write_until_dropped(writer, 1)
    began = time.monotonic()
    writer.finish(0.2)
    assert 0.2 <= time.monotonic() - began < DEADLINE
    reading = threading.Thread(target=ends.read, args=(f"line {number - 2} ".encode(),))
    reading.start()
    writer.finish(DEADLINE)
    reading.join(DEADLINE)
    os.close(ends.reader)
    began = time.monotonic()
    writer.write("to nobody\n")
    writer.finish(DEADLINE)
    assert time.monotonic() - began < DEADLINE / 2
    ends.close()


@given(st.lists(st.integers(1, 9_000), max_size=60), st.lists(st.integers(1, 70_000), max_size=60))
def test_what_arrives_is_a_run_of_whole_lines(sizes: list[int], reads: list[int]) -> None:
    """However long the lines are, and however the reader stops and goes on."""
    reader, descriptor = os.pipe()
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
    unblock(descriptor)
    missing: list[int] = []
    writer = LogWriter(descriptor, missing.append, queued=20_000)
    os.set_blocking(reader, False)
    arrived = []
    turns = iter(reads)
    for number, size in enumerate(sizes):
        writer.write(f"{number} {'x' * size}\n")
        with suppress(BlockingIOError):
            arrived.append(os.read(reader, next(turns, 1)))
    ended = False
    while not ended:
        with suppress(BlockingIOError):
            arrived.append(os.read(reader, 65536))
        with writer._changed:
            ended = not writer._queue
    with suppress(BlockingIOError):
        while True:
            arrived.append(os.read(reader, 65536))
    lines = b"".join(arrived).decode().splitlines()
    wait_until(lambda: sum(missing) == writer.dropped, "what is missing is said")
    numbers = [int(line.split()[0]) for line in lines]
    assert lines == [f"{number} {'x' * sizes[number]}" for number in numbers]
    assert numbers == sorted(set(numbers))
    assert len(lines) + writer.dropped == len(sizes)
    os.close(reader)
    os.close(descriptor)


class Unread(Server):
    """A server whose log is read up to "serving", and then not until `going_on` is set."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.going_on = threading.Event()
        super().__init__(environment)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._written:  # without `output`: a text of megabytes is not for adding lines to
                with suppress(json.JSONDecodeError):
                    self.logs.append(json.loads(line))
                self._written.notify_all()
            if self.logs and self.logs[-1]["event"] == "serving":
                self.going_on.wait(4 * DEADLINE)


@pytest.fixture
def unread(database: Database, tmp_path: Path) -> Iterator[Unread]:
    fill(database, 20)
    server = Unread(
        {
            "POSTGRES_CONNECTION_STRING": database.url(),
            "PORT": "0",
            "METRICS_PORT": "0",
            "STATE_FILE": str(tmp_path / "state"),
            "LOGGER_LEVEL": "debug",
        }
    )
    yield server
    server.going_on.set()
    server.kill()


COMMITS = """
DO $$ BEGIN
    FOR number IN 1..1000 LOOP
        UPDATE portal_application_settings SET secret_key = md5(random()::text)
            WHERE application_id = 'app_1';
        COMMIT;
    END LOOP;
END $$
"""
"""Two debug lines each."""


def drop_lines(server: Unread, database: Database) -> None:
    """Have it log so much that lines are dropped."""

    def dropped() -> bool:
        database.execute(COMMITS)
        return server.metric("pads_cdc_log_lines_dropped_total") > 0

    wait_until(dropped, "lines are dropped", deadline=60)


@pytest.mark.soak
def test_a_server_whose_log_nobody_reads_goes_on_serving(
    unread: Unread, database: Database, gateway: GatewayFactory
) -> None:
    """64 KiB fit into the pipe, some hundred debug lines. The next one used to stop everything."""
    client = gateway(unread)
    drop_lines(unread, database)
    wait_equal(client, database)
    assert unread.get("/livez")[0] == 200
    unread.going_on.set()

    def missing() -> int:
        texts = [line["event"] for line in unread.logs if "log lines are missing" in line["event"]]
        return sum(int(text.split()[0]) for text in texts)

    wait_until(missing, "it says how many lines are missing")
    wait_until(lambda: missing() == unread.metric("pads_cdc_log_lines_dropped_total"), "all of them")
    [(xid,)] = database.rows(
        "UPDATE pay_plans SET throughput_limit = 7 WHERE plan_type = 'plan_1' RETURNING txid_current()"
    )
    unread.wait_log("transaction published", xid=xid)
    assert unread.stop() == 0
    assert "stopping" in [line["event"] for line in unread.logs[-5:]], "the end is not lost"


@pytest.mark.soak
def test_lines_that_nobody_reads_take_no_more_memory_however_many(
    unread: Unread, database: Database, gateway: GatewayFactory, figure: Figure
) -> None:
    client = gateway(unread)
    drop_lines(unread, database)
    wait_equal(client, database)
    before = resident(unread)
    for _ in range(20):
        database.execute(COMMITS)
    wait_equal(client, database, deadline=4 * DEADLINE)
    dropped, grown = unread.metric("pads_cdc_log_lines_dropped_total"), resident(unread) - before
    figure(f"a log that nobody reads, {dropped:,.0f} lines dropped: {grown / MIB:.0f} MiB")
    assert grown < 50 * MIB


def test_a_server_whose_log_nobody_reads_stops_when_it_is_asked_to(
    unread: Unread, database: Database
) -> None:
    drop_lines(unread, database)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(DEADLINE) == 0


def test_an_error_that_ends_it_is_shown_by_its_code_where_nobody_reads(tmp_path: Path) -> None:
    """The last line goes to a pipe that was full before it began."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    environment = {
        "POSTGRES_CONNECTION_STRING": "postgresql://nobody@127.0.0.1:1/nothing",
        "STATE_FILE": str(tmp_path / "state"),
    }
    command = [sys.executable, "-m", "server", "serve"]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=writer)
    assert process.wait(DEADLINE) == 1
    for descriptor in (reader, writer):
        os.close(descriptor)
