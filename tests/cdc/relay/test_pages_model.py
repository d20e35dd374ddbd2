"""Pages between a leader's store and a relay's, over a stream that loses, repeats and goes back, at every
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cdc.freshness import Freshness
from cdc.postgres.timeline import Timeline
from cdc.relay.page_reader import PageOutcome, PageReader
from cdc.relay.publisher import Publisher
from cdc.state.origin import Origin
from cdc.store.log import Entry
from cdc.store.store import Store
from cdc.units import Revision

if TYPE_CHECKING:
    from cdc.relay.pages import Page

IDS = st.sampled_from([f"app_{number}" for number in range(6)])
HISTORY = Timeline("7", 1, end=1 << 60)
PAYLOADS = st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c" * 30, b"d" * 70]))


@dataclass
class Leader:
    """A leader's store, every map that it has had, and its publisher."""

    epoch: str
    store: Store = field(default_factory=Store)
    maps: dict[int, dict[str, bytes]] = field(default_factory=dict)
    position: int = 100
    now: float = 0.0

    def __post_init__(self) -> None:
        self.store.follow_timeline(HISTORY)
        self.origin = Origin(self.epoch, 0)
        self.publisher = self.published_by()
        self.note()

    def published_by(self) -> Publisher:
        return Publisher(
            self.store, lambda: self.origin, Freshness(), entries=2, page_bytes=200, clock=self.clock
        )

    def clock(self) -> float:
        self.now += 0.7
        return self.now

    def change(self, rows: list[tuple[str, bytes | None]]) -> None:
        self.position += 10
        batch = self.store.prepare(rows, self.position, seen=self.position)
        self.store.publish(batch, consistent=True, position=self.position, seen=self.position)
        self.note()

    def forget(self, up_to: int) -> None:
        """Forget the deletes up to a revision."""
        self.origin = replace(self.origin, forgotten=max(self.origin.forgotten, up_to))
        self.store.forget(Revision(up_to))

    def note(self) -> None:
        self.maps[self.store.head] = contents(self.store)


def contents(store: Store) -> dict[str, bytes]:
    return {entry.id: entry.payload for entry in store.live() if entry.payload is not None}


def copied(page: Page) -> Page:
    """Return a page as it comes out of a broker: entries of its own."""
    entries = [Entry(one.id, one.revision, one.position, one.payload) for one in page.entries]
    return replace(page, entries=entries)


