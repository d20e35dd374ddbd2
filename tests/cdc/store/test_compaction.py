"""The log is shortened in steps, while it grows and is walked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.timeline import Timeline
from cdc.store.compaction import Compaction
from cdc.store.cursor import Cursor
from cdc.store.log import Entry, Place
from cdc.store.store import Store


@given(
    st.lists(st.integers(0, 6), max_size=40),
    st.lists(st.integers(0, 6), max_size=10),
    st.integers(1, 7),
)
def test_every_place_keeps_what_is_behind_and_before_it(
    before: list[int], meanwhile: list[int], step: int
) -> None:
    """Whatever a walk at any place has still to hand out, it has afterwards, and no more than that."""
    store = Store()
    for revision, name in enumerate(before, 1):
        append(store, name, revision)
    compaction, done, later = Compaction(store.log), False, list(meanwhile)
    while not done:
        done = compaction.step(store.entries, step)
        if later:
            append(store, later.pop(), len(store.log) + 1)
    old = store.log
    live = set(map(id, store.entries.values()))
    places = [Place(index, store.places) for index in range(len(old) + 1)]
    expected = [[entry for entry in old[index:] if id(entry) in live] for index in range(len(old) + 1)]
    store.log = compaction.finish(old, store.places)
    assert [entry.revision for entry in store.log] == sorted(entry.revision for entry in store.log)
    for place, entries in zip(places, expected, strict=True):
        assert [entry for entry in store.log[place.index :] if id(entry) in live] == entries


def append(store: Store, name: int, revision: int) -> None:
    entry = Entry(f"app_{name}", revision, 0, b"x")
    store.entries[entry.id] = entry
    store.log.append(entry)


def test_a_copy_of_another_map_ends_it() -> None:
    """A standby adopts its leader's map; what was being shortened is another log."""
    store = Store()
    store._COMPACT_FROM, store._COMPACT_STEP = 3, 1
    store.publish(store.prepare([(f"app_{number}", b"a") for number in range(60)], 1), consistent=True)
    for number in range(30):
        store.publish(store.prepare([(f"app_{number}", b"b")], 2), consistent=True)
        if store._compaction is not None:
            break
    assert store._compaction is not None
    others = [Entry(f"other_{number}", number, 0, b"y") for number in range(1, 6)]
    store.adopt(others, 5, history=Timeline("7", 1), consistent=True)
    for number in range(40):
        store.publish(store.prepare([("more", bytes([number]))], number), consistent=True)
        store.tend()
    walk = Cursor(store, 0)
    part = walk.read(1_000)
    assert {entry.id for entry in part.entries} == {"more", *(f"other_{number}" for number in range(1, 6))}
    assert part.arrival is not None
