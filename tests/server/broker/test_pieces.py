"""Pages larger than a message: they arrive as a whole or not at all, and keep no other endpoint back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.relay.pages import Page
from cdc.store.log import Entry
from server.broker import publishing
from server.broker.connection import BrokerError
from server.broker.page_bytes import PageAssembly, decode, encode, pieces
from tests.plugins.server import wait_until
from tests.server.broker.test_checks import make, right
from tests.server.broker.test_publishing import Rig as Leading
from tests.server.broker.test_reading import Rig as Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.nats import Node, NodeFactory

LARGEST = 4_000_000
"""Bytes of a payload, about the largest that is served; NATS takes messages of 1 MB by default."""


def large(number: int = 7) -> Page:
    """Return a page with one endpoint that takes ten messages of 1,000 bytes."""
    entries = [Entry("large", 3, 30, bytes(range(256)) * 27)]
    return Page("1" * 32, number, 2, "2" * 32, 1, 20, first=True, generation=5, entries=entries)


def test_a_page_arrives_once_its_last_piece_has() -> None:
    made, assembly = list(pieces(large(), 1_000)), PageAssembly()
    assert max(map(len, made)) <= 1_000
    arrived = [assembly.take(piece) for piece in made]
    assert [page is None for page in arrived[:-1]] == [True] * (len(made) - 1)
    assert arrived[-1] is not None
    assert encode(arrived[-1]) == encode(large())
    assert list(pieces(large(), 100_000)) == [encode(large())]


@pytest.mark.parametrize("lost", [0, 1, -2, -1])
def test_a_page_that_lacks_a_piece_does_not_arrive(lost: int) -> None:
    made, assembly = list(pieces(large(), 1_000)), PageAssembly()
    del made[lost]
    assert [assembly.take(piece) for piece in made] == [None] * len(made)
    again = [assembly.take(piece) for piece in pieces(large(8), 1_000)]
    assert again[-1] is not None, "the next one does"
    assert again[-1].number == 8


def test_pieces_of_two_pages_are_never_joined() -> None:
    """The leader ended within a page and came back; of the page anew, as long as before, the broker has lost
    the first piece.
    """
    before, after = large(), large()
    after.entries[0].payload = bytes(reversed(range(256))) * 27
    [first, *_], [_, *rest] = pieces(before, 1_000), pieces(after, 1_000)
    assembly = PageAssembly()
    assert [assembly.take(piece) for piece in (first, *rest)] == [None] * (1 + len(rest))


def test_until_the_last_piece_the_page_before_is_the_newest_one() -> None:
    """A leader that finds such a piece at the end of the stream publishes the page once more."""
    *before, last = (decode(piece) for piece in pieces(large(), 1_000))
    assert {page.number for page in before} == {6}
    assert last.number == 7
    assert {page.reached for page in [*before, last]} == {2}
    assert {page.generation for page in before} == {5}


def test_a_snapshot_whose_last_page_is_incomplete_is_none() -> None:
    page = large()
    page.complete = True
    assert {decode(piece).generation for piece in pieces(page, 1_000)} == {0}


@pytest.fixture
def small(nats_node: NodeFactory) -> Node:
    """A broker that takes small messages only."""
    return nats_node("max_payload: 8KB\n").start()


@pytest.fixture
def leader(small: Node) -> Iterator[Leading]:
    """A leader whose publisher is started by the test."""
    leader = Leading(small, "app_0", "app_1")
    yield leader
    leader.publishing.stop()
    leader.leader.publisher.close()


@pytest.fixture
def relay(small: Node) -> Iterator[Reading]:
    """A relay that reads, once there is a stream."""
    relay = Reading(small)
    yield relay
    relay.reading.stop()
    relay.leader.publisher.close()


def wait_same(relay: Reading, leader: Leading) -> None:
    """Return once the relay holds the leader's map."""
    wait_until(lambda: relay.store.digest == leader.store.digest and relay.store.consistent, "the same map")


def test_an_endpoint_larger_than_the_broker_s_messages_keeps_none_back(
    leader: Leading, relay: Reading
) -> None:
    leader.leader.change([("large", bytes(LARGEST)), ("x" * 20_000, b"its id is larger alone")])
    leader.publishing.start()
    wait_until(leader.published, "the snapshot is published")
    relay.reading.start()
    wait_same(relay, leader)
    leader.leader.change(
        [("app_0", b"b"), ("large", bytes(LARGEST + 1)), ("x" * 20_000, None), ("app_1", b"c")]
    )
    leader.leader.change([("x" * 20_000, None)])  # its position alone moves
    wait_until(leader.published, "the changes are published")
    wait_same(relay, leader)
    assert "broker" not in leader.troubles.now
    assert (relay.received.breaks, relay.received.mismatches) == (0, 0)


@pytest.mark.parametrize("stored", [1, 3])  # of its page before, and of its pieces
def test_a_leader_that_is_cut_off_within_a_page_publishes_it_once_more(
    leader: Leading, relay: Reading, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    leader.publishing.start()
    wait_until(leader.published, "the snapshot is published")
    relay.reading.start()
    wait_same(relay, leader)
    left = [stored]

    def reach(point: str) -> None:
        left[0] -= point == "page_stored"
        if point == "page_stored" and left[0] == 0:
            raise BrokerError("cut off")

    monkeypatch.setattr(publishing, "reach", reach)
    leader.leader.change([("app_0", b"b"), ("large", bytes(30_000))])
    wait_until(lambda: left[0] <= 0, "it is cut off")
    wait_until(leader.published, "the change is published")
    wait_same(relay, leader)
    assert leader.publishing.published.fenced == 0
    assert (relay.received.breaks, relay.received.mismatches) == (0, 0)


def test_a_stream_with_messages_too_small_for_anything_is_named(small: Node, leader: Leading) -> None:
    make(small, right(max_msg_size=2_000))
    leader.publishing.start()
    wait_until(lambda: "max_msg_size" in leader.troubles.now.get("broker", ""), "it says what to raise")
