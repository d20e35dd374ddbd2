"""Logging: one line for each event, for a person (console) or a machine (JSON), without secrets.

The loggers of structlog and those of the standard library (grpc, aiohttp, asyncio) have the same handler, so
there is one format, one level, one limit on repeated lines and one redactor.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from server.config.redaction import HIDDEN, Redactor, names_a_secret
from server.observe.log_writer import LogWriter, standard_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor

    from server.config.base import CommandSettings


def configure(settings: CommandSettings) -> LogWriter:
    """Send all logging of the process to standard error, without ever waiting for its reader.

    This replaces any earlier configuration. Returns the new standard error.
    """
    writer = standard_error(lambda missing: _report_missing(handler, missing))
    handler = configure_to(settings, cast("TextIO", writer))
    return writer


def configure_to(settings: CommandSettings, stream: TextIO) -> logging.Handler:
    """Send all logging of the process to ``stream``. Return the handler that writes to it."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a logger made at import must follow a later configure()
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(RepeatLimit())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                _add_repeats,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,  # richer formats would print local variables
                _Redaction(Redactor(settings.connection_strings)),
                _console() if settings.console else _json(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.logger_level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    return handler


def _report_missing(handler: logging.Handler, missing: int) -> None:
    text = f"{missing} log lines are missing here: nobody read standard error"
    record = logging.makeLogRecord({"name": "pads_cdc", "levelno": logging.WARNING, "msg": text})
    record.levelname = logging.getLevelName(record.levelno)
    handler.emit(record)  # directly, because the limit on repeated lines could drop it


class RepeatLimit(logging.Filter):
    """Passes up to ``BURST`` lines of the same event in ``WINDOW`` seconds. Further lines are dropped and
    counted.

    The first line after the window contains the number of dropped lines (``repeats_dropped``). Two lines
    belong to the same event if their level, logger, text and ``reason`` are equal. Debug lines always pass.
    """

    BURST = 5
    WINDOW = 30.0
    _REMEMBERED = 1024

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: OrderedDict[int, tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write this line. Thread-safe."""
        if record.levelno <= logging.DEBUG:
            return True
        event = record.msg if isinstance(record.msg, dict) else {"event": record.msg}
        # Keep only the hash of the key, since a library's line may be very long.
        key = hash((record.levelno, record.name, str(event.get("event")), str(event.get("reason"))))
        now = self._clock()
        with self._lock:
            began, seen = self._windows.pop(key, (now, 0))
            if now - began >= self.WINDOW:
                record.repeats_dropped = max(0, seen - self.BURST)
                began, seen = now, 0
            self._windows[key] = (began, seen + 1)
            if len(self._windows) > self._REMEMBERED:
                self._windows.popitem(last=False)
        return seen < self.BURST


class _Redaction:
    """The last step before a line is rendered.

    It turns every value into a text without secrets, or a number.
    """

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        return {self._redact(name): self._clean(name, value) for name, value in event.items()}

    def _clean(self, name: str, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if names_a_secret(name):
            return HIDDEN
        if isinstance(value, dict):
            return {self._redact(str(key)): self._clean(str(key), of) for key, of in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(name, of) for of in value]
        text = self._redact(value if isinstance(value, str) else str(value))
        # Drivers put line breaks into messages. Only tracebacks keep them; these are about faults of our own
        # code.
        return text if name in ("exception", "stack") else " ".join(text.split())


def _add_repeats(_logger: object, _method: str, event: EventDict) -> EventDict:
    dropped = getattr(event["_record"], "repeats_dropped", 0)
    if dropped:
        event["repeats_dropped"] = dropped
    return event


def _console() -> Processor:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


def _json() -> Processor:
    return structlog.processors.JSONRenderer(sort_keys=False)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    """Log an uncaught exception. Python's own hook would print it unredacted."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    structlog.get_logger("pads_cdc").critical(
        "uncaught error", error=kind.__name__, exc_info=(kind, error, trace)
    )
