"""Each call of the store by itself: what it changes, and what it leaves as it was."""

from __future__ import annotations

import pytest

from cdc.postgres.timeline import Timeline
from cdc.store.cursor import Cursor
from cdc.store.digest import entry_digest
from cdc.store.entry_columns import GONE, EntryColumns
from cdc.store.log import Entry, OutlivedError
from cdc.store.store import Batch, Store
from tests.cdc.store.test_store import live, model_digest, publish

ONE, TWO = Timeline("7", 1), Timeline("7", 2)


def filled(count: int = 3) -> Store:
    """Return a store with app_0, app_1, ...; one revision and ten bytes of WAL each."""
    store = Store()
    for number in range(count):
        publish(store, {f"app_{number}": b"1"}, position=10 * (number + 1))
    return store


def states(store: Store) -> dict[str, tuple[int, int, bytes | None]]:
    return {name: (one.revision, one.position, one.payload) for name, one in store.entries.items()}


def digests(batch: Batch) -> list[bytes]:
    return [
        b"" if entry.payload is None else entry_digest(entry.id, entry.payload) for entry in batch.changed
    ]


def wakes(store: Store) -> list[str]:
    """Return a list that gets longer with each wake."""
    heard: list[str] = []
    store.subscribe(lambda: heard.append("wake"))
    return heard


def test_an_empty_store_has_nothing_and_serves_nobody() -> None:
    store = Store()
    cut = store.cut()
    assert (cut.revision, cut.position, cut.seen, cut.count, cut.consistent) == (0, 0, 0, 0, False)
    assert cut.history == Timeline()
    assert cut.digest == bytes(16)
    assert (store.ready, store.forgotten, store.reading) == (False, 0, 0)
    assert not store.tend()


# --- the state file


def test_a_restored_store_has_what_the_state_file_has() -> None:
    digest = entry_digest("a", b"1")
    store = Store()
    store.restore(EntryColumns([("b", 2, 20, GONE), ("a", 1, 10, digest)]), 5, 30, 40)
    assert [entry.id for entry in store.log] == ["a", "b"], "in the order of their revisions"
    assert states(store) == {"a": (1, 10, None), "b": (2, 20, None)}
    assert store.tombstones.keys() == {"b"}
    assert (store.head, store.position, store.seen, store.forgotten, len(store)) == (5, 30, 40, 0, 1)
    assert store.kept_digest(store.entries["a"]) == digest, "not verified yet"
    assert store.kept_digest(store.entries["b"]) == GONE
    publish(store, {"a": b"2"})
    assert store.kept_digest(store.entries["a"]) == entry_digest("a", b"2")


def test_a_state_file_without_deletes_is_restored() -> None:
    store = Store()
    store.restore(EntryColumns([("a", 1, 10, entry_digest("a", b"1"))]), 1)
    assert (store.position, store.seen, store.forgotten) == (0, 0, 0)
    assert (len(store), len(store.tombstones)) == (1, 0)


def test_deletes_that_were_forgotten_are_not_restored() -> None:
    store = Store()
    gone = [(f"gone_{revision}", revision, 10 * revision, GONE) for revision in (1, 2, 3)]
    store.restore(EntryColumns([*gone, ("a", 4, 40, entry_digest("a", b"1"))]), 4, forgotten=2)
    assert store.forgotten == 2
    assert store.entries.keys() == {"gone_3", "a"}
    assert store.tombstones.keys() == {"gone_3"}
    assert [entry.id for entry in Cursor(store, 2).read(10).entries] == ["gone_3", "a"]


def test_what_the_state_file_had_keeps_its_revision_and_moves_if_it_is_named() -> None:
    for named, position in ((True, 50), (False, 10)):
        store = Store()
        store.restore(EntryColumns([("a", 1, 10, entry_digest("a", b"1"))]), 1)
        store.publish(store.prepare([("a", b"1")], 50, named=named), consistent=True)
        assert states(store) == {"a": (1, position, b"1")}
        assert store.digest == model_digest({"a": b"1"})


def test_a_verified_endpoint_is_the_state_files_no_more() -> None:
    store = Store()
    rows = [("a", 1, 10, entry_digest("a", b"1")), ("b", 2, 20, entry_digest("b", b"1"))]
    store.restore(EntryColumns(rows), 2)
    publish(store, {"a": b"1"})
    assert store.kept_digest(store.entries["b"]) == entry_digest("b", b"1"), "the other one still is"
    publish(store, {"a": None})
    assert store.kept_digest(store.entries["a"]) == GONE
    publish(store, {"b": b"1"})
    assert not len(store._kept), "once all are verified, the state file's part takes no memory"


