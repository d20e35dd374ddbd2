"""Logs: the form of a line, the limit on repeats, and that nothing secret gets out on any way."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import structlog

from cdc.observer import ReconcileSeen
from server.config.redaction import HIDDEN, Redactor, redact
from server.config.settings import Settings
from server.observe import logs
from server.observe.log_observer import LogObserver
from tests.plugins.server import DEADLINE, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

SECRET = "hunter22secret"
URL = f"postgresql://streamer:{SECRET}@127.0.0.1:1/portal"


class Console:
    """Configured logging, and what it wrote."""

    def __init__(self) -> None:
        self._stream = io.StringIO()

    def configure(self, **flags: str) -> None:
        flags = {"postgres_connection_string": URL, "log_format": "json"} | flags
        logs.configure_to(Settings.load(flags), self._stream)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def console() -> Iterator[Console]:
    root = logging.getLogger()
    before = (root.handlers, root.level, sys.excepthook, threading.excepthook)
    yield Console()
    root.handlers, level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_an_event_is_one_line_of_json(console: Console) -> None:
    console.configure()
    structlog.get_logger("pads_cdc").info("source connected", mode="streaming", revision=7)
    (line,) = console.lines
    assert line["event"] == "source connected"
    assert (line["level"], line["logger"], line["mode"], line["revision"]) == (
        "info",
        "pads_cdc",
        "streaming",
        7,
    )
    assert line["timestamp"].endswith("Z")


def test_the_console_form_is_one_line_too(console: Console) -> None:
    console.configure(log_format="console")
    structlog.get_logger("pads_cdc").warning("source lost", message="no\n\troute\nto host")
    assert console.text.count("\n") == 1
    assert "no route to host" in console.text


def test_the_standard_librarys_loggers_go_the_same_way(console: Console) -> None:
    console.configure()
    logging.getLogger("grpc").warning("odd %s from %s", "frame", URL)
    (line,) = console.lines
    assert (line["logger"], line["level"]) == ("grpc", "warning")
    assert SECRET not in line["event"]
    assert line["event"].startswith("odd frame")


def test_the_level_holds_for_both(console: Console) -> None:
    console.configure(logger_level="warning")
    structlog.get_logger("pads_cdc").info("quiet")
    logging.getLogger("asyncio").info("quiet")
    logging.getLogger("asyncio").error("loud")
    assert [line["event"] for line in console.lines] == ["loud"]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "log",
    [
        lambda log: log.info(URL),
        lambda log: log.info("connecting", to=URL),
        lambda log: log.info("connecting", arguments=[{"deep": (URL,)}]),
        lambda log: log.info("connecting", dsn=f"host=h password={SECRET}"),
        lambda log: log.info(
            "refused", error=psycopg2.OperationalError(f"user u, pass {SECRET}\nDETAIL: {URL}")
        ),
        lambda log: log.info("refused", **{f"key {SECRET}": 1}),
        lambda log: log.info("header", authorization="Bearer abc" + SECRET),
        lambda log: log.info("bytes", raw=SECRET.encode()),
    ],
)
def test_no_secret_gets_out(console: Console, log: Callable[[Any], None], log_format: str) -> None:
    console.configure(log_format=log_format)
    log(structlog.get_logger("pads_cdc"))
    assert console.text
    assert SECRET not in console.text


def test_a_traceback_shows_neither_secrets_nor_local_variables(console: Console) -> None:
    console.configure()
    local = "a-local-" + "value"
    try:
        psycopg2.connect(URL + "?connect_timeout=nonsense" + local.upper())
    except psycopg2.OperationalError:
        structlog.get_logger("pads_cdc").exception("failed")
    assert "OperationalError" in console.text
    assert SECRET not in console.text
    assert local not in console.text


def test_an_uncaught_error_in_a_thread_is_logged_without_secrets(console: Console) -> None:
    console.configure()
    hook = threading.excepthook
    error = ValueError(URL)
    hook(threading.ExceptHookArgs((ValueError, error, None, threading.current_thread())))
    (line,) = console.lines
    assert (line["event"], line["level"], line["error"]) == ("uncaught error", "critical", "ValueError")
    assert SECRET not in console.text


def test_warnings_are_lines(console: Console) -> None:
    console.configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("deprecated", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = console.lines
    assert line["logger"] == "py.warnings"


def test_a_rotated_password_is_known_once_it_was_read(console: Console, tmp_path: Any) -> None:
    file = tmp_path / "dsn"
    file.write_text(URL)
    settings = Settings.load({"postgres_connection_string_file": str(file), "log_format": "json"})
    stream = io.StringIO()
    logs.configure_to(settings, stream)
    file.write_text(URL.replace(SECRET, "rotated-word"))
    settings.postgres_connection_string.read()
    structlog.get_logger("pads_cdc").info("the old one", text=f"{SECRET} and rotated-word")
    assert SECRET not in stream.getvalue()
    assert "rotated-word" not in stream.getvalue()
    assert console.text == ""


def test_a_short_password_is_hidden_without_spoiling_words() -> None:
    settings = Settings.load({"postgres_connection_string": "postgresql://u:cat@h/db"})
    hide = Redactor(settings.connection_strings)
    assert hide("category cat 'cat'") == f"category {HIDDEN} '{HIDDEN}'"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgres://u:p@ss w@h", "p@ss"),
        ("POSTGRESQL://u:xyzzy@h", "xyzzy"),
        ("http://u:xyzzy@h/metrics", "xyzzy"),
        ("host=h password=xyzzy dbname=d", "xyzzy"),
        ("host=h password = 'wo\\'rd more' dbname=d", "more"),
        ("password='unterminated xyzzy", "xyzzy"),
        ('{"password": "xyzzy"}', "xyzzy"),
        ("PGPASSWORD=xyzzy", "xyzzy"),
        ("Authorization: Bearer xyzzy", "xyzzy"),
        ("{'secret_key': 'xyzzy'}", "xyzzy"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, hidden: str) -> None:
    assert hidden not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user x",
        "slot pads_cdc at 16/B374D848",
        "127.0.0.1:10002",
        "a@b.example",
    ],
)
def test_what_does_not_is_left_alone(text: str) -> None:
    assert redact(text) == text


def _record(event: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("pads_cdc", level, __file__, 1, event, None, None)


def test_repeats_are_dropped_and_counted() -> None:
    now = 0.0
    limit = logs.RepeatLimit(clock=lambda: now)
    event = {"event": "source lost", "reason": "refused"}
    assert [limit.filter(_record(event)) for _ in range(8)] == [True] * 5 + [False] * 3
    assert limit.filter(_record(event | {"reason": "timeout"})), "another reason is another event"
    assert limit.filter(_record(event, logging.ERROR)), "another level is another event"
    assert all(limit.filter(_record(event, logging.DEBUG)) for _ in range(9))
    now = 30.0
    after = _record(event)
    assert limit.filter(after)
    assert after.__dict__["repeats_dropped"] == 3


def test_the_count_of_dropped_repeats_is_in_the_line(console: Console) -> None:
    console.configure()
    now = 0.0
    (limit,) = logging.getLogger().handlers[0].filters
    assert isinstance(limit, logs.RepeatLimit)
    limit._clock = lambda: now
    for log in (structlog.get_logger("ours").error, logging.getLogger("theirs").error):
        for _ in range(7):
            log("again")
    now = 31.0
    structlog.get_logger("ours").error("again")
    logging.getLogger("theirs").error("again")
    assert len(console.lines) == 12
    assert [line.get("repeats_dropped") for line in console.lines] == [None] * 10 + [2, 2]


def test_the_limit_remembers_a_bounded_number_of_events() -> None:
    limit = logs.RepeatLimit()
    for number in range(5000):
        assert limit.filter(_record(f"event {number}"))
    assert len(limit._windows) == 1024


def test_the_journal_tells_changes_once(console: Console) -> None:
    console.configure()
    observer = LogObserver()
    for _ in range(3):
        observer.mode("polling")
        observer.connected(connected=False)
        observer.trouble("owed", "a reconcile is owed")
    observer.trouble("owed", None)
    observer.trouble("owed", None)
    assert [line["event"] for line in console.lines] == [
        "source mode",
        "source disconnected",
        "trouble",
        "trouble is over",
    ]


def test_polling_that_finds_nothing_is_no_line(console: Console) -> None:
    console.configure()
    observer = LogObserver()
    for upserts in (3, 0, 0, 1, 0):
        observer.reconciled(ReconcileSeen("polling", endpoints=9, upserts=upserts, deletes=0, seconds=0.01))
    assert [line["upserts"] for line in console.lines] == [3, 1]


def test_the_journal_says_the_same_of_a_source_that_stays_away_once_a_minute(console: Console) -> None:
    console.configure()
    now = 0.0
    observer = LogObserver(lambda: now)
    for _ in range(300):  # a slot that another has is asked for five times a second
        observer.reconnecting("slot_held", "active for PID 7")
        now += 0.2
    observer.reconnecting("slot_held", "active for PID 7")
    observer.reconnecting("slot_held", "active for PID 8")
    observer.connected(connected=True)
    observer.reconnecting("slot_held", "active for PID 8")
    lost = [line["message"] for line in console.lines if line["event"] == "source lost, reconnecting"]
    assert lost == [f"active for PID {pid}" for pid in (7, 7, 8, 8)]


def test_the_journal_waits_with_a_slot_s_creation(console: Console) -> None:
    """On an idle server it takes a moment, too."""
    console.configure()
    now = 0.0
    observer = LogObserver(lambda: now)
    observer.trouble("slot_creation", "waits for a transaction")
    now = 1.0
    observer.trouble("slot_creation", None)
    assert console.lines == []
    for _ in range(5):
        now += 1
        observer.trouble("slot_creation", "waits for a transaction")
    observer.trouble("slot_creation", None)
    assert [line["event"] for line in console.lines] == ["trouble", "trouble is over"]


def test_a_transaction_can_be_followed_from_its_commit_to_its_publication(
    database: Database, serve: ServerFactory
) -> None:
    fill(database, 3)
    server = serve(database, LOGGER_LEVEL="debug")
    server.wait_log("map reconciled", reason="slot_created")
    [(xid,)] = database.rows(
        "UPDATE portal_application_settings SET secret_key = 'hunter22' WHERE application_id = 'app_1'"
        " RETURNING pg_current_xact_id()::text::bigint % 4294967296"
    )
    line = server.wait_log("transaction published", xid=xid)
    assert line["rows"] == {"portal_application_settings update": 1}
    assert (line["affected"], line["level"]) == (1, "debug")
    committed = datetime.fromisoformat(line["committed_at"])
    assert abs(datetime.now(UTC) - committed).total_seconds() < DEADLINE
    took = [line[f"{what}_seconds"] for what in ("visible_after", "requery", "published_after")]
    assert 0 <= min(took) <= max(took) < DEADLINE
    # The LSN and the revision lead to the batch, and on to what a subscriber of the feed is told.
    batch = server.wait_log("batch published", end=line["end"])
    assert batch["revision"] == line["revision"]
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", line["end"])
    assert "hunter22" not in server.output


def test_configured_logging_goes_to_standard_error_and_nowhere_else() -> None:
    code = (
        "import structlog; from server.observe import logs; from server.config.settings import Settings;"
        f"logs.configure(Settings.load({{'postgres_connection_string': {URL!r}}}));"
        f"structlog.get_logger('pads_cdc').info('started'); raise ValueError({URL!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == ""
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["started", "uncaught error"], "json is the form where there is no terminal"
    assert SECRET not in done.stderr
