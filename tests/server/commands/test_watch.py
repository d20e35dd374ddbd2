"""`pads-cdc watch` as people run it, against real servers and against what is none."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import termios
from array import array
from typing import IO, TYPE_CHECKING

import pytest
from pads_cdc_client.digest import Digest

from tests.plugins.server import DEADLINE, expected, fill, wait_until
from tests.support.certificates import Authority, write_secret
from tests.support.command import PADS_CDC, Command
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

KEY = "hunter22" * 4
TOKEN = "watch-token-" * 4


def watch(port: int, *options: str) -> Command:
    return Command("watch", f"127.0.0.1:{port}", *options)


OLD = ("--protocol", "old")
BEGIN = "in sync: 100 endpoints, digest verified|fetched 100 endpoints"


@pytest.mark.parametrize("protocol", ["feed", "old"])
def test_a_line_for_each_change_and_never_a_key(
    protocol: str, database: Database, serve: ServerFactory
) -> None:
    fill(database, 100)
    server = serve(database)
    with watch(server.grpc, "--protocol", protocol) as command:
        began = command.wait_line(BEGIN)
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
            " WHERE application_id = 'app_1'",
            (KEY,),
        )
        command.wait_line(r"upsert  app_1  static_api_key  plan_1  throughput 1, capacity 1,000 a month$")
        database.execute(
            "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'"
        )
        command.wait_line(r"upsert  app_1  static_api_key \(empty: refuses all\)  plan_1")
        database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
        command.wait_line("delete  app_1$")
        database.execute("INSERT INTO portal_applications VALUES ('app_new')")
        command.wait_line("upsert  app_new  no_auth  no plan  throughput 0, capacity 0$")
        command.interrupt()
        assert command.end() == 0
        assert command.errors == []
        # The old stream begins with everything that the fetch has brought already: that is no event.
        assert len(command.lines) == began + 4, command.told()
        assert KEY not in command.told()


def test_the_old_one_comes_back_when_the_server_does(database: Database, serve: ServerFactory) -> None:
    fill(database, 10)
    server = serve(database)
    with watch(server.grpc, *OLD) as command:
        seen = command.wait_line("fetched 10 endpoints")
        assert server.stop() == 0
        seen = command.wait_line(
            "the server ended the stream, as it does when it shuts down; trying again in 0.5 s", seen
        )
        seen = command.wait_line("nothing answers: Connection refused; trying again in 1 s", seen)
        database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
        again = serve(database, PORT=str(server.grpc))
        seen = command.wait_line("fetched 9 endpoints", seen)
        database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
        command.wait_line("delete  app_2$", seen)
        assert again.stop() == 0
        command.wait_line("trying again in 0.5 s", seen)
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 0


def test_ids_that_a_terminal_would_act_on_are_disarmed(database: Database, serve: ServerFactory) -> None:
    fill(database, 1)
    server = serve(database)
    with watch(server.grpc) as command:
        command.wait_line("in sync: 1 endpoints")
        database.execute("INSERT INTO portal_applications VALUES (E'[red]\\x1b[2J\\nx\u202e')")
        command.wait_line("upsert  \\[red\\]\ufffd\\[2J\ufffdx\ufffd  no_auth")
        command.interrupt()
        assert command.end() == 0


@pytest.mark.parametrize("options", [(), ("--json",), OLD])
def test_the_metrics_port_is_no_grpc_and_that_is_one_line_here_and_there(
    options: tuple[str, ...], database: Database, serve: ServerFactory
) -> None:
    server = serve(database)
    with watch(server.http, *options) as command:
        assert command.end() == 1
        [line] = command.errors
        assert line.startswith("pads-cdc: that is not gRPC: is it the metrics port?")
    said = server.wait_log("not an HTTP/1.1 request; a gRPC client must connect to PORT instead")
    assert (said["level"], said["peer"]) == ("warning", "127.0.0.1")
    assert "exception" not in said
    assert "Traceback" not in server.output
    for _ in range(20):  # whatever keeps knocking
        with socket.create_connection(("127.0.0.1", server.http)) as knocking:
            knocking.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            knocking.recv(1)
    assert sum(line.get("event") == said["event"] for line in server.logs) <= 5
    assert server.get("/livez") == (200, "ok")


def test_when_nothing_answers_it_says_so_and_keeps_trying() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with watch(taken.getsockname()[1], *OLD) as command:
            seen = 0
            for wait in ("0.5", "1", "2"):
                seen = command.wait_line(
                    f"nothing answers: Connection refused; trying again in {wait} s", seen
                )
            command.interrupt()
            assert command.end(5) == 0
            assert command.errors == []


@pytest.mark.parametrize("protocol", ["feed", "old"])
def test_ctrl_c_does_not_wait_for_one_that_listens_and_says_nothing(protocol: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        watch(mute.getsockname()[1], "--protocol", protocol) as command,
    ):
        command.wait_line("connecting to")
        mute.accept()[0].close()
        command.interrupt()
        assert command.end(5) == 0


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "127.0.0.1",
        ":10002",
        "host:0",
        "host:65536",
        "host:x",
        "http://h:1",
        "::1:5",
        "a b:1",
    ],
)
def test_what_is_no_target_is_one_line(target: str) -> None:
    with Command("watch", target) as command:
        assert command.end() == 2
        assert command.lines == []
        [line] = command.errors
        assert re.fullmatch(r"pads-cdc: watch: '.*' is not host:port; for example 127\.0\.0\.1:10002", line)


@pytest.mark.parametrize(("protocol", "width"), [("feed", 80), ("old", 120)])
def test_on_a_terminal_it_is_a_screen_that_ctrl_c_closes(
    protocol: str, width: int, database: Database, serve: ServerFactory
) -> None:
    fill(database, 100)
    server = serve(database)
    with Terminal(
        "watch", f"localhost:{server.grpc}", "--protocol", protocol, width=width, height=24
    ) as terminal:
        terminal.wait("100 endpoints")
        database.execute("DELETE FROM portal_applications WHERE id = 'app_7'")
        terminal.wait("99 endpoints")
        database.execute(
            """
            INSERT INTO portal_applications VALUES ('an_id_of_24_characters_x', 'acc_1');
            UPDATE pay_plans SET monthly_relay_limit = 2000000000, throughput_limit = 1000000
            WHERE plan_type = 'plan_1'
            """
        )
        terminal.wait("2,000,000,000/month")
        wait_until(lambda: "an_id_of" in terminal.frame(), "a frame with everything")
        shown = terminal.frame()
        # Nothing is cut: what is too wide for a line is folded.
        assert all(len(line) <= width for line in shown.splitlines()), shown
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown
        for word in ("app_7", "capacity", "1,000,000", "plan_1", "Ctrl-C ends it"):
            assert word in shown, shown

        terminal.type("\x03")
        assert terminal.end() == 0
        # The cursor and what was on the screen before are back.
        assert terminal.text.rstrip().endswith("\x1b[?25h\x1b[?1049l")
        assert "key_" not in terminal.text.replace("api_key", "")


def test_it_resumes_when_the_server_comes_back(database: Database, serve: ServerFactory) -> None:
    fill(database, 10)
    server = serve(database)
    with watch(server.grpc) as command:
        seen = command.wait_line("in sync: 10 endpoints, digest verified")
        assert server.stop() == 0
        seen = command.wait_line(r"shutting down.*; trying again in 0\.\d s", seen)
        seen = command.wait_line("nothing answers: Connection refused; trying again in", seen)
        database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
        serve(database, PORT=str(server.grpc))
        seen = command.wait_line("resumed, catching up", seen)
        seen = command.wait_line("delete  app_1$", seen)
        command.wait_line("in sync: 9 endpoints, digest verified", seen)
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 0
        assert command.errors == []


def test_json_until_synced_and_on_from_there(database: Database, serve: ServerFactory) -> None:
    fill(database, 20)
    database.execute("UPDATE portal_application_settings SET secret_key = %s", (KEY,))
    server = serve(database)
    with watch(server.grpc, "--json", "--until-synced") as command:
        assert command.end() == 0
        events = [json.loads(line) for line in command.lines]
        assert command.errors == []
    reset, *changes, checkpoint = events
    assert (reset["event"], reset["reason"], reset["endpoints"]) == ("reset", "no_token", 20)
    assert {(each["event"], each["initial"]) for each in changes} == {("upsert", True)}
    oracle = expected(database)
    assert {each["endpoint_id"] for each in changes} == oracle.keys()
    assert (checkpoint["event"], checkpoint["verified"], checkpoint["endpoints"]) == ("checkpoint", True, 20)
    assert checkpoint["digest"] == bytes(Digest.of(oracle)).hex()
    assert KEY not in json.dumps(events)

    database.execute("DELETE FROM portal_applications WHERE id = 'app_3'")
    database.execute("INSERT INTO portal_applications VALUES ('app_new', 'acc_1')")
    server.wait_metric(22, "pads_cdc_published_total")
    with watch(server.grpc, "--json", "--resume", checkpoint["resume_token"]) as command:
        command.wait_line('"event": "checkpoint"')
        command.interrupt()
        assert command.end() == 0
        resumed, *changes, checkpoint = [json.loads(line) for line in command.lines]
    assert resumed["event"] == "resumed"
    assert [(each["event"], each["endpoint_id"]) for each in changes] == [
        ("delete", "app_3"),
        ("upsert", "app_new"),
    ]
    assert changes[1]["plan_type"] == "plan_1"
    assert changes[1]["initial"] is False
    # It holds none of the other endpoints, so it cannot prove anything.
    assert checkpoint["verified"] is False


def test_a_token_that_is_no_good_any_more_brings_everything(database: Database, serve: ServerFactory) -> None:
    fill(database, 5)
    server = serve(database)
    with watch(server.grpc, "--until-synced", "--json", "--resume", "bm8gdG9rZW4=") as command:
        assert command.end() == 0
        reset, *changes, checkpoint = [json.loads(line) for line in command.lines]
    assert (reset["event"], reset["reason"], len(changes)) == ("reset", "malformed", 5)
    assert checkpoint["verified"] is True


def test_a_pipe_that_is_closed_ends_it(database: Database, serve: ServerFactory) -> None:
    fill(database, 5)
    server = serve(database, PROGRESS_INTERVAL="1s")
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [PADS_CDC, "watch", f"127.0.0.1:{server.grpc}", "--json"], stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        pipe.readline()
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, b"")


def test_ctrl_c_ends_it_though_nobody_reads_the_pipe(database: Database, serve: ServerFactory) -> None:
    fill(database, 2000)  # more than a pipe holds
    server = serve(database)
    process = subprocess.Popen(
        [PADS_CDC, "watch", f"127.0.0.1:{server.grpc}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        # Of 65,536, in pages that lines do not fill to the last byte.
        wait_until(lambda: _unread(process.stdout) >= 55_000, "a full pipe")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == b""


def _unread(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    [count] = array("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return count


def test_through_tls_with_a_certificate_and_a_token(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    fill(database, 5)
    authority = Authority()
    pair = authority.issue("both")  # it is good for either side
    files = {
        "ca": write_secret(tmp_path / "ca", authority.certificate),
        "cert": write_secret(tmp_path / "cert", pair.certificate),
        "key": write_secret(tmp_path / "key", pair.key),
        "token": write_secret(tmp_path / "token", TOKEN),
        "tokens": write_secret(tmp_path / "tokens", f"people:{TOKEN}\n"),
    }
    server = serve(
        database,
        TLS_CERT_FILE=str(files["cert"]),
        TLS_KEY_FILE=str(files["key"]),
        TLS_CLIENT_CA_FILE=str(files["ca"]),
        AUTH_TOKENS_FILE=str(files["tokens"]),
    )
    options = [f"--{name}-file={files[name]}" for name in ("ca", "cert", "key", "token")]
    with watch(server.grpc, "--until-synced", *options) as command:
        assert command.end() == 0
        command.wait_line("in sync: 5 endpoints, digest verified")
    with watch(server.grpc, *options[:-1]) as command:
        command.wait_line("UNAUTHENTICATED: a valid token is needed.*; trying again in")
        command.interrupt()
        assert command.end() == 0
        assert TOKEN not in command.told()
    with watch(server.grpc, options[0], options[-1]) as command:
        command.wait_line("; trying again in")  # without a certificate there is no connection
        command.interrupt()
        assert command.end() == 0


def test_a_token_in_plaintext_on_this_machine_only(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    fill(database, 5)
    tokens = write_secret(tmp_path / "tokens", f"people:{TOKEN}\n")
    server = serve(database, AUTH_TOKENS_FILE=str(tokens))
    file = write_secret(tmp_path / "token", f"{TOKEN}\n")
    with watch(server.grpc, "--until-synced", "--token-file", str(file)) as command:
        assert command.end() == 0
    with Command("watch", "gateway.example:10002", "--token-file", str(file)) as command:
        assert command.end() == 2
        assert command.errors == [
            "pads-cdc: watch: --token-file needs --ca-file: a token never travels in plaintext"
        ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--protocol", "old", "--json"), "--protocol old has no other options; leave out --json"),
        (("--resume", "%%%"), "--resume takes a token as --json prints it at each checkpoint"),
        (("--resume", ""), "--resume takes a token as --json prints it at each checkpoint"),
        (
            ("--cert-file", "cert", "--ca-file", "ca"),
            "--cert-file and --key-file go together, and with --ca-file",
        ),
        (("--ca-file", "/no/such/file"), "/no/such/file: No such file or directory"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: tuple[str, ...], complaint: str) -> None:
    with watch(10002, *options) as command:
        assert command.end() == 2
        assert command.lines == []
        assert command.errors == [f"pads-cdc: watch: {complaint}"]
