"""The publisher beside others that write into its stream, and with streams that are not as it needs them.

It runs in this process, with a store that the test fills, and a real NATS server.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from nats.js.api import RetentionPolicy

from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.state.origin import Origin
from server.broker import publishing
from server.broker.connection import Broker
from server.broker.page_bytes import decode, encode
from server.broker.publishing import Publishing
from server.broker.seal import Seal
from server.broker.stream import ANEW, ANOTHER, CORRECT
from server.config.settings import RelaySettings
from server.observe.fanout import Listener
from tests.cdc.relay.test_page_reader import everything, leading
from tests.e2e.test_relay_faults import STREAM, by_hand
from tests.plugins.server import wait_until
from tests.server.broker.test_checks import make, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nats.js import JetStreamContext

    from tests.plugins.nats import Node

PAGE = f"{STREAM}.page"


class Troubles(Listener):
    """Remembers what is wrong now."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}

    def trouble(self, key: str, message: str | None) -> None:
        self.now.pop(key, None)
        if message is not None:
            self.now[key] = message


class Rig:
    """A leader that publishes; it has confirmed just now that the slot is its own."""

    made = Publishing

    def __init__(self, node: Node, *ids: str) -> None:
        self.leader = leading("1" * 32, *ids)
        self.store = self.leader.store
        self.store.loaded()
        self.pair, self.freshness, self.troubles = Pair(), Freshness(), Troubles()
        self.pair.lead()
        self.confirm()
        settings = RelaySettings.load({"broker_url": node.url})
        self.publishing = self.made(
            Broker(settings, "test"),
            Seal(None),
            STREAM,
            1,
            self.store,
            lambda: Origin("1" * 32, 0),
            self.freshness,
            self.pair,
            self.troubles,
        )

    def confirm(self) -> None:
        """Hear of the database that the slot is ours."""
        self.freshness.reported(1, time.monotonic())

    def published(self) -> bool:
        """Tell whether everything is in the stream."""
        self.confirm()
        return self.publishing.published.revision == self.store.head

    def change(self, payload: bytes) -> None:
        """Change an endpoint, and wait until that is in the stream."""
        self.leader.change([("app_0", payload)])
        wait_until(self.published, "the change is published")


