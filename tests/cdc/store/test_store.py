"""The store against a plain model: whatever is published, every walk ends with the map of a dict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from cdc.lsn import Lsn
from cdc.store.catchup import Catchup
from cdc.store.cursor import Cursor
from cdc.store.digest import entry_digest
from cdc.store.entry_columns import GONE, EntryColumns
from cdc.store.log import Entry, OutlivedError
from cdc.store.replay import Replay
from cdc.store.store import Store

IDS = st.integers(0, 12).map(lambda number: f"app_{number}")
PAYLOADS = st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c"]))


def publish(
    store: Store,
    rows: dict[str, bytes | None],
    *,
    consistent: bool = True,
    position: int = 0,
    express: bool = False,
) -> int:
    """Bring rows in; returns how many entries were published."""
    batch = store.prepare(rows.items(), position)
    store.publish(batch, consistent=consistent, position=position, express=express)
    return len(batch.changed)


def model_digest(model: dict[str, bytes]) -> bytes:
    total = sum(int.from_bytes(entry_digest(*item), "big") for item in model.items())
    return (total % (1 << 128)).to_bytes(16, "big")


def live(store: Store) -> dict[str, bytes]:
    return {entry.id: entry.payload for entry in store.live() if entry.payload is not None}


class Client:
    """Applies what a cursor hands out."""

    def __init__(self, cursor: Cursor, holds: dict[str, bytes]) -> None:
        self.cursor = cursor
        self.map = dict(holds)
        self._revisions: dict[str, int] = {}

    def read(self, limit: int) -> Any:
        part = self.cursor.read(limit)
        ids = [entry.id for entry in part.entries]
        assert len(ids) == len(set(ids)), "an id twice in one part"
        for entry in part.entries:
            assert self._revisions.get(entry.id, -1) < entry.revision, "it went back, or came twice"
            self._revisions[entry.id] = entry.revision
            if entry.payload is None:
                self.map.pop(entry.id, None)
            else:
                self.map[entry.id] = entry.payload
        return part


class Walks(RuleBasedStateMachine):
    """Writers, cursors that are slow, replays, compaction: against the history of every revision's map."""

    clients: Bundle[Client] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.store._COMPACT_FROM, self.store._COMPACT_STEP = 3, 1
        self.model: dict[str, bytes] = {}
        self.named: set[str] = set()
        self.history: dict[int, dict[str, bytes]] = {0: {}}
        self.old: list[tuple[Replay, dict[str, bytes], dict[str, int]]] = []

    @initialize()
    def start(self) -> None:
        self.store.mark_consistent(0)

    @rule(rows=st.dictionaries(IDS, PAYLOADS, max_size=6), express=st.booleans())
    def write(self, rows: dict[str, bytes | None], express: bool) -> None:
        changes = 0
        for endpoint_id, payload in rows.items():
            # That an id is gone is news even if it was never known here: another server may have sent it.
            if self.model.get(endpoint_id) != payload or endpoint_id not in self.named:
                changes += 1
            self.named.add(endpoint_id)
            if payload is None:
                self.model.pop(endpoint_id, None)
            else:
                self.model[endpoint_id] = payload
        before = self.store.head
        assert publish(self.store, rows, express=express) == changes, "the same bytes are not published again"
        assert self.store.head == before + bool(changes)
        self.history[self.store.head] = dict(self.model)

    @rule(target=clients, data=st.data(), express=st.booleans())
    def resume(self, data: st.DataObject, express: bool) -> Client:
        revision = data.draw(st.sampled_from(sorted(self.history)))
        return Client(Cursor(self.store, revision, express=express), self.history[revision])

    @rule(client=clients, limit=st.integers(0, 4))
    def read(self, client: Client, limit: int) -> None:
        part = client.read(limit)
        if part.cut is not None:
            assert client.map == self.history[part.cut.revision], "a token stands for a map that existed"
            assert part.cut.digest == model_digest(client.map)
            assert part.cut.count == len(client.map)

    @rule(stale=st.dictionaries(IDS, st.just(b"stale")))
    def open_replay(self, stale: dict[str, bytes]) -> None:
        # An old client may hold anything that ever was, as long as a tombstone or an entry answers for it.
        known = {entry.id for entry in self.store.entries.values()}
        holds = {key: value for key, value in stale.items() if key in known}
        self.old.append((Replay(self.store), holds, {}))

    @rule(data=st.data(), limit=st.integers(1, 4))
    def read_replay(self, data: st.DataObject, limit: int) -> None:
        if self.old:
            apply_replay(data.draw(st.sampled_from(self.old)), limit)

    @invariant()
    def agrees(self) -> None:
        assert live(self.store) == self.model
        assert len(self.store) == len(self.model)
        assert self.store.digest == model_digest(self.model)
        revisions = [entry.revision for entry in self.store.log]
        assert revisions == sorted(revisions)
        tombstones = [entry.revision for entry in self.store.tombstones.values()]
        assert tombstones == sorted(tombstones)

    def teardown(self) -> None:
        for old in self.old:
            while apply_replay(old, 3):
                pass
            assert old[1] == self.model, "a replay ends with the map"
            old[0].close()
        super().teardown()


