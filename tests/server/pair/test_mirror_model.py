"""A mirror against a model: whatever the leader does, and wherever the stream breaks, the copy is the same.

The same also in what no gateway sees: positions, tombstones, the order of revisions, the memory of parents.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cdc.freshness import Freshness
from cdc.mapping.affected import Affected, Move
from cdc.mapping.affects_file import Rule
from cdc.mapping.parents import Parents
from cdc.pair.mirrored import Mirrored, MirrorOpened
from cdc.pair.pair import Pair
from cdc.postgres.timeline import Timeline
from cdc.state.ledger import Ledger
from cdc.state.origin import CurrentOrigin
from cdc.state.state_file import StateFile
from cdc.store.entry_columns import GONE
from cdc.store.log import OutlivedError
from cdc.store.store import Store
from server.observe.fanout import Listener
from server.pair.mirror import opening_at, part_of
from server.pair.mirror_feed import MirrorFeed

if TYPE_CHECKING:
    from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

IDS = st.sampled_from([f"app_{number}" for number in range(8)])
PAYLOADS = st.sampled_from([None, b"one", b"two"])
SETTINGS = Rule("settings", "application_id", "Application", "id", "ParentsOfSettings")
ROWS = st.sampled_from(["1", "2", "3"])


def content(store: Store) -> list[tuple[object, ...]]:
    """Everything that matters of a store's entries; the log has to be in the order of revisions."""
    live = [entry for entry in store.log if store.entries.get(entry.id) is entry]
    revisions = [entry.revision for entry in live]
    assert revisions == sorted(revisions)
    assert len(live) == len(store.entries)
    return sorted((entry.revision, entry.id, entry.position, entry.payload or b"") for entry in live)


