"""`pads-cdc watch` as people run it, against real servers and against what is none."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.command import Command
from tests.fix_server import fill
from tests.terminal import Terminal

if TYPE_CHECKING:
    from tests.fix_postgres import Database
    from tests.fix_server import ServerFactory

KEY = "hunter22" * 4


def watch(port: int) -> Command:
    return Command("watch", f"127.0.0.1:{port}")


def test_a_line_for_each_change_and_never_a_key(database: Database, serve: ServerFactory) -> None:
    fill(database, 100)
    server = serve(database)
    with watch(server.grpc) as command:
        command.wait_line("fetched 100 endpoints")
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
        # The stream begins with everything that the fetch has brought already: that is no event.
        assert len(command.lines) == 6, command.told()
        assert KEY not in command.told()


def test_it_comes_back_when_the_server_does(database: Database, serve: ServerFactory) -> None:
    fill(database, 10)
    server = serve(database)
    with watch(server.grpc) as command:
        seen = command.wait_line("fetched 10 endpoints")
        assert server.stop() == 0
        seen = command.wait_line("shutting down; reconnect; trying again in 0.5 s", seen)
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
        command.wait_line("fetched 1 endpoints")
        database.execute("INSERT INTO portal_applications VALUES (E'[red]\\x1b[2J\\nx\u202e')")
        command.wait_line("upsert  \\[red\\]\ufffd\\[2J\ufffdx\ufffd  no_auth")
        command.interrupt()
        assert command.end() == 0


def test_when_nothing_answers_it_says_so_and_keeps_trying() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with watch(taken.getsockname()[1]) as command:
            seen = 0
            for wait in ("0.5", "1", "2"):
                seen = command.wait_line(
                    f"nothing answers: Connection refused; trying again in {wait} s", seen
                )
            command.interrupt()
            assert command.end(5) == 0
            assert command.errors == []


def test_ctrl_c_does_not_wait_for_one_that_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, watch(mute.getsockname()[1]) as command:
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


def test_on_a_terminal_it_is_a_screen_that_ctrl_c_closes(database: Database, serve: ServerFactory) -> None:
    fill(database, 100)
    server = serve(database)
    with Terminal("watch", f"localhost:{server.grpc}") as terminal:
        terminal.wait("100 endpoints")
        database.execute("DELETE FROM portal_applications WHERE id = 'app_7'")
        terminal.wait("app_7")
        terminal.wait("99 endpoints")
        terminal.type("\x03")
        assert terminal.end() == 0
        # The cursor and what was on the screen before are back.
        assert terminal.text.rstrip().endswith("\x1b[?25h\x1b[?1049l")
        assert "key_" not in terminal.text.replace("api_key", "")