def apply_replay(old: tuple[Replay, dict[str, bytes], dict[str, int]], limit: int) -> list[Entry]:
    replay, holds, newest = old
    entries = replay.read(limit)
    for entry in entries:
        assert entry.revision >= newest.get(entry.id, 0), "an id went back on a stream"
        newest[entry.id] = entry.revision
        if entry.payload is None:
            holds.pop(entry.id, None)
        else:
            holds[entry.id] = entry.payload
    return entries


TestWalks = Walks.TestCase
TestWalks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_slow_cursor_and_two_transactions_that_share_an_endpoint() -> None:
    """The trap of a cut: x moved in the second transaction before the walk reached it in the first."""
    store = Store()
    store.mark_consistent(0)
    publish(store, {"w": b"0", "x": b"0", "y": b"0"})
    client = Client(Cursor(store), {"w": b"0", "x": b"0", "y": b"0"})
    publish(store, {"w": b"1", "x": b"1"})
    assert client.read(1).cut is None
    publish(store, {"x": b"2", "y": b"2"})
    # At the first transaction's revision the client would hold {w: 1, x: 0, y: 0}: a map that never existed.
    while (part := client.read(1)).cut is None:
        assert client.map != {"w": b"1", "x": b"2", "y": b"0"} or part.more
    assert client.map == {"w": b"1", "x": b"2", "y": b"2"}


def test_no_cut_between_the_parts_of_a_ripple() -> None:
    store = Store()
    store.mark_consistent(0)
    client = Client(Cursor(store), {})
    publish(store, {"a": b"1"}, consistent=False)
    assert client.read(10).cut is None
    publish(store, {"b": b"1"}, consistent=False)
    assert client.read(10).cut is None
    store.mark_consistent(7)
    cut = client.read(10).cut
    assert cut is not None
    assert (cut.revision, cut.position) == (2, 7)


def test_the_tail_goes_before_the_replay_and_the_newest_first() -> None:
    store = Store()
    store.mark_consistent(0)
    for number in range(4):
        publish(store, {f"app_{number}": b"1"})
    publish(store, {"app_0": None})
    replay = Replay(store)
    publish(store, {"app_2": b"revoked"})
    assert [entry.id for entry in replay.read(1)] == ["app_2"]
    publish(store, {"app_1": b"revoked"})
    order = []
    while entries := replay.read(1):
        order += [(entry.id, entry.payload) for entry in entries]
    # Tail, tombstones, then backfill without what the tail has brought.
    assert order == [("app_1", b"revoked"), ("app_0", None), ("app_3", b"1")]


