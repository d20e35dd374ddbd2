"""The memory of parents, against a model that sees what the WAL leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes import Column, Delete, Insert, Row, Update
from cdc.mapping import parents as parents_module
from cdc.mapping.affected import Affected
from cdc.mapping.mapping import Rule
from cdc.mapping.parents import Followed, Loaded, Parents

KIND = "EndpointsOfApplications"
RULE = Rule("settings", "application_id", KIND, row="id", parents="ParentsOfSettings")


def insert(row: int, parent: str) -> Insert:
    return Insert("public", "settings", (Column("id", row), Column("application_id", parent)))


def update(row: int, parent: str, *, was: int | None = None) -> Update:
    """Make an update with the default identity: it names the old id and not the old parent."""
    new = (Column("id", row), Column("application_id", parent))
    return Update("public", "settings", new, (Column("id", row if was is None else was),))


def delete(row: int) -> Delete:
    return Delete("public", "settings", (Column("id", row),))


@dataclass
class Stream:
    """Transactions, one after the other, through one memory."""

    parents: Parents
    end: int = 100

    def take(self, *rows: Row) -> Affected:
        affected = Affected()
        for row in rows:
            affected.add(row, [RULE])
        self.end += 10
        self.parents.resolve(affected, self.end)
        return affected


@pytest.fixture
def stream() -> Stream:
    parents = Parents()
    parents.load({RULE: [("1", "A"), ("2", "B")]}, covered=100)
    return Stream(parents)


def test_a_row_that_moves_affects_the_parent_that_it_leaves(stream: Stream) -> None:
    assert stream.take(update(1, "B")).keys == {KIND: {"A", "B"}}
    assert stream.take(update(1, "C")).keys == {KIND: {"B", "C"}}
    assert stream.take(delete(1)).keys == {KIND: {"C"}}
    assert len(stream.parents) == 1


def test_a_row_whose_parent_is_null_is_known_and_leaves_nobody() -> None:
    """An empty text in its place is no key: to a bigint it cannot be cast."""
    stream = Stream(Parents())
    stream.parents.load({RULE: [("1", None), ("2", None), ("3", "")]}, covered=100)
    assert stream.take(update(1, "B")).keys == {KIND: {"B"}}
    left = stream.take(delete(2))
    assert (left.keys, left.reconcile) == ({}, None)
    assert stream.take(delete(3)).keys == {KIND: {""}}


def test_several_moves_in_one_transaction(stream: Stream) -> None:
    found = stream.take(update(1, "X"), update(1, "Y"), delete(1), insert(3, "Z"), update(3, "W"), delete(2))
    assert found.keys == {KIND: {"A", "X", "Y", "Z", "W", "B"}}
    assert found.reconcile is None
    assert not found.moves, "resolved: the task that waits needs no more of them"


def test_a_row_that_is_not_known_asks_for_everything(stream: Stream) -> None:
    for row in (delete(9), update(9, "A")):
        again = Stream(Parents())
        again.parents.load({RULE: [("1", "A")]}, covered=100)
        found = again.take(row)
        assert (found.reconcile, len(found)) == ("unknown_row", 0)
    assert stream.take(delete(1)).reconcile is None


def test_what_the_load_has_covered_is_covered_by_the_read_after_it(stream: Stream) -> None:
    """At the start the slot delivers again what was done before the memory was read."""
    stream.parents.load({RULE: [("1", "A")]}, covered=200)
    found = stream.take(delete(9), update(8, "C"))
    assert found.reconcile is None
    assert found.keys == {KIND: {"C"}}
    assert stream.take(delete(8)).keys == {KIND: {"C"}}, "followed though it came late"
    stream.end = 190
    assert stream.take(delete(9)).reconcile is None, "one that ends just there"
    assert stream.take(delete(9)).reconcile == "unknown_row"


def test_a_changed_row_id_is_followed(stream: Stream) -> None:
    assert stream.take(update(7, "B", was=1)).keys == {KIND: {"A", "B"}}
    assert stream.take(delete(7)).keys == {KIND: {"B"}}
    assert stream.take(delete(1)).reconcile == "unknown_row", "that id is gone"


def test_swapped_row_ids(stream: Stream) -> None:
    found = stream.take(update(9, "A", was=1), update(1, "B", was=2), update(2, "A", was=9))
    assert found.keys == {KIND: {"A", "B"}}
    assert stream.take(delete(1)).keys == {KIND: {"B"}}
    assert stream.take(delete(2)).keys == {KIND: {"A"}}


def test_nothing_is_known_after_a_transaction_that_could_not_be_followed(stream: Stream) -> None:
    """It may have moved any row: what the memory says of it now would be one parent too old."""
    lost = Affected()
    lost.give_up("large")
    stream.parents.resolve(lost, 150)
    assert stream.take(update(1, "C")).reconcile == "unknown_row"
    assert stream.take(insert(3, "C")).keys == {KIND: {"C"}}, "what names its parent needs no memory"
    stream.parents.load({RULE: [("1", "C"), ("3", "C")]}, covered=stream.end)
    assert stream.take(update(1, "D")).keys == {KIND: {"C", "D"}}


def test_nothing_is_known_after_rows_behind_an_unknown_one(stream: Stream) -> None:
    assert stream.take(delete(9), update(1, "B")).reconcile == "unknown_row"
    found = stream.take(update(1, "C"))
    assert found.reconcile == "unknown_row", "A -> B was not followed: A and C would leave out B"


def test_without_a_memory_only_rows_that_name_their_parent_are_understood() -> None:
    stream = Stream(Parents())
    assert stream.take(insert(1, "A")).keys == {KIND: {"A"}}
    assert stream.take(delete(1)).reconcile == "unknown_row"


def test_an_identity_that_names_the_parent_needs_no_memory() -> None:
    """REPLICA IDENTITY USING INDEX, or FULL: the catalog then asks for no memory."""
    stream = Stream(Parents())
    parent = (Column("application_id", "A"),)
    for identity in (parent, (Column("id", 1), *parent)):
        assert stream.take(Delete("public", "settings", identity)).keys == {KIND: {"A"}}
        new = (Column("id", 1), Column("application_id", "B"))
        assert stream.take(Update("public", "settings", new, identity)).keys == {KIND: {"A", "B"}}
    assert not len(stream.parents)


def test_an_identity_by_index_keeps_a_memory_that_is_needed_elsewhere_right(stream: Stream) -> None:
    """Partitions may differ in their identity: one that names the parent still moves remembered rows."""
    new = (Column("id", 1), Column("application_id", "B"))
    assert stream.take(Update("public", "settings", new, (Column("application_id", "A"),))).keys == {
        KIND: {"A", "B"}
    }
    assert stream.take(delete(1)).keys == {KIND: {"B"}}


STEPS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from("ABC"), st.sampled_from("iudk"), st.integers(0, 5)),
        max_size=4,
    ),
    max_size=12,
)


@given(STEPS, st.integers(0, 12))
def test_every_parent_that_a_row_has_had_is_named(
    transactions: list[list[tuple[int, str, str, int]]], load_at: int
) -> None:
    """The model is the table itself; the memory is loaded once more on the way, at any time."""
    table: dict[int, str] = {}
    stream = Stream(Parents())
    stream.parents.load({RULE: []}, covered=100)
    for number, steps in enumerate(transactions):
        if number == load_at:
            stream.parents.load(
                {RULE: [(str(row), parent) for row, parent in table.items()]}, covered=stream.end
            )
        rows: list[Row] = []
        touched: set[str] = set()
        for row, parent, action, other in steps:
            if action == "i" and row not in table:
                rows.append(insert(row, parent))
                table[row] = parent
                touched.add(parent)
            elif action == "u" and row in table:
                rows.append(update(row, parent))
                touched |= {table[row], parent}
                table[row] = parent
            elif action == "d" and row in table:
                rows.append(delete(row))
                touched.add(table.pop(row))
            elif action == "k" and row in table and other not in table:
                rows.append(update(other, parent, was=row))
                touched |= {table.pop(row), parent}
                table[other] = parent
        found = stream.take(*rows)
        assert found.reconcile is None
        assert found.keys == ({KIND: touched} if touched else {})
    assert len(stream.parents) == len(table)


def test_a_mirror_that_takes_nothing_gets_everything_again_once_it_does(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parents_module, "_UNTOLD", 10)
    stalled = stream.parents.mirror(lambda: None)
    stream.parents.tell()
    for number in range(100):
        stream.take(insert(number + 10, "C"))
        stream.parents.tell()
        assert len(stalled.items) <= 11
    assert stream.parents.news(stalled) == []
    stream.parents.tell()
    [loaded] = stream.parents.news(stalled)
    assert isinstance(loaded, Loaded)
    assert loaded.at == stream.end
    assert len(loaded.memory[RULE]) == 102
    stream.take(delete(10))
    assert stream.parents.news(stalled) == [Followed(stream.end, RULE, "10", None)]


def test_a_mirror_that_is_told_in_time_is_told_each_move(stream: Stream) -> None:
    mirror = stream.parents.mirror(lambda: None)
    stream.parents.tell()
    [loaded] = stream.parents.news(mirror)
    assert isinstance(loaded, Loaded)
    stream.take(insert(3, "C"))
    stream.take(update(3, "D"))
    assert stream.parents.news(mirror) == [
        Followed(110, RULE, "3", "C"),
        Followed(120, RULE, "3", "D"),
    ]
    assert stream.parents.news(mirror) == []
    stream.parents.unmirror(mirror)
    stream.take(delete(3))
    assert stream.parents.news(mirror) == []


def taken(parents: Parents) -> Loaded:
    """Return the whole memory, as a new mirror gets it."""
    mirror = parents.mirror(lambda: None)
    parents.tell()
    [loaded] = parents.news(mirror)
    assert isinstance(loaded, Loaded)
    return loaded


def test_memory_that_lacks_a_transaction_is_used_neither_here_nor_by_a_mirror(stream: Stream) -> None:
    """A commit that waits for a standby was followed, but the load could not see it."""
    parents = stream.parents
    parents.load({RULE: [("1", "A")]}, covered=100, complete=False)
    assert taken(parents).at > 1 << 63, "no stream gets there"
    assert stream.take(update(1, "B")).reconcile == "unknown_row"
    parents.load({RULE: [("1", "A")]}, covered=500)
    assert taken(parents) == Loaded(500, {RULE: {"1": "A"}})


def test_a_mirror_may_use_the_memory_from_its_load_or_its_newest_transaction_on(stream: Stream) -> None:
    assert taken(Parents()) == Loaded(0, {})
    assert taken(stream.parents) == Loaded(100, {RULE: {"1": "A", "2": "B"}})
    stream.take(delete(2))
    assert taken(stream.parents) == Loaded(110, {RULE: {"1": "A"}})


def test_a_load_replaces_what_a_mirror_has(stream: Stream) -> None:
    wakes: list[int] = []
    mirror = stream.parents.mirror(lambda: wakes.append(1))
    stream.parents.tell()
    stream.take(insert(3, "C"))
    stream.parents.load({RULE: [("9", "I")]}, covered=400)
    stream.parents.tell()
    assert stream.parents.news(mirror) == [Loaded(400, {RULE: {"9": "I"}})]
    stream.parents.tell()
    assert stream.parents.news(mirror) == [], "once is enough"
    assert len(wakes) == 2


def test_a_mirror_may_be_so_many_changes_behind(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parents_module, "_UNTOLD", 10)
    mirror = stream.parents.mirror(lambda: None)
    stream.parents.tell()
    stream.parents.news(mirror)
    for number in range(10):
        stream.take(insert(number + 10, "C"))
    assert len(stream.parents.news(mirror)) == 10


def test_rows_of_a_table_without_memory_do_not_hide_the_rows_behind_them(stream: Stream) -> None:
    other = Rule("other", "application_id", KIND, row="id", parents="ParentsOfOther")
    affected = Affected()
    affected.add(insert(5, "E"), [other])
    affected.add(delete(1), [RULE])
    stream.parents.resolve(affected, 200)
    assert (affected.keys, affected.reconcile) == ({KIND: {"E", "A"}}, None)


@given(st.data())
def test_a_memory_that_is_read_beside_the_stream_misses_nothing(data: st.DataObject) -> None:
    """The rows are those of some moment after the read began; changes are delivered before and after them."""
    kept: dict[int, str] = {}
    states: list[dict[int, str]] = [{}]
    changes: list[tuple[int, Row]] = []
    for _ in range(data.draw(st.integers(0, 12))):
        row, parent = data.draw(st.integers(1, 3)), data.draw(st.sampled_from("AB"))
        if row not in kept:
            changes.append((row, insert(row, parent)))
        elif data.draw(st.booleans()):
            changes.append((row, update(row, parent)))
        else:
            changes.append((row, delete(row)))
            parent = ""
        kept.pop(row, None)
        kept |= {row: parent} if parent else {}
        states.append(dict(kept))
    begun = data.draw(st.integers(0, len(changes)))
    loaded = data.draw(st.integers(begun, len(changes)))
    shown = data.draw(st.integers(begun, len(changes)))
    parents = Parents()
    parents.load({RULE: []}, covered=0)
    stream = Stream(parents, end=0)
    for number, (row, change) in enumerate(changes):
        if number == begun:
            parents.expect()
        if number == loaded:
            load(parents, states[shown], 10 * shown)
        affected = stream.take(change)
        left = states[number].get(row)
        if number < loaded or number >= shown:  # all others are older than the read of the mapping
            assert affected.reconcile is None
            assert left is None or left in affected.keys[KIND]


def load(parents: Parents, rows: dict[int, str], covered: int) -> None:
    parents.load({RULE: [(str(row), parent) for row, parent in rows.items()]}, covered)


def test_what_is_lost_during_a_read_of_the_memory_leaves_it_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction that was answered by a reconcile has moves that nobody knows; so have very many."""
    monkeypatch.setattr(parents_module, "_UNTOLD", 2)
    for lost in ((), (update(1, "B"), update(2, "B"), update(3, "B"))):
        parents = Parents()
        parents.load({RULE: [("1", "A"), ("2", "A"), ("3", "A")]}, covered=0)
        parents.expect()
        affected = Affected(reconcile=None if lost else "truncate")
        for row in lost:
            affected.add(row, [RULE])
        parents.resolve(affected, 10)
        load(parents, {1: "A", 2: "A", 3: "A"}, 0)
        assert Stream(parents).take(delete(1)).reconcile == "unknown_row"
        parents.expect()
        load(parents, {1: "A"}, 0)
        assert Stream(parents).take(delete(1)).keys == {KIND: {"A"}}


def test_named_keys_do_not_wait_for_the_reconcile_that_finds_the_old_parent() -> None:
    for memory in ({}, {RULE: [("2", "A")]}):
        parents = Parents()
        parents.load(memory, covered=0)
        affected = Affected()
        affected.add(update(2, "B"), [RULE])
        affected.add(update(1, "C"), [RULE])
        named = parents.resolve(affected, 10)
        assert affected.reconcile == "unknown_row"
        assert named is not None
        assert {"B", "C"} <= named.keys[KIND] <= {"A", "B", "C"}
        assert not named.moves
    parents.load({RULE: [("1", "A")]}, covered=0)
    affected = Affected()
    affected.add(update(1, "B"), [RULE])
    assert parents.resolve(affected, 20) is None
