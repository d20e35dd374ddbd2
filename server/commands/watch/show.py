"""Shows events until Ctrl-C: on a screen, as lines of text, or as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from rich.console import Console

from server.commands.interrupt import Interrupt
from server.commands.watch.lines import now
from server.commands.watch.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.commands.watch.feed import FeedSubscriber
    from server.commands.watch.screen import Watched

_FRAME: Final = 0.25
"""Seconds between two updates of the view."""


def show(watched: Watched) -> None:
    """Show events on the terminal or as lines, until Ctrl-C or until `read` returns."""
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


def write_json(feed: FeedSubscriber, *, until_synced: bool) -> None:
    """Write one line of JSON for every event to the standard output. If the pipe is slow, the stream is slow
    too.
    """
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
            reading.set_result(None)  # the pipe has no reader any more
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            reading.set_exception(error)

    with done:
        # The thread is a daemon, because it may hang in a pipe that nobody reads and that is not closed.
        threading.Thread(target=read, name="subscriber", daemon=True).start()
        for _ in _frames(reading, done):
            pass
        feed.close()
    if reading.done():
        reading.result()


def _write(line: str) -> None:
    left = line.encode() + b"\n"
    while left:  # sys.stdout is not used, since a hanging thread would keep its lock
        left = left[os.write(sys.stdout.fileno(), left) :]


def _frames(reading: Future[None], interrupt: Interrupt) -> Iterator[None]:
    """Yield at each update of the view, until Ctrl-C or the end of the reading thread, and once more after
    that.
    """
    while not interrupt.requested:
        ended = reading.done()
        yield
        if ended:
            return
        interrupt.wait(_FRAME)


def _draw(console: Console, watched: Watched, reading: Future[None], interrupt: Interrupt) -> None:
    with Screen(console, watched) as screen:
        for _ in _frames(reading, interrupt):
            screen.draw()