def test_positions_move_even_where_the_bytes_stay() -> None:
    store = Store()
    publish(store, {"a": b"1"}, position=10)
    assert publish(store, {"a": b"1"}, position=20) == 0
    assert (store.entries["a"].revision, store.entries["a"].position) == (1, 20)
    reread = store.prepare([("a", b"1")], 30, named=False)
    store.publish(reread, consistent=True)
    assert store.entries["a"].position == 20, "nobody named it"


@pytest.mark.parametrize("payload", [b"2", None])
def test_what_is_delivered_again_is_not_news(payload: bytes | None) -> None:
    store = Store()
    publish(store, {"a": b"1"}, position=20)
    assert publish(store, {"a": payload}, position=10) == 1
    assert store.entries["a"].position == 20


def test_a_restored_store_publishes_only_what_changed_while_it_was_down() -> None:
    store = Store()
    store.restore(
        EntryColumns(
            [
                ("same", 3, 30, entry_digest("same", b"1")),
                ("changed", 4, 40, entry_digest("changed", b"1")),
                ("gone", 2, 20, entry_digest("gone", b"1")),
                ("long_gone", 1, 10, GONE),
            ]
        ),
        head=5,
    )
    assert not store.ready
    assert store.live() == []
    rows = {"same": b"1", "changed": b"2", "new": b"1", "gone": None}
    batch = store.prepare(rows.items(), 50, named=False)
    assert (batch.upserts, batch.deletes) == (2, 1)
    store.publish(batch, consistent=True)
    assert {entry.id: entry.revision for entry in store.entries.values()} == {
        "same": 3, "changed": 6, "new": 6, "gone": 6, "long_gone": 1,
    }  # fmt: skip
    assert live(store) == {"same": b"1", "changed": b"2", "new": b"1"}
    assert store.digest == model_digest(live(store))
    assert list(store.tombstones) == ["long_gone", "gone"]
    assert publish(store, {"changed": b"1"}) == 1, "what the state file knew of it is over"
    assert live(store)["changed"] == b"1"


def test_nobody_sees_a_payload_in_a_repr() -> None:
    entry = Entry("app", 1, 1, b"key-0123")
    assert "key-0123" not in repr(entry)


@pytest.mark.parametrize("key", ["a", "é", ""])
def test_the_digest_separates_id_and_payload(key: str) -> None:
    assert entry_digest(key + "x", b"y") != entry_digest(key, b"xy")


def test_a_revocation_overtakes_the_rest_of_a_ripple() -> None:
    """The legacy contract takes one endpoint a message: a ripple of many would otherwise be a queue."""
    store = Store()
    store.mark_consistent(0)
    publish(store, {f"app_{number}": b"1" for number in range(500)})
    replay = Replay(store)
    while replay.read(64):
        pass
    publish(store, {f"app_{number}": b"2" for number in range(500)})
    assert len(replay.read(64)) == 64
    publish(store, {"app_7": b"revoked"})
    assert [(entry.id, entry.payload) for entry in replay.read(64)] == [("app_7", b"revoked")]
    rest = []
    while entries := replay.read(64):
        rest += [entry.id for entry in entries]
    assert len(rest) == len(set(rest)) == 500 - 64 - 1
    assert "app_7" not in rest


def test_a_replay_sends_nothing_that_has_moved_on() -> None:
    """Neither a tombstone of what is there again, nor an older state after a newer one."""
    store = Store()
    publish(store, {"back": b"1"})
    publish(store, {"back": None})
    publish(store, {"stays": b"1", "moves": b"1"})
    replay = Replay(store)
    publish(store, {"back": b"2"})
    publish(store, {"moves": b"2"})
    sent = []
    while entries := replay.read(10):
        sent += [(entry.id, entry.payload) for entry in entries]
    assert sent == [("moves", b"2"), ("back", b"2"), ("stays", b"1")]
    replay.close()