@pytest.fixture
def rig(nats: Node, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A rig whose publisher is started by the test."""
    rig: Rig = getattr(request, "param", Rig)(nats, "app_0", "app_1")
    yield rig
    rig.publishing.stop()
    rig.leader.publisher.close()


def foreign() -> bytes:
    """Return a page of another leader."""
    return encode(everything(leading("2" * 32, "app_0"))[0])


def store(node: Node, content: bytes) -> int:
    """Store something among the pages; returns its sequence."""

    async def publish(js: JetStreamContext) -> int:
        return (await js.publish(PAGE, content)).seq

    return int(by_hand(node, publish))


def pages(node: Node) -> int:
    """Count the pages of the stream."""
    return int(by_hand(node, lambda js: js.stream_info(STREAM, subjects_filter=PAGE)).state.subjects[PAGE])


class Overtaken(Publishing):
    """Another leader stores its last page after this one has looked where the stream ends."""

    overtake: Callable[[], Any] | None = None

    async def _go_on(self, *arguments: Any) -> None:
        await super()._go_on(*arguments)
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            await self._loop.run_in_executor(None, overtake)  # type: ignore[union-attr]


class Racing(Rig):
    """A rig with such a publisher."""

    made = Overtaken


@pytest.mark.parametrize("rig", [Racing], indirect=True)
def test_a_last_page_of_the_leader_before_does_not_keep_the_new_one_out(
    rig: Rig, nats: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_SURE_SECONDS", 0.5)
    assert isinstance(rig.publishing, Overtaken)
    rig.publishing.overtake = lambda: store(nats, foreign())
    rig.publishing.start()
    wait_until(rig.published, "the new leader publishes")
    assert rig.publishing.published.fenced == 0
    rig.change(b"b")


@pytest.mark.parametrize("rig", [Racing], indirect=True)
def test_a_leader_that_lost_the_slot_before_its_first_page_stays_out(
    rig: Rig, nats: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_SURE_SECONDS", 0.5)
    assert isinstance(rig.publishing, Overtaken)

    def overtake() -> None:
        store(nats, foreign())
        rig.pair.lose()

    rig.publishing.overtake = overtake
    rig.publishing.start()
    wait_until(lambda: rig.publishing._claimed == -1 and not rig.pair.leading, "it gives the stream up")
    time.sleep(1.0)  # longer than it waits before it looks again
    assert pages(nats) == 1
    assert rig.publishing.published.pages == 0


def test_a_leader_that_has_published_stands_back_for_a_newer_one(rig: Rig, nats: Node) -> None:
    rig.publishing.start()
    wait_until(rig.published, "everything is published")
    store(nats, foreign())
    rig.leader.change([("app_0", b"b")])
    wait_until(lambda: rig.publishing.published.fenced == 1, "it is refused")
    assert "another server" in rig.troubles.now["broker_fenced"]
    before = pages(nats)
    rig.leader.change([("app_0", b"c")])
    rig.confirm()
    time.sleep(1.0)
    assert pages(nats) == before
    rig.pair.lose()
    rig.pair.lead()
    wait_until(rig.published, "the slot has become its own again")
    assert "broker_fenced" not in rig.troubles.now


def test_what_is_no_page_keeps_nobody_out(rig: Rig, nats: Node) -> None:
    rig.publishing.start()
    wait_until(rig.published, "everything is published")
    for content in (b"hello", b"", b'{"order": 1}'):
        store(nats, content)
    rig.change(b"b")
    assert rig.publishing.published.fenced == 0
    last = by_hand(nats, lambda js: js.get_last_msg(STREAM, PAGE))
    assert decode(last.data).line == rig.publishing._publisher.line
    assert rig.publishing.published.generations == 1, "nothing was lost"


def test_a_stream_too_small_for_the_map_is_not_filled_over_and_over(rig: Rig, nats: Node) -> None:
    rig.leader.change([(f"app_{number}", bytes(500)) for number in range(400)])
    make(nats, right(max_bytes=100_000))
    rig.publishing.start()
    wait_until(lambda: "max_bytes" in rig.troubles.now.get("broker", ""), "it says what is missing")
    wait_until(lambda: rig.publishing.published.restarts >= 3, "it has tried again")
    assert rig.publishing.published.pages < 10, "the map has four pages, of which one fits, and that twice"
    make_room = right(max_bytes=10_000_000)
    by_hand(nats, lambda js: js.update_stream(make_room))
    wait_until(rig.published, "there is room now")
    assert "broker" not in rig.troubles.now


class Crowded(Publishing):
    """Changes come while the stream is filled again, after it was emptied."""

    emptied = 0

    async def _make_room(self, *arguments: Any) -> None:
        await super()._make_room(*arguments)
        self.emptied += 1


class CrowdedRig(Rig):
    """A rig with such a publisher."""

    made = Crowded


@pytest.mark.parametrize("rig", [CrowdedRig], indirect=True)
def test_a_stream_that_changes_have_filled_meanwhile_is_emptied_again(
    rig: Rig, nats: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the map, but not for the map and all that changes while it is published."""
    publisher, left = cast("Crowded", rig.publishing), [0]

    def change() -> None:
        left[0] += 1
        rig.leader.change([(f"app_{number}", bytes([left[0]]) * 500) for number in range(100)])

    def reach(point: str) -> None:
        if point == "page_stored" and publisher.emptied == 1 and left[0] < 20:
            change()

    monkeypatch.setattr(publishing, "reach", reach)
    change()
    make(nats, right(max_bytes=120_000))
    publisher.start()
    wait_until(rig.published, "the map is published")
    while not publisher.emptied:
        change()
        wait_until(lambda: rig.published() or publisher.emptied > 0, "the change is published")
    wait_until(lambda: publisher.published.restarts > 0, "the changes have taken the room")
    wait_until(lambda: rig.published() and publisher.emptied == 2, "it is emptied again")
    assert "broker" not in rig.troubles.now


def test_a_stream_or_a_broker_with_small_messages_gets_small_pages(rig: Rig, nats: Node) -> None:
    rig.leader.change([(f"app_{number}", bytes(500)) for number in range(100)])
    make(nats, right(max_msg_size=8_000))
    rig.publishing.start()
    wait_until(rig.published, "everything is published")
    assert rig.publishing.published.pages > 10


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"subjects": [PAGE]}, CORRECT),
        ({"subjects": [f"{STREAM}.>"]}, CORRECT),
        ({"subjects": ["orders.>"]}, ANOTHER),
        ({"allow_rollup_hdrs": False}, CORRECT),
        ({"retention": RetentionPolicy.INTEREST}, ANEW),
        ({"no_ack": True}, CORRECT),
    ],
)
def test_a_stream_that_cannot_be_published_to_is_named(
    rig: Rig, nats: Node, other: dict[str, Any], named: str
) -> None:
    make(nats, right(**other))
    rig.publishing.start()
    wait_until(lambda: named in rig.troubles.now.get("broker", ""), "it says what to type")
    assert rig.publishing.published.pages == 0
    by_hand(nats, lambda js: js.delete_stream(STREAM))
    make(nats, right())
    wait_until(rig.published, "what it said was typed")


def test_subjects_that_are_another_stream_s_are_named(rig: Rig, nats: Node) -> None:
    make(nats, right(name="everything", subjects=[f"{STREAM}.*"]))
    rig.publishing.start()
    wait_until(lambda: "overlap" in rig.troubles.now.get("broker", ""), "it says so")
