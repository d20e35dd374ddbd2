"""The command as people run it: real processes, what they print and how they exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.config.settings_table import rows

COMMAND = str(Path(sys.executable).parent / "pads-cdc")
SECRET = "hunter22secret"
URL = f"postgresql://streamer:{SECRET}@127.0.0.1:1/portal"

BOOM = """
import sys
from cdc.errors import ConfigurationError, PadsCdcError, Refusal
from server.commands import cli
@cli.cli.command()
def boom() -> None:
    {body}
cli.main(["boom"])
"""


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {row.environment for row in rows()}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=kept | environment
    )


def pads_cdc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([COMMAND, *arguments], **environment)


def boom(body: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", BOOM.format(body=body)])


def test_the_version() -> None:
    done = pads_cdc("--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "pads-cdc,", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["serve", "--help"], ["demo", "-h"], ["watch", "-h"]]
)
def test_help(arguments: list[str]) -> None:
    done = pads_cdc(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: pads-cdc")


def test_the_help_of_serve_has_every_setting_with_its_name_in_the_environment() -> None:
    text = " ".join(pads_cdc("serve", "--help").stdout.split())
    for row in rows():
        assert f"{row.flag} " in text
        assert f"[{row.environment}{'; default: ' + row.default if row.default else ''}]" in text


def test_help_needs_nothing_that_takes_time_to_import() -> None:
    heavy = "grpc", "aiohttp", "prometheus_client", "psycopg2", "pydantic", "rich"
    code = f"import sys, server.commands.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["serve"], {}, "POSTGRES_CONNECTION_STRING (--postgres-connection-string): is required"),
        (["serve"], {"POSTGRES_CONNECTION_STRING": f"nonsense {SECRET}"}, "POSTGRES_CONNECTION_STRING"),
        (["serve", "--port", "ten"], {"POSTGRES_CONNECTION_STRING": URL}, "PORT (--port): 'ten'"),
        (["serve", "--host", URL], {"POSTGRES_CONNECTION_STRING": URL}, "HOST (--host)"),
        (["serve", "--host", "0.0.0.0"], {"POSTGRES_CONNECTION_STRING": URL}, "ALLOW_INSECURE"),  # noqa: S104 (refused)
        (
            ["serve", "--host", "0.0.0.0", "--no-allow-insecure"],  # noqa: S104 (refused)
            {"POSTGRES_CONNECTION_STRING": URL, "ALLOW_INSECURE": "true"},
            "ALLOW_INSECURE",
        ),
        (
            ["serve"],
            {"POSTGRES_CONNECTION_STRING": URL, "POSTGRES_CONNECTION_STRING_FILE": "x"},
            "exactly one",
        ),
        (["serve", "--prot", "1"], {}, "see pads-cdc serve --help"),
        (["serve", URL], {}, "see pads-cdc serve --help"),
        (["serv"], {}, "serv"),
        (["demo", "--seconds", "soon"], {}, "'soon' is not a number of seconds, 1 or more; for example 20"),
        (["demo", "--seconds", "0"], {}, "see pads-cdc demo --help"),
        (["demo", "--seconds", "inf"], {}, "is not a number of seconds"),
    ],
)
def test_what_is_typed_wrong_is_one_line_and_exit_code_2(
    arguments: list[str], environment: dict[str, str], says: str
) -> None:
    done = pads_cdc(*arguments, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pads-cdc: ")
    assert says in done.stderr
    assert SECRET not in done.stderr


def test_alone_it_shows_its_help() -> None:
    done = pads_cdc()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == pads_cdc("--help").stdout


def test_a_misspelt_setting_is_named_with_what_it_was_meant_for() -> None:
    done = pads_cdc("serve", POSTGRES_CONECTION_STRING=URL)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert "POSTGRES_CONNECTION_STRING (--postgres-connection-string): is required" in first
    assert second == (
        "pads-cdc: POSTGRES_CONECTION_STRING is not a setting and is ignored;"
        " did you mean POSTGRES_CONNECTION_STRING?"
    )
    assert SECRET not in done.stderr
    done = pads_cdc("check", POSTGRES_CONNECTION_STRING=URL, SLOTNAME="mine")
    assert "pads-cdc: SLOTNAME is not a setting and is ignored; did you mean SLOT_NAME?" in done.stderr
    assert done.returncode == 1


def test_two_bad_settings_are_two_lines() -> None:
    done = pads_cdc("serve", PORT="x", SLOT_NAME="-", POSTGRES_CONNECTION_STRING=URL)
    assert done.returncode == 2
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["SLOT_NAME", "PORT"]


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("raise ConfigurationError('type this')", 2, "pads-cdc: type this\n"),
        ("raise Refusal('wal_level is replica')", 1, "pads-cdc: wal_level is replica\n"),
        ("raise PadsCdcError('port taken')", 1, "pads-cdc: port taken\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(3)", 3, ""),
    ],
)
def test_an_expected_end_has_its_code_and_no_traceback(body: str, code: int, stderr: str) -> None:
    done = boom(body)
    assert (done.returncode, done.stderr.lstrip("\n"), done.stdout) == (code, stderr, "")


def test_what_a_command_returns_is_the_exit_code() -> None:
    assert boom("return 1").returncode == 1
    assert boom("return None").returncode == 0


def test_a_fault_of_ours_shows_where_it_is_but_no_secret() -> None:
    done = boom(f"raise RuntimeError('failed for {URL}')")
    assert done.returncode == 1
    assert "RuntimeError: failed for" in done.stderr
    assert "this is a bug" in done.stderr
    assert SECRET not in done.stderr


def test_a_password_is_not_shown_in_whatever_form_a_driver_quotes_it() -> None:
    body = f"""import server.config.connection_string as c
    s = c.ConnectionString('X', value={URL!r}); s.read()
    import click; click.get_current_context().obj.append(s)
    raise PadsCdcError('the word {SECRET} is wrong')"""
    assert boom(body).stderr == "pads-cdc: the word [redacted] is wrong\n"


def test_ctrl_c_is_no_traceback() -> None:
    # A job in the background of a script ignores SIGINT, and so would its children: the tests may run in one.
    given = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    body = f"{given}; print('ready', flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", BOOM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == ""


def test_a_reader_that_has_had_enough_is_no_traceback() -> None:
    body = "import click\n    while True: click.echo('line')"
    with subprocess.Popen(
        [sys.executable, "-c", BOOM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["check", "--json"]])
def test_an_output_that_takes_no_more_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | {"POSTGRES_CONNECTION_STRING": URL},
        )
    assert done.returncode == 1
    assert done.stderr == "pads-cdc: cannot write to the standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["serv"], [], ["serve", "--port", "none"]])
def test_errors_that_nobody_can_be_told_are_an_exit_code(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, *arguments], stdout=full, stderr=full, check=False, timeout=60)
    assert done.returncode == 2
