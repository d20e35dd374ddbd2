"""Bring what is watched to where people or programs look: a screen, lines, or lines of JSON; until Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from server.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.watch.feed import Feed

_FRAME: Final = 0.25
"""Seconds between two looks at what has come."""
_AROUND: Final = 9
"""Lines of the screen that are not changes."""
_WIDTHS: Final = (8, 6, 24, 14, 12, 40)
"""Of a change's cells on the screen: an application's id has up to 24 characters."""
_KEPT: Final = 10_000
"""Lines that wait to be shown: a screen needs some dozens, a slow pipe gets the newest."""


def now() -> datetime:
    """Return the time with the zone of people here."""
    return datetime.now().astimezone()


@dataclass(frozen=True)
class Line:
    """Something that happened, as it is shown; it holds no key."""

    what: str
    endpoint_id: str = ""
    auth: str = ""
    plan: str = ""
    limits: str = ""
    at: datetime = field(default_factory=now)

    def __str__(self) -> str:
        parts = (self.what, self.endpoint_id, self.auth, self.plan, self.limits)
        return f"{self.at:%H:%M:%S.%f}"[:-3] + "  " + "  ".join(part for part in parts if part)


class Lines:
    """Lines on their way from the thread that reads to the one that shows."""

    def __init__(self, first: Line) -> None:
        self._lock = threading.Lock()
        self._new: deque[Line] = deque([first], _KEPT)

    def add(self, line: Line) -> None:
        """Have it shown."""
        with self._lock:
            self._new.append(line)

    def take(self) -> list[Line]:
        """Return those since the last time."""
        with self._lock:
            lines = list(self._new)
            self._new.clear()
        return lines


class Watched(Protocol):
    """A subscriber, and what has been seen through it; one thread reads, another shows."""

    target: str
    lines: Lines

    def read(self) -> None:
        """Follow the server until `close`, or until there is nothing more to wait for."""

    def close(self) -> None:
        """End `read`; returns at once."""

    def head(self) -> Text:
        """Say how things stand."""


def show(watched: Watched) -> None:
    """Show it on the terminal or as lines, until Ctrl-C or until `read` returns."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    with Interrupt() as interrupt, ThreadPoolExecutor(1, "subscriber") as threads:
        try:
            reading = threads.submit(watched.read)
            if console.is_terminal:
                _draw(console, watched, reading, interrupt)
            else:
                for _ in _frames(reading, interrupt):
                    for line in watched.lines.take():
                        console.print(str(line))
        finally:
            watched.close()
        reading.result()


def write_json(feed: Feed, *, until_synced: bool) -> None:
    """Write one line an event to the standard output, none left out: a slow pipe slows the stream down."""
    done = Interrupt()
    reading: Future[None] = Future()

    def read() -> None:
        try:
            for event in feed.events():
                _write(json.dumps({"at": now().isoformat(timespec="microseconds"), **event.public()}))
                if until_synced and event.synced:
                    break
            reading.set_result(None)
        except BrokenPipeError:
            reading.set_result(None)  # nobody reads it any more
        except BaseException as error:  # noqa: BLE001 - for the main thread, which raises it
            reading.set_exception(error)

    with done:
        # A daemon, because it may hang in a pipe that nobody reads and that nobody closes.
        threading.Thread(target=read, name="subscriber", daemon=True).start()
        for _ in _frames(reading, done):
            pass
        feed.close()
    if reading.done():
        reading.result()


def _write(line: str) -> None:
    left = line.encode() + b"\n"
    while left:  # not by sys.stdout, whose lock a hanging thread would take with it
        left = left[os.write(sys.stdout.fileno(), left) :]


def _frames(reading: Future[None], interrupt: Interrupt) -> Iterator[None]:
    """Yield when it is time to look, once more after the reader has ended; until then or Ctrl-C."""
    while not interrupt.requested:
        ended = reading.done()
        yield
        if ended:
            return
        interrupt.wait(_FRAME)


def _draw(console: Console, watched: Watched, reading: Future[None], interrupt: Interrupt) -> None:
    latest: deque[Line] = deque(maxlen=200)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in _frames(reading, interrupt):
            latest.extendleft(watched.lines.take())
            live.update(_screen(watched, list(latest)[: max(3, console.height - _AROUND)]), refresh=True)


def _screen(watched: Watched, lines: list[Line]) -> Group:
    rows = [_row("at", "change", "endpoint", "auth", "plan", "limits", style="bold")]
    for line in lines:
        at, style = f"{line.at:%H:%M:%S}", {"delete": "red", "upsert": ""}.get(line.what, "yellow")
        if line.endpoint_id:
            rows.append(_row(at, line.what, line.endpoint_id, line.auth, line.plan, line.limits, style=style))
        else:
            rows.append(_row(at, style=style).append(line.what))
    return Group(Panel(watched.head(), title=watched.target, subtitle="Ctrl-C ends it"), *rows)


def _row(*cells: str, style: str) -> Text:
    # Text, because ids and plans are other people's strings and may look like markup.
    row = "".join(set_cell_size(cell, width) + "  " for cell, width in zip(cells, _WIDTHS, strict=False))
    return Text(row, style=style, no_wrap=True, overflow="ellipsis")
