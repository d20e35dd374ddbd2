"""Tokens and promotions against a plain model that knows every state of the database on every timeline.

Only the judgement is real (`cdc.state.token`, `cdc.postgres.timeline`); servers, their maps and the WAL are a
few lines each. A server follows a timeline, lags, reads newer than it follows, polls, learns of promotions
late or never, restarts; WAL of other databases moves positions and nothing else. Whatever token a client
brings, it must end with the map of the server that it has come to, and no endpoint may go back, unless the
database has lost it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from cdc.postgres.timeline import Timeline
from cdc.state.origin import Origin, Reread
from cdc.state.token import Behind, Here, Rejoin, Reset, Resume, Token, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Iterable

IDS = ("a", "b", "c")


@dataclass
class Line:
    """A timeline: its own WAL, and where it has left its parent."""

    number: int
    parent: Line | None = None
    began: int = 0
    records: list[tuple[int, str | None, int | None]] = field(default_factory=list)
    """Where each ends, which endpoint it names (None: WAL of somebody else), and what that is then."""
    left_at: int | None = None

    @property
    def end(self) -> int:
        return self.records[-1][0] if self.records else self.began

    def until(self, position: int) -> list[tuple[int, str | None, int | None]]:
        """Return what this history consists of up to a position."""
        before = self.parent.until(min(position, self.began)) if self.parent else []
        return before + [one for one in self.records if one[0] <= position]

    def ends(self) -> list[int]:
        return [self.began, *(end for end, _, _ in self.records)]

    def history(self) -> Timeline:
        switches, line = [], self
        while line.parent is not None:
            switches.append((line.parent.number, line.began))
            line = line.parent
        return Timeline("7", self.number, self.end, tuple(reversed(switches)))


@dataclass(frozen=True)
class Held:
    """What somebody holds of one endpoint."""

    value: int | None
    line: Line = field(repr=False)
    named_at: int
    """End of the record that made it so."""
    revision: int = 0
    position: int = 0
    """As the store has it: it is news to whoever is not beyond this."""


def state(line: Line, position: int) -> dict[str, Held]:
    found = {name: Held(None, line, 0) for name in IDS}
    for end, name, value in line.until(position):
        if name is not None:
            found[name] = Held(value, line, end)
    return found


def lost(held: Held, line: Line) -> bool:
    """Tell whether a history does not have what somebody holds; what is still to come there is not lost."""
    while line.parent is not None and line.number > held.line.number:
        if held.named_at > line.began:
            return True
        line = line.parent
    return False


@dataclass
class Server:
    """What `cdc.applier` makes of a history, and the store of it."""

    name: str
    line: Line
    """What it reads."""
    history: Timeline = field(default_factory=Timeline)
    """What it takes that for."""
    position: int = 0
    seen: int = 0
    map: dict[str, Held] = field(default_factory=dict)
    origin: Origin = field(init=False)
    epochs: int = 0
    revision: int = 0

    def __post_init__(self) -> None:
        self.origin = Origin(self.new_epoch(), None)
        self.map = {name: Held(None, self.line, 0) for name in IDS}
        self.stream(self.line.end, self.line.end)

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"{self.name}{self.epochs:031x}"

    def stream(self, confirmed: int, read_at: int) -> None:
        """Begin to read the slot, which is confirmed up to there."""
        history = self.line.history()
        switch = history.left_at(self.history)
        if not history.continues(self.history, self.position, self.seen):
            left = self.origin.left | {self.origin.epoch}
            self.origin = Origin(self.new_epoch(), None, left=left)
            self.position = self.seen = 0
            self.map = {name: replace(held, position=0) for name, held in self.map.items()}
        elif switch is not None:
            self.position = min(self.position, switch)
            self.origin = replace(self.origin, reread=None)
        self.history = history
        if confirmed > self.position:
            since = max(self.origin.followed_since or 0, confirmed)
            self.origin = replace(self.origin, followed_since=since)
            self.position = confirmed
        self.read(IDS, 0, read_at)

    def read(self, names: Iterable[str], end: int, read_at: int) -> None:
        """Read endpoints again that a transaction which ended there has named, or (0) that nobody has."""
        now = state(self.line, read_at)
        self.seen = max(self.seen, read_at)
        self.revision += 1
        for name in names:
            before, after = self.map[name], now[name]
            if after.value != before.value:
                position = max(end, self.seen, before.position)
                self.map[name] = replace(after, revision=self.revision, position=position)
            else:
                kept = before.revision, max(end, before.position)
                self.map[name] = replace(after, revision=kept[0], position=kept[1])

    def follow(self, up_to: int, read_at: int) -> None:
        """Take what comes up to a position, and read it again: only where something was named."""
        came = [one for one in self.line.until(up_to) if one[0] > self.position and one[1] is not None]
        if came:
            self.read([name for _, name, _ in came if name], up_to, read_at)
        self.position = up_to

    def poll(self, read_at: int, now: float, *, primary: bool) -> None:
        self.read(IDS, 0, read_at)
        number = self.line.number if primary else None
        self.origin = replace(self.origin, reread=Reread(now, read_at, number))

    def restart(self) -> None:
        """Keep what the state file keeps; the history is asked for with the slot."""
        self.origin = Origin(self.origin.epoch, self.position or None)

    def token(self) -> Token:
        return Token(
            self.origin.epoch,
            "7",
            self.history.timeline,
            self.revision,
            self.position,
            self.seen,
            mapping=0,
            issued=0,
            encoding=1,
        )


@dataclass(frozen=True)
class Client:
    """Holds what a server had, and its token."""

    token: Token
    map: dict[str, Held]


class Failovers(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [Line(1)]
        self.values = 0
        self.now = 0.0
        self.servers = [Server("a", self.lines[0]), Server("b", self.lines[0])]
        self.clients: list[Client] = []

    # --- the database

    @rule(
        old=st.booleans(),
        names=st.lists(st.sampled_from([*IDS, None]), min_size=1, max_size=3),
        value=st.sampled_from([1, None, 0]),
    )
    def write(self, old: bool, names: list[str | None], value: int | None) -> None:
        """Also to a timeline that was left: its server has not heard of it. WAL of others is long."""
        line = self.lines[-2 if old and len(self.lines) > 1 else -1]
        for name in names:
            self.values += 1
            end = line.end + (10 if name else 100)
            line.records.append((end, name, value and self.values))

    @precondition(lambda self: len(self.lines) < 4)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        """A standby that may have lagged takes the newest one's place."""
        line = self.lines[-1]
        switch = data.draw(st.sampled_from(line.ends()))
        self.lines.append(Line(line.number + 1, line, switch))

    # --- the servers

    def draw(self, data: st.DataObject, line: Line, at_least: int) -> int:
        return data.draw(st.sampled_from([*(one for one in line.ends() if one > at_least), at_least]))

    @rule(which=st.integers(0, 1), data=st.data())
    def follow(self, which: int, data: st.DataObject) -> None:
        server = self.servers[which]
        up_to = self.draw(data, server.line, server.position)
        server.follow(up_to, self.draw(data, server.line, max(up_to, server.seen)))

    @rule()
    def catch_up(self) -> None:
        """Have every server where its timeline ends."""
        for server in self.servers:
            server.follow(server.line.end, server.line.end)

    @rule(which=st.integers(0, 1), primary=st.booleans(), data=st.data())
    def poll(self, which: int, primary: bool, data: st.DataObject) -> None:
        server = self.servers[which]
        self.now += 1
        at = server.line.end if primary else self.draw(data, server.line, server.seen)
        server.poll(at, self.now, primary=primary)

    @rule(which=st.integers(0, 1), data=st.data())
    def turn(self, which: int, data: st.DataObject) -> None:
        """Learn of the next timeline, and read it; the slot there may be behind, or new."""
        server = self.servers[which]
        later = [line for line in self.lines if line.number > server.line.number]
        if later:
            server.line = data.draw(st.sampled_from(later))
        self.reconnect(which, data)

    @rule(which=st.integers(0, 1), data=st.data())
    def restart(self, which: int, data: st.DataObject) -> None:
        self.servers[which].restart()
        self.reconnect(which, data)

    def reconnect(self, which: int, data: st.DataObject) -> None:
        server = self.servers[which]
        history = server.line.history()
        goes_on = history.continues(server.history, server.position, server.seen)
        switch = history.left_at(server.history)
        known = min(server.position, server.line.end if switch is None else switch) if goes_on else 0
        confirmed = known if data.draw(st.booleans()) else self.draw(data, server.line, known)
        read_at = self.draw(data, server.line, max(confirmed, server.seen if goes_on else 0))
        server.stream(confirmed, read_at)

    # --- clients

    @rule(which=st.integers(0, 1))
    def keep(self, which: int) -> None:
        """Hold what a server has, with the token that it gives."""
        server = self.servers[which]
        self.clients.append(Client(server.token(), dict(server.map)))

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(0, 1), data=st.data())
    def come(self, which: int, data: st.DataObject) -> None:
        client, server = data.draw(st.sampled_from(self.clients)), self.servers[which]
        self.now += 1
        opened = self.now
        verdict = self.judge(client, server, opened)
        self.check(client, server, verdict)
        if isinstance(verdict, Behind):
            # It comes to an end, once the server has what there is.
            patient = copy.copy(server)
            patient.map = dict(server.map)
            patient.line = self.lines[-1]
            patient.stream(patient.line.end, patient.line.end)
            patient.poll(patient.line.end, opened + 1, primary=True)
            verdict = self.judge(client, patient, opened)
            assert not isinstance(verdict, Behind), "it waits for ever"
            self.check(client, patient, verdict)

    def judge(self, client: Client, server: Server, opened: float) -> Verdict:
        here = Here(server.origin, server.history, server.revision, server.position, 0.0, 1.0)
        return judge(client.token.encode(), here, opened=opened)

    def check(self, client: Client, server: Server, verdict: Verdict) -> None:
        for name, held in client.map.items():
            own = server.map[name]
            match verdict:
                case Resume(after):
                    sent = own.revision > after
                case Rejoin(beyond):
                    sent = own.position > beyond
                case Reset():
                    sent = True
                case Behind():
                    return
            assert sent or own.value == held.value, f"{name} stays {held}, and is {own}"
            if sent and not lost(held, server.line):
                assert own.named_at >= held.named_at or own.value == held.value, f"{name} goes back"
        if isinstance(verdict, Reset):
            self.needed(client, server, verdict)

    def needed(self, client: Client, server: Server, verdict: Reset) -> None:
        """Nobody is sent everything who could have gone on."""
        token, history = client.token, server.history
        until = history.good_until(token.timeline)
        assert verdict.reason in ("timeline", "gap", "unknown_revision")
        if verdict.reason == "timeline" and token.epoch not in server.origin.left:
            assert any(lost(held, server.line) for held in client.map.values()) or token.seen > (until or 0)
        if verdict.reason == "gap" and until is not None and token.seen <= min(until, server.position):
            since = server.origin.followed_since
            assert since is None or min(token.position, until) < since


TestFailovers = Failovers.TestCase
TestFailovers.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