class Relaying(RuleBasedStateMachine):
    """A leader, a stream that its broker keeps badly, and a relay."""

    @initialize(rows=st.dictionaries(IDS, PAYLOADS, max_size=6))
    def begin(self, rows: dict[str, bytes | None]) -> None:
        self.leaders = [Leader("1" * 32)]
        self.leader.change(list(rows.items()))
        self.leader.publisher.resume(None)
        self.stream: list[Page] = []
        self.copies: list[list[Page]] = [[]]
        self.read = 0
        self.relay = Store()
        self.reader = PageReader(self.relay)
        self.held: dict[str, int] = {}
        """By id, the position of what the relay has shown: along the one history of the database."""
        self.exact: set[tuple[str, int]] = set()

    @property
    def leader(self) -> Leader:
        return self.leaders[-1]

    @rule(rows=st.dictionaries(IDS, PAYLOADS, min_size=1, max_size=4))
    def change(self, rows: dict[str, bytes | None]) -> None:
        self.leader.change(list(rows.items()))

    @rule(data=st.data())
    def forget(self, data: st.DataObject | Chosen) -> None:
        self.leader.forget(data.draw(st.integers(0, self.leader.store.head)))

    @rule(times=st.integers(1, 4))
    def publish(self, times: int) -> None:
        for _ in range(times):
            self.stream += [copied(page) for page in self.leader.publisher.take()]

    @rule()
    def begin_generation(self) -> None:
        self.leader.publisher.begin_generation()

    @rule(times=st.integers(1, 8))
    def deliver(self, times: int) -> None:
        for _ in range(times):
            if self.read >= len(self.stream):
                return
            page = self.stream[self.read]
            self.read += 1
            outcome = self.reader.take(copied(page))
            if outcome is PageOutcome.ARRIVED:
                self.look()
            assert outcome is not PageOutcome.MISMATCH

    def look(self) -> None:
        """The relay's map is one that its leader has had, and nothing in it went back."""
        epoch = self.reader.origin().epoch
        [leader] = [one for one in self.leaders if one.epoch == epoch]
        assert contents(self.relay) == leader.maps[self.relay.head]
        for entry in self.relay.entries.values():
            held = self.held.setdefault(entry.id, 0)
            if (
                entry.id in leader.store.entries
            ):  # else a tombstone of the relay's own, as of when it was made
                assert entry.position >= held
                self.held[entry.id] = entry.position

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """An acknowledged page is lost before the relay has read it."""
        if self.read < len(self.stream):
            del self.stream[data.draw(st.integers(self.read, len(self.stream) - 1))]

    @rule(rows=st.dictionaries(IDS, PAYLOADS, min_size=3, max_size=6), data=st.data())
    def lose_a_part_of_a_run(self, rows: dict[str, bytes | None], data: st.DataObject | Chosen) -> None:
        self.change(rows)
        before = len(self.stream)
        self.publish(4)
        if len(self.stream) > before:
            del self.stream[data.draw(st.integers(before, len(self.stream) - 1))]
        self.deliver(len(self.stream))

    @rule()
    def repeat(self) -> None:
        """The consumer is made anew, a little before where it was."""
        self.read = max(0, self.read - 3)

    @rule()
    def copy_the_folder(self) -> None:
        self.copies.append(list(self.stream))

    @rule(data=st.data())
    def come_back_older(self, data: st.DataObject | Chosen) -> None:
        """The broker is restored from an older copy; the leader goes on behind its last page."""
        self.stream = list(data.draw(st.sampled_from(self.copies)))
        self.read = 0  # it is shorter than what was read: from its beginning
        self.leader.publisher.resume(self.last())

    @rule()
    def restart_the_leader(self) -> None:
        """Its process begins anew: revisions go on, the publisher reads the last page."""
        leader = self.leader
        leader.publisher.close()
        leader.publisher = leader.published_by()
        leader.publisher.resume(self.last())

    @precondition(lambda self: self.stream)
    @rule()
    def hear(self) -> None:
        """The leader says where it is; that comes in order with its pages, so no page is on its way then."""
        self.deliver(len(self.stream))
        self.reader.hear(self.leader.publisher.head())

    @precondition(lambda self: len(self.leaders) < 3)
    @rule(forgetful=st.booleans())
    def take_over(self, forgetful: bool) -> None:
        """A peer takes over: its own epoch and revisions, the same database. Or the same server, which has
        forgotten what was deleted.
        """
        old = self.leader
        new = Leader(f"{len(self.leaders) + 1}" * 32, position=old.position)
        entries = [
            Entry(one.id, one.revision + 5, one.position, one.payload)
            for one in old.store.entries.values()
            if one.payload is not None or not forgetful
        ]
        new.store.adopt(
            entries,
            old.store.head + 5,
            history=HISTORY,
            consistent=True,
            position=old.store.position,
            seen=old.store.seen,
        )
        new.note()
        old.publisher.close()
        self.leaders.append(new)
        new.publisher.resume(self.last())

    @rule()
    def restart_the_relay(self) -> None:
        """A relay that begins anew may be behind; its clients' tokens know better, a new client does not."""
        self.relay = Store()
        self.reader = PageReader(self.relay)
        self.held, self.read = {}, 0

    def last(self) -> Page | None:
        return self.stream[-1] if self.stream else None

    @rule()
    def come_to_rest(self) -> None:
        """Once all that there is has come, and a generation where the relay wants one, it holds the map."""
        for _ in range(2):
            last, publisher = self.last(), self.leader.publisher
            if last is None or (last.line, last.number) != (publisher.line, publisher.number):
                publisher.resume(last)  # the leader looks now and then whether its last page is there
            while self.leader.publisher.more:
                self.publish(1)
            self.publish(3)
            self.deliver(len(self.stream) + 1)
            if self.reader.wanting:
                self.leader.publisher.begin_generation()
        assert contents(self.relay) == contents(self.leader.store)
        assert self.relay.head == self.leader.store.head
        assert self.relay.digest == self.leader.store.digest
        assert self.relay.consistent
        positions = {entry.id: entry.position for entry in self.leader.store.entries.values()}
        more = self.relay.entries.keys() - positions.keys()
        assert more <= self.relay.tombstones.keys(), "what its leader has forgotten is gone"
        ours = {entry.id: entry.position for entry in self.relay.entries.values() if entry.id not in more}
        assert ours == positions

    @invariant()
    def a_map_is_consistent_only_if_it_existed(self) -> None:
        if self.relay.consistent:
            epoch = self.reader.origin().epoch
            [leader] = [one for one in self.leaders if one.epoch == epoch]
            assert contents(self.relay) == leader.maps[self.relay.head]

    @invariant()
    def a_token_of_here_misses_nothing_at_the_leader(self) -> None:
        """Whatever has a revision up to the relay's head is at the relay: a leader sends only what is
        beyond.
        """
        if self.reader.line and self.reader.origin().epoch == self.leader.epoch:
            for entry in self.leader.store.entries.values():
                if entry.revision <= self.relay.head:
                    assert self.relay.entries[entry.id].revision >= entry.revision

    @invariant()
    def what_is_named_up_to_its_position_has_come(self) -> None:
        """Or a client of another server would be served less than has changed since."""
        if self.relay.consistent and self.reader.origin().epoch == self.leader.epoch:
            for entry in self.leader.store.entries.values():
                if entry.position <= self.relay.position:
                    assert self.relay.entries[entry.id].position >= entry.position

    @invariant()
    def nobody_is_left_with_what_is_gone(self) -> None:
        """Whatever it has shown to a legacy client it still serves, or says that it is gone."""
        assert self.held.keys() <= self.relay.entries.keys()

    def teardown(self) -> None:
        if hasattr(self, "leaders"):
            self.leader.publisher.close()
            assert not self.leader.store.places