class Mirroring(RuleBasedStateMachine):
    """A leader, a standby, and the wire between them, message by message."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.store, self.parents, self.pair = Store(), Parents(), Pair()
        self.store._COMPACT_FROM, self.store._COMPACT_STEP = 3, 1
        self.origin = CurrentOrigin(Ledger(folder / "leader", "7", Listener()))
        self.store.follow_timeline(Timeline("7", 1))
        self.end = 10
        self.store.loaded()
        self.parents.load({SETTINGS: [("1", "app_1")]}, 5)
        self.memories = {self.end: self.parents_now()}
        self.mark_consistent()
        self.copy = Store()
        self.ledger = Ledger(folder / "standby", "7", Listener())
        self.mirrored = Mirrored(self.copy, self.ledger, CurrentOrigin(self.ledger))
        self.wire: list[pb.MirrorResponse] = []
        self.feed: MirrorFeed | None = None
        self.connect()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.ledger.close()
            kept = StateFile(Path(self.folder.name) / "standby").kept
            if self.mirrored.point is not None:
                there = [one for one in kept.entries if one.digest != GONE or one.revision > kept.forgotten]
                assert sorted((one.revision, one.id, one.position) for one in there) == sorted(
                    (entry.revision, entry.id, entry.position) for entry in self.copy.entries.values()
                ), "what a restart of the standby would begin with"
            self.folder.cleanup()

    def parents_now(self) -> dict[str, str]:
        return dict(self.parents._memory[SETTINGS])

    def mark_consistent(self) -> None:
        """Have everything done that was followed."""
        self.store.mark_consistent(self.end)
        self.pair.confirmable(self.end, exact=True)
        self.parents.tell()

    def connect(self) -> None:
        if self.feed is not None:
            self.feed.close()
        standby = self.pair.join(lambda: None)
        self.feed = MirrorFeed(
            self.store, self.origin, self.parents, self.pair, standby, 5.0, Freshness(), clock=self.clock
        )
        self.wire = [self.feed.open(self.opening())]

    def clock(self) -> float:
        """Let no pace hold up a state."""
        self.now = getattr(self, "now", 0.0) + 1.0
        return self.now

    def opening(self) -> pb.MirrorOpen | None:
        return opening_at(self.mirrored.point).open

    @rule(
        changes=st.dictionaries(IDS, PAYLOADS, min_size=1, max_size=4),
        named=st.booleans(),
        done=st.booleans(),
    )
    def read(self, changes: dict[str, bytes | None], named: bool, done: bool) -> None:
        self.end += 10
        batch = self.store.prepare(changes.items(), self.end, named=named, seen=self.end + 3)
        self.store.publish(batch, consistent=done, position=self.end if done else 0, seen=self.end + 3)
        self.memories[self.end] = self.parents_now()
        if done:
            self.mark_consistent()

    @rule(row=ROWS, parent=st.none() | IDS, done=st.booleans())
    def move(self, row: str, parent: str | None, done: bool) -> None:
        self.end += 10
        self.parents.resolve(Affected(moves=[Move(SETTINGS, row, parent, known=True)]), self.end)
        self.memories[self.end] = self.parents_now()
        if done:
            self.mark_consistent()

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Forget the deletes up to a revision: the standby does, too."""
        up_to = data.draw(st.integers(0, self.store.head))
        self.origin.forgets(up_to, 0)
        self.store.forget(up_to)

    @rule()
    def load(self) -> None:
        """Load the memory anew, as it is in the database by now."""
        self.end += 10
        self.parents.load({SETTINGS: [*self.parents_now().items(), (f"new {self.end}", "app_7")]}, self.end)
        self.memories[self.end] = self.parents_now()

    @rule(messages=st.integers(1, 5))
    def flow(self, messages: int) -> None:
        for _ in range(messages):
            if not self.wire:
                self.wire = self.take()
            if self.wire:
                self.deliver(self.wire.pop(0))

    def take(self) -> list[pb.MirrorResponse]:
        """Take the next messages. A stream that is behind what was forgotten ends, and another one begins."""
        assert self.feed is not None
        try:
            return list(self.feed.take())
        except OutlivedError:
            self.connect()
            return self.wire

    @rule()
    def cut(self) -> None:
        self.connect()

    def deliver(self, message: pb.MirrorResponse) -> None:
        if message.HasField("opened"):
            assert self.mirrored.begin(reset=MirrorOpened(message.opened.reset, Future()).reset)
            return
        self.mirrored.take(part_of(message.batch))

    @rule()
    def drain(self) -> None:
        """Deliver everything: the copy is the same, in everything."""
        assert self.feed is not None
        self.mark_consistent()
        while True:
            while self.wire:
                self.deliver(self.wire.pop(0))
            self.wire = self.take()
            state = self.wire[-1].batch.state if self.wire else None
            if state is not None and state.revision == self.store.head and not self.feed.more:
                break
        while self.wire:
            self.deliver(self.wire.pop(0))
        assert content(self.copy) == content(self.store)
        assert self.copy.tombstones.keys() == self.store.tombstones.keys()
        assert (self.copy.digest, self.copy.head) == (self.store.digest, self.store.head)
        assert (self.copy.position, self.copy.consistent) == (self.store.position, self.store.consistent)
        assert self.copy.seen >= self.store.seen
        assert self.mirrored.point is not None
        assert self.mirrored.point.followed == self.end

    @invariant()
    def memory_is_of_the_moment(self) -> None:
        """A standby that takes over now finds rows where they were when its copy was made."""
        point = getattr(self, "mirrored", None) and self.mirrored.point
        if point:
            memory = self.mirrored.parents.memory([SETTINGS], point.followed)
            if memory is not None and point.followed in self.memories:
                assert dict(memory[SETTINGS]) == self.memories[point.followed]


TestMirroring = Mirroring.TestCase
TestMirroring.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_is_forgotten_is_so_in_one_epoch_only() -> None:
    pair = Mirroring()
    pair.begin()
    pair.ledger.note(forgotten=1_000)
    pair.read({"app_1": b"1", "app_2": b"1"}, named=True, done=True)
    pair.read({"app_1": None}, named=True, done=True)
    pair.drain()
    assert set(pair.copy.tombstones) == {"app_1"}
    pair.teardown()