# --- another server's map


def test_an_adopted_map_replaces_everything() -> None:
    store = filled()
    store.mark_consistent(99)
    publish(store, {"app_0": None})
    store.forget(store.head)
    walk, heard, along = Cursor(store, store.head), wakes(store), list[str]()
    entries = [Entry("y", 8, 80, None), Entry("x", 5, 50, b"1")]
    store.adopt(
        entries, 9, history=TWO, consistent=True, position=90, seen=95, along=lambda: along.append("once")
    )
    assert states(store) == {"x": (5, 50, b"1"), "y": (8, 80, None)}
    assert [entry.revision for entry in store.log] == [5, 8]
    assert store.tombstones.keys() == {"y"}
    assert store.digest == model_digest({"x": b"1"})
    cut = store.cut()
    assert (cut.revision, cut.history, cut.position, cut.seen, cut.count) == (9, TWO, 90, 95, 1)
    assert cut.consistent
    assert store.forgotten == 0
    assert (heard, along) == (["wake"], ["once"])
    with pytest.raises(OutlivedError):
        walk.read(1)
    store.adopt([], 9, history=ONE, consistent=False)
    assert (store.position, store.seen, store.consistent, len(store)) == (0, 0, False, 0)


def test_an_adopted_map_is_not_what_the_state_file_kept() -> None:
    store = Store()
    store.restore(EntryColumns([("a", 1, 10, entry_digest("a", b"1"))]), 1)
    store.adopt([Entry("a", 2, 20, None)], 2, history=ONE, consistent=True)
    assert store.kept_digest(store.entries["a"]) == GONE


def test_an_adopted_map_ends_a_forgetting() -> None:
    store = Store()
    store._FORGET_STEP = 1
    publish(store, {"a": b"1", "b": b"1"})
    publish(store, {"a": None, "b": None})
    store.forget(store.head)
    store.adopt([Entry("a", 1, 1, None)], 1, history=ONE, consistent=True)
    assert not store.tend()
    assert store.tombstones.keys() == {"a"}


def test_a_copied_batch_makes_the_leaders_map_and_is_known_before() -> None:
    store = filled()
    publish(store, {"app_2": None})
    entries = [
        Entry("app_0", 7, 70, b"2"),
        Entry("app_1", 8, 80, None),
        Entry("app_2", 9, 90, b"3"),
        Entry("new", 10, 95, b"4"),
        Entry("never", 11, 96, None),
    ]
    for head, revision in ((10, 11), (12, 12)):
        batch = store.copied(entries, head)
        assert (batch.revision, batch.position, batch.newest) == (revision, 0, 0)
    assert batch.digests == digests(batch)
    counts = [store.after(store.copied([entry], 0))[0] for entry in entries]
    assert counts == [2, 1, 3, 3, 2], "each by itself"
    model = {"app_0": b"2", "app_2": b"3", "new": b"4"}
    assert store.after(batch) == (3, model_digest(model))
    store.publish(batch, consistent=True)
    assert live(store) == model
    assert (len(store), store.digest, store.head) == (3, model_digest(model), 12)
    assert store.copied([], 5).revision == 12, "no head goes back"


# --- positions, histories


def test_positions_of_another_history_are_worth_nothing() -> None:
    store = filled()
    store.mark_consistent(30)
    before = states(store)
    store.rewind(TWO)
    assert (store.history, store.consistent, store.position, store.seen) == (TWO, False, 0, 0)
    assert states(store) == {name: (one[0], 0, one[2]) for name, one in before.items()}
    publish(store, {"app_0": b"1"}, position=5)
    assert store.entries["app_0"].position == 5


@pytest.mark.parametrize(("switch", "position"), [(None, 30), (20, 20), (40, 30)])
def test_a_history_that_goes_on_is_followed_up_to_its_switch(switch: int | None, position: int) -> None:
    store = filled()
    store.mark_consistent(30)
    store.follow_timeline(TWO, switch)
    assert (store.history, store.position, store.consistent) == (TWO, position, True)


def test_a_map_is_consistent_up_to_the_furthest_position() -> None:
    store = filled()
    heard = wakes(store)
    store.rewind(ONE)
    for position, furthest in ((30, 30), (20, 30), (40, 40)):
        store.mark_consistent(position)
        assert (store.consistent, store.position) == (True, furthest)
    assert heard == ["wake"], "it was news once"