TestRelaying = Relaying.TestCase
# The same histories in each run of `make test`; `test_relaying_for_long` looks for others.
TestRelaying.settings = settings(max_examples=300, stateful_step_count=40, deadline=None, derandomize=True)


class Chosen:
    """What Hypothesis would draw, chosen by hand."""

    def __init__(self, value: object) -> None:
        self.value = value

    def draw(self, _: object) -> Any:
        return self.value


def relaying(*ids: str) -> Relaying:
    machine = Relaying()
    machine.begin(rows=dict.fromkeys(ids))
    machine.come_to_rest()
    return machine


def lose_one_of(machine: Relaying, at: int, *ids: str) -> None:
    """Change these endpoints, and lose one of the pages that say so: that with this place in the stream."""
    machine.lose_a_part_of_a_run(rows=dict.fromkeys(ids), data=Chosen(at))


def test_a_lost_page_that_brought_positions_alone_is_missed() -> None:
    machine = relaying("app_0", "app_1", "app_2")
    lose_one_of(machine, len(machine.stream), "app_0", "app_1", "app_2")
    machine.begin_generation()
    machine.publish(times=1)
    machine.come_to_rest()


def test_a_head_moves_no_position_if_a_page_before_it_was_lost() -> None:
    machine = relaying("app_0", "app_1", "app_2")
    lose_one_of(machine, len(machine.stream), "app_0", "app_1", "app_2")
    machine.hear()
    machine.what_is_named_up_to_its_position_has_come()


def test_nor_if_pages_around_the_lost_one_are_repeated() -> None:
    machine = relaying("app_0", "app_1", "app_3", "app_4")
    lose_one_of(machine, len(machine.stream), "app_0", "app_1", "app_3", "app_4")
    machine.repeat()
    machine.hear()
    machine.what_is_named_up_to_its_position_has_come()


def test_a_generation_that_was_complete_is_not_the_next_one() -> None:
    machine = relaying()
    lose_one_of(machine, len(machine.stream), "app_0", "app_1", "app_3")
    machine.come_to_rest()
    machine.copy_the_folder()
    lose_one_of(machine, len(machine.stream), "app_0", "app_1", "app_2")
    machine.come_back_older(data=Chosen(machine.copies[-1]))
    machine.come_to_rest()


def test_a_run_that_is_sent_once_more_brings_newer_positions() -> None:
    """The broker came back to the middle of a run, while the relay collects a new map."""
    machine = Relaying()
    machine.begin(rows={"app_5": None, "app_4": None, "app_2": b"a"})
    machine.come_to_rest()
    lose_one_of(machine, 6, "app_0", "app_1", "app_2", "app_5")
    machine.copy_the_folder()
    lose_one_of(machine, 6, "app_0", "app_1", "app_2", "app_3", "app_5")
    machine.come_back_older(data=Chosen(machine.copies[-1]))
    machine.come_to_rest()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_relaying_for_long() -> None:
    """The same, ten times as often: two of its findings took more than 300 histories."""
    run_state_machine_as_test(
        Relaying, settings=settings(max_examples=3000, stateful_step_count=40, deadline=None)
    )
