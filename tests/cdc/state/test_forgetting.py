"""Deletes are forgotten when they are as old as the retention, not before, and across restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.state.forgetting import Forgetting, Marks
from cdc.state.ledger import Ledger
from cdc.state.origin import CurrentOrigin
from cdc.store.store import Store
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = 3600.0
DAY = 24 * HOUR


class Process:
    """A store with its state file, from one start to the next."""

    def __init__(self, folder: Path, now: float, *, booted: float = 0.0) -> None:
        """``now`` is what the wall clock says, and ``booted`` what it said when the monotonic clock began."""
        self.now, self.booted = now, booted
        self.store, self.ledger = Store(), Ledger(folder / "state", "7", Listener())
        self.origin = CurrentOrigin(self.ledger)
        self.ledger.restore(self.store)
        self.origin.gap(1)
        marks = Marks(DAY, lambda: self.now - self.booted, lambda: self.now)
        self.forgetting = Forgetting(self.store, self.ledger, self.origin, marks)
        self.forgetting.step()

    def change(self, endpoint_id: str, payload: bytes | None) -> None:
        position = self.store.position + 10
        batch = self.store.prepare([(endpoint_id, payload)], position, seen=position)
        self.ledger.append(batch, position=position, seen=position)
        self.store.publish(batch, consistent=True, position=position, seen=position)

    def come_and_go(self, endpoint_id: str) -> None:
        self.change(endpoint_id, b"a")
        self.change(endpoint_id, None)

    def wait(self, seconds: float, *, leading: bool = True) -> None:
        """Let time pass, with a step every ten minutes."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 600)
            self.forgetting.step(leading=leading)

    def set_clock(self, forward: float) -> None:
        """Set the wall clock."""
        self.now += forward
        self.booted += forward


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, 1e9)
    yield process
    process.ledger.close()


def test_a_delete_goes_within_an_hour_after_the_retention_and_not_before(process: Process) -> None:
    process.wait(10 * HOUR)
    process.change("stays", b"a")
    process.come_and_go("gone")
    process.wait(DAY)
    assert set(process.store.tombstones) == {"gone"}
    assert process.origin.now().forgotten == 0
    process.wait(HOUR + 600)
    assert not process.store.tombstones
    assert set(process.store.entries) == {"stays"}
    assert process.origin.now().forgotten == process.store.forgotten >= 3
    assert process.origin.now().followed_since == 30, "by position, too, nobody goes on from before"


def test_a_younger_delete_stays(process: Process) -> None:
    process.come_and_go("old")
    process.wait(20 * HOUR)
    process.come_and_go("young")
    process.wait(6 * HOUR)
    assert set(process.store.tombstones) == {"young"}


def test_an_id_that_came_back_and_went_again_counts_from_then(process: Process) -> None:
    process.come_and_go("app")
    process.wait(20 * HOUR)
    process.come_and_go("app")
    process.wait(6 * HOUR)
    assert set(process.store.tombstones) == {"app"}
    process.wait(20 * HOUR)
    assert not process.store.tombstones


def test_a_process_that_restarts_every_few_hours_forgets_all_the_same(tmp_path: Path) -> None:
    process = Process(tmp_path, 1e9)
    process.come_and_go("gone")
    for _ in range(6):
        process.wait(5 * HOUR)
        process.ledger.close()
        process = Process(tmp_path, process.now)
    assert not process.store.tombstones
    assert "gone" not in process.store.entries, "the file had it still"
    forgotten = process.origin.now().forgotten
    process.ledger.close()
    again = Process(tmp_path, process.now)
    assert again.origin.now().forgotten == again.store.forgotten == forgotten > 0
    again.ledger.close()


def test_marks_of_another_epoch_count_for_nothing(process: Process) -> None:
    """The revisions of a map that a peer has made are not ours."""
    process.come_and_go("gone")
    process.wait(23 * HOUR)
    process.ledger.new_epoch(process.store)
    process.wait(23 * HOUR)
    assert set(process.store.tombstones) == {"gone"}
    process.wait(3 * HOUR)
    assert not process.store.tombstones


@pytest.mark.parametrize("forward", [-400 * DAY, 400 * DAY])
def test_a_wall_clock_that_is_set_changes_nothing(process: Process, forward: float) -> None:
    process.come_and_go("gone")
    process.wait(10 * HOUR)
    process.set_clock(forward)
    process.wait(14 * HOUR)
    assert set(process.store.tombstones) == {"gone"}
    process.wait(2 * HOUR)
    assert not process.store.tombstones


def test_a_clock_that_is_set_back_between_two_processes_delays_only_so_far(
    tmp_path: Path,
) -> None:
    process = Process(tmp_path, 1e9)
    process.come_and_go("gone")
    process.wait(20 * HOUR)
    process.ledger.close()
    process = Process(tmp_path, process.now - 400 * DAY, booted=5.0)
    process.wait(3 * HOUR)
    assert set(process.store.tombstones) == {"gone"}
    process.wait(3 * HOUR)
    assert not process.store.tombstones
    process.ledger.close()


def test_the_time_between_two_processes_counts(tmp_path: Path) -> None:
    process = Process(tmp_path, 1e9)
    process.come_and_go("gone")
    process.wait(2 * HOUR)
    process.ledger.close()
    process = Process(tmp_path, process.now + 21 * HOUR, booted=1e9 + 10 * HOUR)
    assert set(process.store.tombstones) == {"gone"}
    process.wait(3 * HOUR)
    assert not process.store.tombstones
    process.ledger.close()


def test_a_standby_server_notes_ages_but_leaves_it_to_its_leader_to_forget(process: Process) -> None:
    process.come_and_go("gone")
    process.wait(40 * HOUR, leading=False)
    assert set(process.store.tombstones) == {"gone"}
    process.wait(HOUR)
    assert not process.store.tombstones, "a takeover does not begin the retention anew"


def test_a_file_without_entries_says_nothing_of_what_is_forgotten(process: Process, tmp_path: Path) -> None:
    """A walk begins at the head at the earliest, and such a file does not know its head."""
    process.come_and_go("gone")
    process.wait(26 * HOUR)
    assert process.store.forgotten > 0
    process.ledger.new_epoch(process.store)
    process.ledger.close()
    again = Process(tmp_path, process.now)
    assert again.store.forgotten <= again.store.head
    again.ledger.close()


def test_without_a_state_file_it_is_forgotten_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = Process(tmp_path / "file", 1e9)
    process.come_and_go("gone")
    process.wait(26 * HOUR)
    assert not process.store.tombstones


def test_many_deletes_are_forgotten_in_steps_that_readers_and_changes_can_pass() -> None:
    store = Store()
    rows = [(f"app_{number}", b"a") for number in range(10_000)]
    store.publish(store.prepare(rows, 10), consistent=True, position=10)
    gone: list[tuple[str, bytes | None]] = [(name, None) for name, _ in rows[:9_000]]
    store.publish(store.prepare(gone, 20), consistent=True, position=20)
    store.forget(store.head)
    assert len(store) == 1_000
    assert len(store.tombstones) == 7_000
    back: list[tuple[str, bytes | None]] = [("app_0", b"a"), ("app_8", b"a"), ("app_8999", b"a")]
    store.publish(store.prepare(back, 30), consistent=True, position=30)
    while store.tend():
        pass
    assert (len(store), len(store.entries), len(store.tombstones)) == (1_003, 1_003, 0)
    store.publish(store.prepare([("app_1", b"b")], 40), consistent=True, position=40)
    while store.tend():
        pass
    assert len(store.log) < 10_000, "the log loses them at its next compaction"
