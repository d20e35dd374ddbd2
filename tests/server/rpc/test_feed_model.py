"""Two servers, one database, clients that stall, are cut off anywhere and come back with every kind of token.

The model is the list of committed transactions. A server is a real store, fed as the applier feeds it: it
may lag, read newer than the transactions that it applies, publish in parts, answer by comparing everything,
poll, restart. What must hold is what a client is promised: exact at each checkpoint, never older, in the end
the database's map.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pads_cdc_client import Replica

from cdc.postgres.timeline import Timeline
from cdc.state.origin import Origin, Reread
from cdc.state.token import Behind, Reset, judge
from cdc.store.entry_columns import GONE, EntryColumns, EntryRow
from cdc.store.log import OutlivedError
from cdc.store.store import Store
from cdc.units import Revision
from server.rpc.feed import FeedStream, here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

State = tuple[int, int]
"""A timeline, counted from 0, and a position on it."""

IDS = st.integers(0, 3).map(lambda number: f"app_{number}")
RETENTION = 1000.0


class Database:
    """What was committed on each timeline, in order; a position is the number of transactions up to it.

    A transaction without changes is somebody else's WAL.
    """

    def __init__(self) -> None:
        self.lines: list[list[dict[str, bytes | None]]] = [[]]
        self.switches: list[int] = []
        """Where each timeline but the last was left."""

    def commit(self, changes: dict[str, bytes | None], line: int = -1) -> None:
        self.lines[line].append(changes)

    def promote(self, switch: int) -> None:
        """Have a standby take over that has replayed so much."""
        self.lines.append(self.lines[-1][:switch])
        self.switches.append(switch)

    @property
    def newest(self) -> int:
        return len(self.lines) - 1

    def end(self, line: int) -> int:
        return len(self.lines[line])

    def at(self, position: int, line: int) -> dict[str, bytes]:
        found: dict[str, bytes | None] = {}
        for changes in self.lines[line][:position]:
            found.update(changes)
        return {key: value for key, value in found.items() if value is not None}

    def history(self, line: int) -> Timeline:
        switches = tuple(enumerate(self.switches[:line], 1))
        return Timeline("7", line + 1, self.end(line), switches)

    def not_before(self, endpoint_id: str, value: bytes | None, line: int, oldest: State) -> State | None:
        """Return the oldest state of a line that has this value and is not older than another state; None
        where there is none.
        """
        known, position = oldest
        if known > line and position > min(self.switches[line:known]):
            return None  # it is of a later timeline, which this one has not got
        for number in range(known, line):
            position = min(position, self.switches[number])
        ends = range(position, self.end(line) + 1)
        found = (one for one in ends if self.at(one, line).get(endpoint_id) == value)
        return next(((line, one) for one in found), None)


class Server:
    """A store and how the applier feeds it."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.database = database
        self.epochs = 0
        self.line = 0
        self.store = Store()
        self.store.follow_timeline(database.history(0))
        self.origin = Origin(self.new_epoch(), 0)
        self.maps: dict[int, dict[str, bytes]] = {}
        """What was published, by revision."""
        self.settled: set[int] = set()
        """Revisions at which the map is one that the database has had."""
        self.pending: list[dict[str, bytes | None]] = []
        """Parts of a ripple that are still to be published."""
        self.read_at = 0
        self.forgotten: list[EntryRow] = []
        """The state file has them until it is folded."""
        self.bootstrap(0)

    @property
    def end(self) -> int:
        return self.database.end(self.line)

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"{self.name}{self.epochs:031x}"

    def bootstrap(self, read_at: int) -> None:
        """Compare everything with the database; nothing is followed from before."""
        self.store._COMPACT_FROM, self.store._COMPACT_STEP, self.store._FORGET_STEP = 3, 1, 1
        self.read_at = max(read_at, self.read_at)
        self.compare(self.read_at)
        self.store.mark_consistent(self.read_at)
        self.note()
        self.origin = replace(self.origin, followed_since=self.read_at)

    def compare(self, read_at: int) -> None:
        rows: dict[str, bytes | None] = dict.fromkeys(
            self.store.entries.keys() - self.store.tombstones.keys()
        )
        rows.update(self.database.at(read_at, self.line))
        self.publish(rows, read_at, named=False, consistent=False)

    def publish(self, rows: dict[str, bytes | None], position: int, *, named: bool, consistent: bool) -> None:
        batch = self.store.prepare(rows.items(), position, named=named, seen=self.read_at)
        self.store.publish(
            batch, consistent=consistent, position=position if consistent else 0, seen=self.read_at
        )
        self.maps[self.store.head] = {e.id: e.payload for e in self.store.live() if e.payload is not None}

    def note(self) -> None:
        self.settled.add(self.store.head)

    def apply(self, up_to: int, read_at: int, parts: int) -> None:
        """Re-query what transactions have named, at a time that may be later than theirs."""
        came = self.database.lines[self.line][self.store.position : up_to]
        names = [name for changes in came for name in changes]
        if not names:  # somebody else's WAL
            self.store.mark_consistent(up_to)
            self.note()
            return
        self.read_at = max(self.read_at, read_at)
        now = self.database.at(self.read_at, self.line)
        rows = {name: now.get(name) for name in names}
        if parts == 1:
            self.publish(rows, up_to, named=True, consistent=True)
            self.note()
            return
        self.up_to = up_to
        names = sorted(rows)
        cut = len(names) // 2
        self.pending = [{name: rows[name] for name in part} for part in (names[:cut], names[cut:])]
        self.proceed()

    def proceed(self) -> None:
        self.publish(self.pending.pop(0), self.up_to, named=True, consistent=False)
        if not self.pending:
            self.store.mark_consistent(self.up_to)
            self.note()

    def reconcile(self, up_to: int, read_at: int) -> None:
        """Answer for transactions by comparing everything: what they named is not known."""
        self.read_at = max(self.read_at, read_at)
        self.compare(self.read_at)
        self.origin = replace(self.origin, followed_since=max(self.origin.followed_since or 0, up_to))
        self.store.mark_consistent(up_to)
        self.note()

    def poll(self, read_at: int, now: float) -> None:
        """Compare everything while there is no slot."""
        self.read_at = max(self.read_at, read_at)
        self.compare(self.read_at)
        self.store.mark_consistent(self.store.position)
        self.note()
        self.origin = replace(self.origin, reread=Reread(now, self.read_at, self.line + 1))

    def turn(self, line: int, confirmed: int) -> None:
        """Follow another timeline from now on, from where its slot is confirmed."""
        history = self.database.history(line)
        store, before = self.store, self.store.history
        if not history.continues(before, store.position, store.seen):
            store.rewind(history)
            self.origin = replace(
                self.origin,
                left=self.origin.left | {self.origin.epoch},
                epoch=self.new_epoch(),
                followed_since=None,
            )
            self.read_at = 0
        else:
            store.follow_timeline(history, history.left_at(before))
        self.origin = replace(self.origin, reread=None)
        self.line = line
        self.pending.clear()
        if confirmed > store.position:
            since = max(self.origin.followed_since or 0, confirmed)
            self.origin = replace(self.origin, followed_since=since)
        # A server of this timeline shows at least what was there when the timeline began.
        self.read_at = max(self.read_at, confirmed, self.database.switches[line - 1])
        self.compare(self.read_at)
        store.mark_consistent(confirmed)
        self.note()

    def forget(self, up_to: int) -> None:
        """Forget the deletes up to a revision, as `cdc.state.forgetting` does."""
        up = Revision(up_to)
        old = [one for one in self.store.tombstones.values() if one.revision <= up]
        if old:
            self.forgotten += [EntryRow(one.id, one.revision, one.position, GONE) for one in old]
            since, newest = self.origin.followed_since, max(one.position for one in old)
            since = None if since is None else max(since, newest)
            forgotten = max(self.origin.forgotten, up)
            self.origin = replace(self.origin, forgotten=forgotten, followed_since=since)
            self.store.forget(up)

    def restart(self, *, forgetful: bool) -> None:
        """End the process, and start another with the state file, or without."""
        old, self.store, self.pending = self.store, Store(), []
        self.store.history = old.history
        if forgetful:
            self.origin = Origin(self.new_epoch(), None)
            self.maps, self.settled, self.forgotten = {}, set(), []
        else:
            kept = EntryColumns(
                (e.id, e.revision, e.position, old.kept_digest(e)) for e in old.entries.values()
            )
            for row in self.forgotten:
                if row.id not in old.entries:
                    kept.add(*row)
            forgotten = self.origin.forgotten
            self.store.restore(kept, old.head, old.position, old.seen, forgotten)
            self.origin = Origin(self.origin.epoch, old.position, forgotten=forgotten)
        self.bootstrap(self.end)