def test_what_moves_is_collected_for_mirrors() -> None:
    """What moved before they came, beyond a position and up to a revision, and what moves from then on."""
    store = filled(4)
    moved: dict[str, Entry] = {}
    store.moved_before(moved, 20, 3)
    assert moved == {"app_2": store.entries["app_2"]}, "app_3 is newer, app_0 and app_1 are not beyond"
    known = Entry("app_2", 1, 1, None)
    moved = {"app_2": known}
    store.moved_before(moved, 0, 4)
    assert moved == {**store.entries, "app_2": known}
    moved.clear()
    store.movements.append(moved)
    publish(store, {"app_0": b"1", "app_1": b"2"}, position=90)
    assert moved == {"app_0": store.entries["app_0"]}, "a new revision is no move"


# --- deletes that are forgotten


def test_forgetting_takes_the_oldest_deletes_in_steps() -> None:
    store = filled(6)
    store._FORGET_STEP = 2
    for number in range(6):
        publish(store, {f"app_{number}": None})
    assert [entry.id for entry in store.tombstones_up_to(9)] == ["app_0", "app_1", "app_2"]
    store.forget(11)
    left = [len(store.tombstones)]
    while store.tend():
        left.append(len(store.tombstones))
        assert len(left) < 9
    assert [*left, len(store.tombstones)] == [4, 2, 1]
    assert store.tombstones.keys() == store.entries.keys() == {"app_5"}
    store.forget(3)
    assert store.forgotten == 11, "nothing comes back"


def test_a_change_takes_a_step_of_the_forgetting_as_well() -> None:
    store = filled(3)
    store._FORGET_STEP = 1
    publish(store, {f"app_{number}": None for number in range(3)})
    store.forget(store.head)
    assert len(store.tombstones) == 2
    publish(store, {"new": b"1"})
    assert len(store.tombstones) == 1
    assert store.tend() is False
    assert store.entries.keys() == {"new"}


def test_what_has_come_back_is_not_removed() -> None:
    """Beside a forgetting, ids are compared with what is there."""
    store = filled(3)
    store._FORGET_STEP = 1
    publish(store, dict.fromkeys(["app_0", "app_1"]))
    store.forget(store.head)
    assert publish(store, {"app_2": b"1"}) == 0, "it is there as before"
    assert publish(store, {"app_0": b"2"}) == 1
    while store.tend():
        pass
    assert live(store) == {"app_0": b"2", "app_2": b"1"}
    assert not store.tombstones
    assert store.digest == model_digest(live(store))


# --- compaction


def test_tending_shortens_the_log_to_its_live_entries() -> None:
    store = filled(20)
    store._COMPACT_FROM, store._COMPACT_STEP = 6, 1
    for number in range(7):
        assert not store.tend(), "six dead entries are no more than six"
        publish(store, {"app_0": b"%d" % number})
    assert len(store.log) == 27
    turns = 0
    while store.tend():
        turns += 1
        assert turns < 30
    assert turns
    assert store.log == sorted(store.entries.values(), key=lambda entry: entry.revision)


def test_a_log_is_not_shortened_for_a_third_of_dead_entries() -> None:
    store = filled(9)
    store._COMPACT_FROM = 0
    for number in range(3):
        publish(store, {"app_0": b"%d" % number})
        assert store._compaction is None
        assert len(store.log) == 9 + number + 1
    publish(store, {"app_0": b"x"})
    assert len(store.log) == 9


# --- readings


def test_a_reading_misses_what_neither_it_nor_a_later_one_has_returned() -> None:
    store = filled(4)
    publish(store, {"app_3": None})
    first, second = store.begin_reading(), store.begin_reading()
    assert (first, second, store.reading) == (1, 2, 2)
    store.publish(store.prepare([("app_0", b"1")], 99, reading=second), consistent=True)
    store.publish(store.prepare([("app_1", b"1"), ("new", b"1")], 99, reading=first), consistent=True)
    assert store.not_read(first) == ["app_2"]
    assert store.not_read(second) == ["app_1", "app_2", "new"]
    assert store.not_read(0) == []


@pytest.mark.parametrize("held", [b"1", b"2", None])
def test_an_id_that_a_reading_returns_twice_counts_only_if_both_rows_say_the_same(held: bytes | None) -> None:
    for second, payload in ((b"1", b"1"), (b"3", None)):
        store = Store()
        publish(store, {"a": held})
        reading = store.begin_reading()
        store.publish(store.prepare([("a", b"1")], 5, reading=reading), consistent=True)
        batch = store.prepare([("a", second)], 6, reading=reading)
        assert batch.again == ["a"]
        assert batch.twice == ([] if payload else ["a"])
        store.publish(batch, consistent=True)
        assert live(store) == ({"a": payload} if payload else {})
        assert store.digest == model_digest(live(store))
        later = store.prepare([("a", b"1")], 7, reading=store.begin_reading())
        assert not later.again


