"""`pads-cdc watch`: what a server sends, live, as a subscriber of the old contract sees it; never a key."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cdc.errors import ConfigurationError
from server.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from server.old_client import Fetched, Lost, Subscriber, Update
    from server.pb.gateway_endpoint_pb2 import GatewayEndpoint

_FRAME: Final = 0.25
"""Seconds between two looks at what has come."""
_AROUND: Final = 9
"""Lines of the screen that are not changes."""
_TARGET: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_HIGHEST_PORT: Final = 65_535
_PERIODS: Final = ("", " a day", " a week", " a month")
"""By the numbers of CapacityLimitPeriod."""


def run(target: str) -> int:
    """Show what ``target`` (host:port) sends until Ctrl-C, and return 0; without a terminal, a line an event.

    Raises:
        ConfigurationError: it is no target.

    """
    match = _TARGET.fullmatch(target)
    if match is None or not 0 < int(match[1]) <= _HIGHEST_PORT:
        shown = _printable(target)
        raise ConfigurationError(f"watch: {shown!r} is not host:port; for example 127.0.0.1:10002")
    with Interrupt() as interrupt, ThreadPoolExecutor(1, "subscriber") as threads:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what happens to the connection is told by us
        from server.old_client import Subscriber  # noqa: PLC0415 - gRPC reads the variable when imported

        subscriber = Subscriber(target)
        watched = _Watched(target, subscriber)
        console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        try:
            reading = threads.submit(watched.read)
            if console.is_terminal:
                _draw(console, watched, reading, interrupt)
            else:
                _print(console, watched, reading, interrupt)
        finally:
            subscriber.close()
        reading.result()
    return 0


@dataclass(frozen=True)
class _Line:
    """Something that happened, as it is shown; it holds no key."""

    at: datetime
    what: str
    endpoint_id: str = ""
    auth: str = ""
    plan: str = ""
    limits: str = ""

    def __str__(self) -> str:
        parts = (self.what, self.endpoint_id, self.auth, self.plan, self.limits)
        return f"{self.at:%H:%M:%S.%f}"[:-3] + "  " + "  ".join(part for part in parts if part)


class _Watched:
    """What has been seen; written by the subscriber's thread, read by the one that shows it."""

    _KEPT = 10_000
    """Lines that wait to be shown: a screen needs some dozens, a slow pipe gets the newest."""

    def __init__(self, target: str, subscriber: Subscriber) -> None:
        self._lock = threading.Lock()
        self._subscriber = subscriber
        self.target = target
        self.state = "connecting"
        self.counts: Counter[str] = Counter()
        """Of ``upsert``, ``delete`` and ``repeated``, which said nothing new."""
        self.auth: Counter[str] = Counter()
        """Endpoints by how they authorize."""
        self._new: deque[_Line] = deque([_Line(_now(), f"connecting to {target}")], self._KEPT)

    def read(self) -> None:
        """Follow the subscriber until it is closed."""
        from server.old_client import Fetched, Lost  # noqa: PLC0415 - see `run`

        for event in self._subscriber.events():
            with self._lock:
                match event:
                    case Fetched():
                        self._fetched(event)
                    case Lost():
                        self._lost(event)
                    case _:
                        self._updated(event)

    def take(self) -> list[_Line]:
        """Return the lines since the last time."""
        with self._lock:
            lines = list(self._new)
            self._new.clear()
        return lines

    def auth_counts(self) -> list[tuple[str, int]]:
        """Return how many endpoints authorize how, the most frequent way first."""
        with self._lock:
            return [(kind, count) for kind, count in self.auth.most_common() if count]

    def _fetched(self, event: Fetched) -> None:
        self.auth = Counter(map(_auth, self._subscriber.endpoints.values()))
        self.state = "streaming"
        self._new.append(_Line(_now(), f"fetched {event.count:,} endpoints, streaming"))

    def _lost(self, event: Lost) -> None:
        self.state = f"{_printable(event.reason)}; trying again in {event.retry_seconds:g} s"
        self._new.append(_Line(_now(), self.state))

    def _updated(self, update: Update) -> None:
        if not update.changed:
            self.counts["repeated"] += 1
            return
        if update.before is not None:
            self.auth[_auth(update.before)] -= 1
        if update.after is None:
            self.counts["delete"] += 1
            self._new.append(_Line(_now(), "delete", _printable(update.endpoint_id)))
            return
        self.auth[_auth(update.after)] += 1
        self.counts["upsert"] += 1
        self._new.append(
            _Line(
                _now(),
                "upsert",
                _printable(update.endpoint_id),
                _auth(update.after),
                _printable(update.after.metadata.plan_type) or "no plan",
                _limits(update.after),
            )
        )


def _frames(reading: Future[None], interrupt: Interrupt) -> Iterator[None]:
    """Yield when it is time to look, until Ctrl-C or a fault of the reader."""
    while not interrupt.requested and not reading.done():
        interrupt.wait(_FRAME)
        yield


def _print(console: Console, watched: _Watched, reading: Future[None], interrupt: Interrupt) -> None:
    for _ in _frames(reading, interrupt):
        for line in watched.take():
            console.print(str(line))


def _draw(console: Console, watched: _Watched, reading: Future[None], interrupt: Interrupt) -> None:
    latest: deque[_Line] = deque(maxlen=200)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in _frames(reading, interrupt):
            latest.extendleft(watched.take())
            live.update(_screen(watched, list(latest)[: max(3, console.height - _AROUND)]), refresh=True)


def _screen(watched: _Watched, lines: list[_Line]) -> Group:
    auth = watched.auth_counts()
    head = Text(watched.state, style="bold green" if watched.state == "streaming" else "bold yellow")
    head.append(f"\n{sum(count for _, count in auth):,} endpoints", style="bold default")
    head.append("".join(f"   {count:,} {kind}" for kind, count in auth), style="default")
    head.append(
        f"\n{watched.counts['upsert']:,} upserts   {watched.counts['delete']:,} deletes   "
        f"{watched.counts['repeated']:,} repeated what was known",
        style="default",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("at", "latest changes", "endpoint", "auth", "plan", "limits"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        style = {"delete": "red", "upsert": ""}.get(line.what, "yellow")
        # Text, because ids and plans are other people's strings and may look like markup.
        cells = (f"{line.at:%H:%M:%S}", line.what, line.endpoint_id, line.auth, line.plan, line.limits)
        table.add_row(*map(Text, cells), style=style)
    return Group(Panel(head, title=watched.target, subtitle="Ctrl-C ends it"), table)


def _auth(endpoint: GatewayEndpoint) -> str:
    """Say how an endpoint authorizes, without whom or by which key."""
    kind = endpoint.auth.WhichOneof("auth_type")
    if kind == "static_api_key" and not endpoint.auth.static_api_key.api_key:
        return "static_api_key (empty: refuses all)"
    return kind or "unset (refuses all)"


def _limits(endpoint: GatewayEndpoint) -> str:
    limits = endpoint.rate_limiting
    period = _PERIODS[limits.capacity_limit_period] if limits.capacity_limit_period < len(_PERIODS) else ""
    return f"throughput {limits.throughput_limit:,}, capacity {limits.capacity_limit:,}{period}"


def _printable(text: str) -> str:
    """Replace what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _now() -> datetime:
    return datetime.now().astimezone()