@dataclass
class Client:
    """Holds a map, or is about to; at most one stream at a time."""

    replica: Replica = field(default_factory=Replica)
    oldest: dict[str, State] = field(default_factory=dict)
    """The oldest state that what the client holds of each id can be of."""
    server: Server | None = None
    feed: FeedStream | None = None
    messages: Iterator[pb.WatchResponse] = field(default_factory=lambda: iter(()))
    trying: tuple[Server, float] | None = None

    def disconnect(self) -> None:
        if self.feed is not None:
            self.feed.close()
        self.feed = self.server = self.trying = None
        self.messages = iter(())


class Feeds(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database()
        self.servers = [Server("a", self.database), Server("b", self.database)]
        self.clients = [Client(), Client()]
        self.saved: list[tuple[dict[str, bytes], bytes, dict[str, State]]] = []
        self.now = 0.0
        self.unique = 0

    # --- the database and the servers

    @rule(
        changes=st.dictionaries(IDS, st.sampled_from([None, b"1", b"2", "new"]), max_size=3),
        old=st.booleans(),
    )
    def commit(self, changes: dict[str, bytes | str | None], old: bool = False) -> None:
        """Also on a timeline that was left: nobody there knows."""
        self.unique += 1
        unique = f"new {self.unique}".encode()
        line = -2 if old and self.database.newest else -1
        self.database.commit({k: unique if isinstance(v, str) else v for k, v in changes.items()}, line)

    @precondition(lambda self: self.database.newest < 2)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        line = self.database.newest
        at_least = self.database.switches[-1] if line else 0
        self.database.promote(data.draw(st.integers(at_least, self.database.end(line))))

    @rule(which=st.integers(0, 1), data=st.data())
    def turn(self, which: int, data: st.DataObject) -> None:
        """Have a server learn of a promotion; its slot there may be new."""
        server, database = self.servers[which], self.database
        if server.line < database.newest:
            line = data.draw(st.integers(server.line + 1, database.newest))
            history = database.history(line)
            goes_on = history.continues(server.store.history, server.store.position, server.store.seen)
            known = min(server.store.position, history.left_at(server.store.history) or 0)
            known = max(known, server.store.seen) if goes_on else 0
            confirmed = data.draw(st.sampled_from([known, database.end(line)]))
            server.turn(line, confirmed)

    @rule(which=st.integers(0, 1), data=st.data(), parts=st.integers(1, 2))
    def apply(self, which: int, data: st.DataObject, parts: int) -> None:
        server = self.servers[which]
        if server.pending:
            server.proceed()
        elif server.store.position < server.end:
            up_to = data.draw(st.integers(server.store.position + 1, server.end))
            server.apply(up_to, data.draw(st.integers(up_to, server.end)), parts)

    @rule(
        which=st.integers(0, 1),
        kind=st.sampled_from(["reconcile", "poll", "restart", "forget", "lose", "expire", "let go"]),
        data=st.data(),
    )
    def trouble(self, which: int, kind: str, data: st.DataObject) -> None:
        """Have one of the rarer things happen: one rule, so that they stay rarer than the common ones."""
        server, end = self.servers[which], self.servers[which].end
        self.now += 1
        match kind:
            case "reconcile" if not server.pending and server.store.position < end:
                up_to = data.draw(st.integers(server.store.position + 1, end))
                server.reconcile(up_to, data.draw(st.integers(up_to, end)))
            case "poll" if not server.pending:
                server.poll(data.draw(st.integers(server.read_at, end)), self.now)
            case "restart" | "forget":
                for client in self.clients:
                    if client.server is server or (client.trying and client.trying[0] is server):
                        client.disconnect()
                server.restart(forgetful=kind == "forget")
            case "lose":
                server.origin = replace(server.origin, epoch=server.new_epoch())
            case "let go":
                server.forget(data.draw(st.integers(0, server.store.head)))
            case "expire" if data.draw(st.booleans()):
                self.now += RETENTION + 1

    # --- clients

    @rule(who=st.integers(0, 1), which=st.integers(0, 1))
    def connect(self, who: int, which: int) -> None:
        client = self.clients[who]
        client.disconnect()
        self.now += 1
        client.trying = (self.servers[which], self.now)
        self.retry(who)

    @rule(who=st.integers(0, 1))
    def retry(self, who: int) -> None:
        client = self.clients[who]
        if client.trying is None:
            return
        server, opened = client.trying
        token = client.replica.opening("client").open.resume_token
        around = here(server.store, lambda: server.origin, RETENTION, wall=lambda: self.now)
        verdict = judge(token, around, opened=opened)
        if isinstance(verdict, Behind):
            assert token, "who holds nothing is never behind"
            return
        feed = FeedStream(
            server.store,
            lambda: server.origin,
            lambda: 0.0,
            5.0,
            wall=lambda: self.now,
            clock=lambda: self.now,
            entries=2,
        )
        client.server, client.feed, client.trying = server, feed, None
        self.receive(client, feed.open(verdict, token))

    @rule(who=st.integers(0, 1), which=st.integers(0, 1), messages=st.integers(1, 6))
    def visit(self, who: int, which: int, messages: int) -> None:
        """Go to a server, take some messages, and be cut off."""
        self.connect(who, which)
        for _ in range(messages):
            self.take(self.clients[who], progress=False)
        self.clients[who].disconnect()

    @rule(who=st.integers(0, 1))
    def drain(self, who: int) -> None:
        while self.take(self.clients[who], progress=False):
            pass

    @rule(who=st.integers(0, 1))
    def disconnect(self, who: int) -> None:
        self.clients[who].disconnect()

    @rule(who=st.integers(0, 1), progress=st.booleans())
    def deliver(self, who: int, progress: bool) -> None:
        self.take(self.clients[who], progress=progress)

    def take(self, client: Client, *, progress: bool) -> bool:
        """Take one message; says whether there was one, or may be."""
        if client.feed is None:
            return False
        message = next(client.messages, None)
        if message is None:
            try:
                if progress:
                    message = client.feed.progress()
                else:
                    client.messages = client.feed.take()
                    message = next(client.messages, None)
            except OutlivedError:  # it was behind deletes that are forgotten; it has its token
                client.disconnect()
                return False
        if message is not None:
            self.receive(client, message)
        return message is not None or client.feed.more

    def receive(self, client: Client, message: pb.WatchResponse) -> None:
        assert client.server is not None
        assert client.feed is not None
        batch = [change.endpoint_id for change in message.batch.changes]
        assert len(batch) == len(set(batch)), "an id twice in one message"
        applied = client.replica.apply(message)
        for change in applied.changes:
            self.never_older(client, change.endpoint_id, change.after)
        if applied.acknowledge is not None:
            assert not applied.acknowledge.digest_mismatch, "the digests differ"
            checkpoint = (
                message.progress.checkpoint if message.HasField("progress") else message.batch.checkpoint
            )
            published = client.server.maps[checkpoint.revision]
            assert client.replica.endpoints == published, "a checkpoint stands for a map that existed"
            assert checkpoint.unsettled or checkpoint.revision in client.server.settled
            client.feed.acknowledge(applied.acknowledge)
            assert client.feed.acknowledged == checkpoint.revision

    def never_older(self, client: Client, endpoint_id: str, after: bytes | None) -> None:
        assert client.server is not None
        oldest = client.oldest.get(endpoint_id, (0, 0))
        found = self.database.not_before(endpoint_id, after, client.server.line, oldest)
        assert found is not None, f"{endpoint_id} went back to {after!r} from {oldest}"
        client.oldest[endpoint_id] = found

    @rule(who=st.integers(0, 1))
    def save(self, who: int) -> None:
        client = self.clients[who]
        self.saved.append((dict(client.replica.endpoints), client.replica.token, dict(client.oldest)))

    @precondition(lambda self: self.saved)
    @rule(who=st.integers(0, 1), data=st.data())
    def come_back_as_of_old(self, who: int, data: st.DataObject) -> None:
        endpoints, token, oldest = data.draw(st.sampled_from(self.saved))
        self.clients[who].disconnect()
        self.clients[who] = Client(Replica(endpoints, token), copy.copy(oldest))

    @rule(who=st.integers(0, 1), data=st.data())
    def damage_token(self, who: int, data: st.DataObject) -> None:
        client = self.clients[who]
        if client.replica.token:
            client.disconnect()
            damaged = bytearray(client.replica.token)
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            around = here(
                self.servers[0].store, lambda: self.servers[0].origin, RETENTION, wall=lambda: self.now
            )
            assert judge(bytes(damaged), around, opened=self.now) == Reset("malformed")

    @invariant()
    def walks_end_with_their_streams(self) -> None:
        for server in self.servers:
            open_feeds = sum(client.server is server for client in self.clients)
            assert len(server.store.places) <= 2 * open_feeds

    def teardown(self) -> None:
        """Let everything come to rest: every client holds the database's map then."""
        for server in self.servers:
            while server.pending:
                server.proceed()
            if server.line < self.database.newest:
                server.turn(self.database.newest, self.database.end(self.database.newest))
            if server.store.position < server.end:
                server.apply(server.end, server.end, 1)
            if server.read_at < server.end:
                server.poll(server.end, self.now)
        for who, client in enumerate(self.clients):
            if client.feed is None:
                self.connect(who, who)
            assert client.feed is not None, "behind a server that has everything"
            self.drain(who)
            if client.feed is None:  # it was behind what is forgotten
                self.connect(who, who)
                self.drain(who)
            self.take(client, progress=True)
            newest = self.database.newest
            assert client.replica.endpoints == self.database.at(self.database.end(newest), newest)
            assert client.replica.complete
            client.disconnect()


TestFeeds = Feeds.TestCase
TestFeeds.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


THREE = ("app_0", "app_1", "app_2")


@pytest.fixture
def feeds() -> Iterator[Feeds]:
    """Two servers that have followed one transaction, and a client of the first that holds it."""
    feeds = Feeds()
    feeds.commit(dict.fromkeys(THREE, b"1"))
    for server in feeds.servers:
        server.apply(1, 1, 1)
    feeds.connect(0, 0)
    feeds.drain(0)
    yield feeds
    feeds.teardown()


def cut_off(feeds: Feeds, which: int) -> None:
    """Go to a server, and be cut off in the middle of three endpoints."""
    feeds.connect(0, which)
    assert feeds.take(feeds.clients[0], progress=False)
    feeds.clients[0].disconnect()


def test_what_was_read_early_is_news_to_the_clients_of_others(feeds: Feeds) -> None:
    """The second server reads the third state for the second transaction; the third one changes nothing."""
    feeds.commit({"app_0": b"2"})
    feeds.commit({"app_0": b"3"})
    first, second = feeds.servers
    first.apply(2, 2, 1)
    second.apply(2, 3, 1)
    feeds.drain(0)
    feeds.connect(0, 1)
    feeds.drain(0)
    assert feeds.clients[0].replica.endpoints["app_0"] == b"3"


def test_a_token_says_how_new_the_newest_is_that_was_sent(feeds: Feeds) -> None:
    """Cut off in the middle of the second transaction: a server that has not got it yet must wait."""
    feeds.commit(dict.fromkeys(THREE, b"2"))
    feeds.servers[0].apply(2, 2, 1)
    cut_off(feeds, 0)
    feeds.connect(0, 1)
    assert feeds.clients[0].feed is None, "it waits"
    feeds.servers[1].apply(2, 2, 1)
    feeds.retry(0)
    feeds.drain(0)
    assert feeds.clients[0].replica.endpoints == feeds.database.at(2, 0)


def test_who_was_cut_off_in_a_snapshot_gets_another_one(feeds: Feeds) -> None:
    """The server has forgotten that one is gone: only the end of a snapshot tells of it."""
    feeds.commit({"app_0": None, "app_3": b"1"})
    feeds.clients[0].disconnect()
    feeds.servers[0].restart(forgetful=True)
    cut_off(feeds, 0)
    assert "app_0" in feeds.clients[0].replica.endpoints
    feeds.connect(0, 0)
    feeds.drain(0)
    assert feeds.clients[0].replica.endpoints == feeds.database.at(2, 0)


def test_who_holds_something_of_another_server_goes_by_positions_at_home_too(feeds: Feeds) -> None:
    """What changed there and changed back has never changed at home."""
    feeds.commit(dict.fromkeys(THREE, b"2"))
    feeds.commit(dict.fromkeys(THREE, b"1"))
    feeds.servers[1].apply(2, 2, 1)
    cut_off(feeds, 1)
    assert b"2" in feeds.clients[0].replica.endpoints.values()
    feeds.servers[0].apply(3, 3, 1)
    feeds.connect(0, 0)
    feeds.drain(0)
    assert feeds.clients[0].replica.endpoints == feeds.database.at(3, 0)


def delete_and_forget(feeds: Feeds, which: int) -> None:
    """Delete an endpoint, and have a server forget that it was there."""
    server = feeds.servers[which]
    feeds.commit({"app_0": None})
    server.apply(server.end, server.end, 1)
    server.forget(server.store.head)
    assert "app_0" not in server.store.entries


@pytest.mark.parametrize("which", [0, 1])
def test_who_was_away_while_a_delete_was_forgotten_has_everything_anew(feeds: Feeds, which: int) -> None:
    """At the server that it knows, whose revisions say so, and at another one, by positions."""
    client = feeds.clients[0]
    client.disconnect()
    delete_and_forget(feeds, which)
    feeds.connect(0, which)
    assert client.feed is not None
    assert client.feed.catching_up, "a walk from its old place would not come past the delete"
    feeds.drain(0)
    assert "app_0" not in client.replica.endpoints


def test_a_stream_that_stood_still_while_a_delete_was_forgotten_ends(feeds: Feeds) -> None:
    client = feeds.clients[0]
    delete_and_forget(feeds, 0)
    feeds.drain(0)
    assert client.feed is None
    assert "app_0" in client.replica.endpoints
    feeds.connect(0, 0)
    feeds.drain(0)
    assert "app_0" not in client.replica.endpoints


def test_a_walk_by_positions_ends_when_a_delete_before_it_is_forgotten(feeds: Feeds) -> None:
    """Another server's token was good when it was judged; the walk by it has not come past the delete."""
    client, server = feeds.clients[0], feeds.servers[1]
    client.disconnect()
    feeds.commit({"app_0": None})
    server.apply(server.end, server.end, 1)
    feeds.connect(0, 1)
    assert client.feed is not None
    server.forget(server.store.head)
    feeds.drain(0)
    assert client.feed is None
    feeds.connect(0, 1)
    feeds.drain(0)
    assert "app_0" not in client.replica.endpoints


def test_a_forgotten_delete_in_the_state_file_is_none_after_a_restart(feeds: Feeds) -> None:
    delete_and_forget(feeds, 0)
    server = feeds.servers[0]
    server.restart(forgetful=False)
    assert "app_0" not in server.store.entries
    feeds.commit({"app_0": b"back"})