@pytest.mark.parametrize("named", [True, False])
def test_the_tombstone_of_rows_that_contradict_each_other_moves_if_it_is_named(named: bool) -> None:
    store = Store()
    reading = store.begin_reading()
    for payload in (b"1", b"2"):
        store.publish(store.prepare([("a", payload)], 10, reading=reading), consistent=True)
    assert live(store) == {}
    batch = store.prepare([("a", b"3")], 90, named=named, reading=reading)
    assert batch.twice == ["a"]
    assert batch.moved == ([(store.entries["a"], b"")] if named else [])


# --- what a batch says, and whom it wakes


def test_a_batch_counts_what_it_changes_and_says_up_to_where() -> None:
    store = filled(4)
    rows = [
        ("app_0", b"2"),
        ("app_1", None),
        ("app_2", b"1"),
        ("app_3", None),
        ("new", b"1"),
        ("never", None),
    ]
    batch = store.prepare(rows, 50, seen=70, reading=9)
    assert (batch.upserts, batch.deletes, batch.revision) == (2, 2, 5)
    assert (batch.position, batch.newest) == (50, 70)
    assert batch.moved == [(store.entries["app_2"], entry_digest("app_2", b"1"))]
    assert [(one.id, one.revision, one.position, one.payload, one.reading) for one in batch.changed] == [
        (name, 5, 70, payload, 9) for name, payload in rows if name != "app_2"
    ]
    assert batch.digests == digests(batch)
    assert store.head == 4, "nothing is visible yet"
    assert repr(batch) == "<Batch 5: 2 upserts, 2 deletes>"
    assert store.prepare([("app_0", b"1")], 50).revision == 4, "no change, no revision"
    count, digest = store.after(batch)
    store.publish(batch, consistent=True, position=50, seen=70)
    assert (len(store), store.digest) == (count, digest)
    assert (store.position, store.seen) == (50, 70)
    store.publish(store.prepare([], 20), consistent=True, position=20, seen=30)
    assert (store.position, store.seen) == (50, 70), "neither goes back"


def test_rows_of_a_reconcile_that_finds_nothing_leave_no_tombstone() -> None:
    """No transaction named the id: no client of another server can have it."""
    store = filled()
    assert not store.prepare([("never", None)], 50, named=False).changed
    publish(store, {"app_0": None}, position=60)
    for named, position in ((False, 60), (True, 90)):
        batch = store.prepare([("app_0", None)], 90, named=named)
        assert batch.moved == ([(store.entries["app_0"], b"")] if named else [])
        store.publish(batch, consistent=True)
        assert states(store)["app_0"] == (4, position, None)


def test_only_what_is_said_to_be_small_goes_ahead() -> None:
    store = filled()
    for express, listed in ((None, 0), (True, 1), (False, 1)):
        batch = store.prepare([("app_0", str(express).encode())], 50)
        if express is None:
            store.publish(batch, consistent=True)
        else:
            store.publish(batch, consistent=True, express=express)
        assert store.express.end == listed


def test_subscribers_are_woken_by_every_change_until_they_leave() -> None:
    store = filled()
    heard: list[str] = []
    leave = store.subscribe(lambda: heard.append("wake"))
    publish(store, {"app_0": b"2"})
    store.loaded()
    assert store.ready
    store.withhold()
    assert not store.ready
    assert heard == ["wake"] * 3
    leave()
    publish(store, {"app_0": b"3"})
    store.withhold()
    assert heard == ["wake"] * 3


# --- a walk


def test_a_walk_ends_at_the_head_of_its_start_and_says_that_more_has_come() -> None:
    store = filled(3)
    store.mark_consistent(30)
    walk = Cursor(store, 0)
    assert [entry.id for entry in walk.read(1).entries] == ["app_0"]
    publish(store, {"new": b"1"})
    part = walk.read(10)
    assert ([entry.id for entry in part.entries], part.more, part.arrival) == (["app_1", "app_2"], True, None)
    part = walk.read(10)
    assert ([entry.id for entry in part.entries], part.more) == (["new"], False)
    assert part.arrival == store.cut()
