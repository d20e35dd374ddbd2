"""What is named one by one goes before the rest of a ripple, on every kind of walk, and comes only once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.store import express as express_module
from cdc.store.catchup import Catchup
from cdc.store.cursor import Cursor
from cdc.store.replay import Replay
from cdc.store.store import Store
from tests.cdc.store.test_store import publish

if TYPE_CHECKING:
    from collections.abc import Callable

RIPPLE = {f"plan_{number}": b"x" for number in range(200)}
KEY: dict[str, bytes | None] = {"app": b"new"}
LIMIT = 16


def ripples(store: Store, ending: bytes) -> None:
    for start in range(0, 200, 50):
        some = list(RIPPLE)[start : start + 50]
        publish(store, {endpoint_id: RIPPLE[endpoint_id] + ending for endpoint_id in some})


def cursor(store: Store) -> Callable[[], list[str]]:
    walk = Cursor(store, express=True)
    return lambda: [entry.id for entry in walk.read(LIMIT).entries]


def catchup(store: Store) -> Callable[[], list[str]]:
    walk = Catchup(store)
    return lambda: [entry.id for entry in walk.read(LIMIT).entries]


def replay(store: Store) -> Callable[[], list[str]]:
    walk = Replay(store)
    return lambda: [entry.id for entry in walk.read(LIMIT)]


@pytest.mark.parametrize("kind", [cursor, catchup, replay])
@pytest.mark.parametrize("after", range(5))
def test_a_key_is_next_wherever_it_stands_in_a_ripple(
    kind: Callable[[Store], Callable[[], list[str]]], after: int
) -> None:
    store = Store()
    publish(store, {"app": b"old", **RIPPLE})
    read = kind(store)
    read()  # some of what there was, or nothing
    for number, start in enumerate(range(0, 250, 50)):
        if number == after:
            publish(store, KEY, express=True)
        publish(store, dict.fromkeys(list(RIPPLE)[start : start + 50], b"y"))
    assert read() == ["app"]
    rest = [endpoint_id for _ in range(100) for endpoint_id in read()]
    assert sorted(rest) == sorted(set(rest) - {"app"}), "nothing comes twice"
    assert set(rest) >= RIPPLE.keys()


def test_all_that_comes_in_one_part_comes_in_one_part() -> None:
    """An idle client gets a change and its proof in one message."""
    store = Store()
    walk = Cursor(store, express=True)
    publish(store, {"other": b"x"})
    publish(store, KEY, express=True)
    part = walk.read(LIMIT)
    assert [entry.id for entry in part.entries] == ["other", "app"]
    assert part.arrival is not None


@pytest.mark.parametrize("ahead", [LIMIT, LIMIT + 1])
def test_what_the_next_part_brings_anyway_does_not_go_ahead(ahead: int) -> None:
    store = Store()
    walk = Cursor(store, express=True)
    publish(store, {f"other_{number}": b"x" for number in range(ahead - 1)})
    publish(store, KEY, express=True)
    part = walk.read(LIMIT)
    assert part.entries[-1].id == "app"
    assert len(part.entries) == (LIMIT if ahead == LIMIT else 1)


def test_what_moved_on_after_it_overtook_comes_again() -> None:
    store = Store()
    walk = Cursor(store, express=True)
    ripples(store, b"")
    publish(store, KEY, express=True)
    assert [entry.payload for entry in walk.read(LIMIT).entries] == [b"new"]
    publish(store, {"app": b"newest"})
    parts = [walk.read(LIMIT) for _ in range(50)]
    assert [entry.payload for part in parts for entry in part.entries if entry.id == "app"] == [b"newest"]
    assert parts[-1].cut is not None
    assert parts[-1].cut.digest == store.digest


def test_what_is_forgotten_comes_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express_module, "_KEPT", 4)
    store = Store()
    walks = [cursor(store), replay(store)]
    ripples(store, b"")
    keys = [f"key_{number}" for number in range(60)]
    for key in keys:
        publish(store, {key: b"k"}, express=True)
    for read in walks:
        found = [endpoint_id for _ in range(100) for endpoint_id in read()]
        assert sorted(found) == sorted([*keys, *RIPPLE])
        assert found[0] in keys[-8:]


def test_who_is_overtaken_too_often_gets_the_rest_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went before is remembered until a walk has arrived, which may take a slow client for ever."""
    monkeypatch.setattr(express_module, "_OVERTAKEN", 40)
    store = Store()
    publish(store, {f"app_{number}": b"x" for number in range(500)})
    walk = Replay(store)
    order: list[str] = []
    for number in range(100):
        publish(store, {f"key_{number}": b"k"}, express=True)
        order += [entry.id for entry in walk.read(1)]
        assert len(walk._overtaking._sent) <= 40
    assert order[:40] == [f"key_{number}" for number in range(40)]
    while entries := walk.read(LIMIT):
        order += [entry.id for entry in entries]
    assert len(set(order)) == 600, "nothing is missing; stretches that were joined bring some twice"
    assert walk.read(LIMIT) == [], "what came in its turn does not come again"
    publish(store, {"app_1": b"y", "app_2": b"y"})
    publish(store, KEY, express=True)
    assert [entry.id for entry in walk.read(1)] == ["app"], "once it has arrived it is overtaken again"


def test_a_walk_in_the_order_of_revisions_lets_nothing_overtake() -> None:
    store = Store()
    walk = Cursor(store)
    ripples(store, b"y")
    publish(store, KEY, express=True)
    assert "app" not in [entry.id for entry in walk.read(LIMIT).entries]


def test_each_part_says_whether_more_is_there() -> None:
    store = Store()
    walk = Cursor(store, express=True)
    ripples(store, b"y")
    publish(store, KEY, express=True)
    parts = [walk.read(LIMIT) for _ in range(14)]
    assert [part.more for part in parts] == [True] * 13 + [False], "the key, and thirteen parts of the ripple"
    assert [part.arrival is not None for part in parts] == [False] * 13 + [True]
