"""What a relay makes of pages that no leader has stored in this order, and of a leader that knows less than
it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdc.relay.page_reader import PageOutcome, PageReader
from cdc.state.forgetting import Marks
from cdc.store.store import Store
from tests.cdc.relay.test_pages_model import Leader, contents, copied

if TYPE_CHECKING:
    from cdc.relay.pages import Page


def everything(leader: Leader) -> list[Page]:
    """Return all pages that there are to publish now."""
    pages: list[Page] = []
    while leader.publisher.more or not pages:
        pages += [copied(page) for page in leader.publisher.take()]
    return pages


def leading(epoch: str, *ids: str) -> Leader:
    """Return a leader that holds these endpoints, and publishes a generation."""
    leader = Leader(epoch)
    leader.change([(endpoint_id, b"a") for endpoint_id in ids])
    leader.publisher.resume(None)
    return leader


def test_a_snapshot_that_is_not_the_leader_s_map_is_asked_for_once_more() -> None:
    leader, store = leading("1" * 32, "app_0", "app_1"), Store()
    reader = PageReader(store)
    pages = everything(leader)
    del next(page for page in pages if page.entries).entries[0]
    assert PageOutcome.MISMATCH in [reader.take(page) for page in pages]
    assert reader.wanting, "or a relay would wait for the next snapshot, which may be days away"
    assert contents(store) == {}
    leader.publisher.begin_generation()
    assert PageOutcome.ARRIVED in [reader.take(page) for page in everything(leader)]
    assert contents(store) == contents(leader.store)


def test_pages_of_two_runs_make_no_run_though_their_numbers_fit() -> None:
    """A broker came back older, and by now has other pages under the numbers that it had before."""
    leader, store = leading("1" * 32, "app_0", "app_1", "app_2"), Store()
    reader = PageReader(store)
    for page in everything(leader):
        reader.take(page)
    leader.change([(f"app_{number}", b"b") for number in range(3)])
    first, *_ = everything(leader)
    assert reader.take(copied(first)) is PageOutcome.TAKEN
    other = replace(copied(first), number=first.number + 1, start=first.start + 1, first=False)
    assert reader.take(other) is PageOutcome.BROKEN


def test_what_another_leader_does_not_know_of_is_gone_and_legacy_clients_are_told() -> None:
    """It has lost its state file, and with that all that was deleted before."""
    old, store = leading("1" * 32, "app_0", "app_1", "app_2"), Store()
    old.change([("app_2", None)])
    reader = PageReader(store)
    for page in everything(old):
        reader.take(page)
    new = leading("2" * 32, "app_0")
    new.position = old.position
    new.change([("app_3", b"a")])
    for page in everything(new):
        reader.take(page)
    assert contents(store) == contents(new.store)
    assert set(store.tombstones) == {"app_1", "app_2"}
    assert len(store) == 2
    new.change([("app_1", b"b")])
    for page in everything(new):
        reader.take(page)
    assert contents(store) == contents(new.store)
    assert (store.digest, set(store.tombstones)) == (new.store.digest, {"app_2"})


def test_a_relay_that_missed_what_its_leader_has_forgotten_tells_its_clients() -> None:
    """It has missed the pages with the delete, and the next generation has no tombstone."""
    leader, store = leading("1" * 32, "app_0", "app_1"), Store()
    reader = PageReader(store)
    for page in everything(leader):
        reader.take(page)
    leader.change([("app_0", None)])
    everything(leader)
    leader.forget(leader.store.head)
    outcomes = []
    for _ in range(2):  # the first one shows that pages are missing
        leader.publisher.begin_generation()
        outcomes += [reader.take(page) for page in everything(leader)]
    assert PageOutcome.MISMATCH not in outcomes
    assert contents(store) == contents(leader.store)
    assert set(store.tombstones) == {"app_0"}
    assert reader.origin().forgotten == leader.origin.forgotten, "tokens are judged by it"


@pytest.mark.parametrize("anew", [False, True], ids=["one line", "a new line each time"])
def test_a_relay_keeps_deletes_for_the_retention_if_its_leader_has_forgotten_them(*, anew: bool) -> None:
    now = [0.0]
    leader, store = leading("1" * 32, "app_0", "app_1", "app_2"), Store()
    reader = PageReader(store, Marks(24.0, lambda: now[0]))

    def follow() -> None:
        leader.change([("app_2", str(now[0]).encode())])
        if anew:
            leader.publisher.resume(None)
        for page in everything(leader):
            reader.take(page)

    follow()
    leader.change([("app_0", None)])
    leader.forget(leader.store.head)
    follow()
    assert set(store.tombstones) == {"app_0"}, "it has come just now"
    for _ in range(26):
        now[0] += 1.0
        follow()
    assert not store.tombstones
    leader.change([("app_1", None)])
    for _ in range(50):
        now[0] += 1.0
        follow()
    assert set(store.tombstones) == {"app_1"}, "its leader has it still"


def test_a_leader_whose_stream_ends_before_what_it_has_forgotten_begins_another() -> None:
    leader = leading("1" * 32, "app_0", "app_1")
    *_, last = everything(leader)
    leader.change([("app_0", None)])
    leader.forget(leader.store.head)
    assert not leader.publisher.resume(last)
    assert leader.publisher.line != last.line


def test_a_publisher_that_stood_still_for_too_long_begins_another_line() -> None:
    leader, store = leading("1" * 32, "app_0", "app_1"), Store()
    reader = PageReader(store)
    for page in everything(leader):
        reader.take(page)
    leader.change([("app_0", None)])
    leader.forget(leader.store.head)
    for page in everything(leader):
        reader.take(page)
    assert contents(store) == contents(leader.store)