def test_tombstones_are_searched_for_and_no_client_has_a_list_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be few, far down in the log: each read looks at some places, and others are served between."""
    monkeypatch.setattr("cdc.store.replay._SLICE", 10)
    monkeypatch.setattr("cdc.store.replay._SEARCHED", 40)
    store = Store()
    publish(store, {f"gone_{number}": b"1" for number in range(30)})
    publish(store, {f"gone_{number}": None for number in range(30)})
    publish(store, {f"app_{number}": b"1" for number in range(1_000)})
    replay = Replay(store)
    publish(store, {"gone_7": b"2"})
    assert [entry.id for entry in replay.read(4)] == ["gone_7"]
    reads = []
    while (entries := replay.read(4)) or replay.more:
        reads.append(entries)
    assert reads[:20] == [[]] * 20, "a thousand places are not searched at once"
    order = [entry.id for entries in reads for entry in entries]
    gone = [f"gone_{number}" for number in reversed(range(30)) if number != 7]
    assert order == [*gone, *(f"app_{number}" for number in reversed(range(1_000)))]
    replay.close()
    assert not store.places


def test_an_unknown_id_that_somebody_only_asked_for_leaves_no_tombstone() -> None:
    """Others do: a client of another server may have seen them come, before they went."""
    store = Store()
    publish(store, {"here": b"1"})
    rows: dict[str, bytes | None] = {"here": None, "asked": None, "came_and_went": None}
    for position in (1, 2):
        batch = store.prepare(rows.items(), position, asked={"here", "asked"})
        store.publish(batch, consistent=True, position=position)
        assert store.tombstones.keys() == {"here", "came_and_went"}
    assert not len(store)
    publish(store, {"asked": b"1"})
    store.publish(store.prepare([("asked", None)], 3, asked={"asked"}), consistent=True)
    assert store.tombstones.keys() == {"here", "came_and_went", "asked"}, "it was there"


def test_without_tombstones_nothing_is_searched() -> None:
    store = Store()
    publish(store, {f"app_{number}": b"1" for number in range(10)})
    replay = Replay(store)
    assert not replay.more
    assert len(replay.read(16)) == 10


def forgetting(*ids: str) -> Store:
    """Return a store that has forgotten these deletes, and is about to remove all but one of them."""
    store = Store()
    store._FORGET_STEP = 1
    publish(store, dict.fromkeys(ids, b"1"), position=10)
    publish(store, dict.fromkeys(ids), position=20)
    store.forget(store.head)
    return store


def test_an_id_whose_delete_is_forgotten_is_deleted_anew() -> None:
    """A client that has it from another server, and is younger than the retention, must still be told."""
    ids = {"app_0", "app_1", "app_2"}
    store = forgetting(*ids)
    assert publish(store, dict.fromkeys(ids), position=5000) == 3, "even if its tombstone is still there"
    while store.tend():
        pass
    assert {entry.id: entry.position for entry in store.tombstones.values()} == dict.fromkeys(ids, 5000)


def test_a_delete_that_is_forgotten_before_it_was_sent_ends_the_replay() -> None:
    store = Store()
    names = [f"app_{number}" for number in range(10)]
    publish(store, dict.fromkeys(names, b"1"))
    early, late, done = Replay(store), Replay(store), Replay(store)
    while late.read(100) or done.read(100):
        pass
    publish(store, dict.fromkeys(names))
    assert len(late.read(3)) == 3
    while done.read(100):
        pass
    store.forget(store.head)
    for replay in (early, late):
        with pytest.raises(OutlivedError):
            replay.read(100)
    assert done.read(100) == [], "it has sent all of them"
    assert Replay(store).read(100) == []


def test_a_walk_over_all_positions_needs_no_deletes_of_before() -> None:
    """A standby server drops the map that it had: it must not begin anew whenever some are forgotten."""
    store = Store()
    publish(store, {"app_0": b"1", "app_1": b"1"})
    publish(store, {"app_0": None})
    everything, younger = Catchup(store, Lsn(-1)), Catchup(store, Lsn(0))
    store.forget(store.head)
    assert [entry.id for entry in everything.read(10).entries] == ["app_1"]
    with pytest.raises(OutlivedError):
        younger.read(10)
