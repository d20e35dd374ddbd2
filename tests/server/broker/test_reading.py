"""A relay's reader beside others that write into the stream, and with a broker that comes back as another.

It runs in this process, with a real NATS server and pages that the test stores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdc.relay.intake import Intake
from cdc.relay.leader import LeaderFreshness
from cdc.relay.page_reader import PageReader
from cdc.store.store import Store
from server.broker.connection import Broker
from server.broker.page_bytes import encode
from server.broker.reading import Reading
from server.broker.seal import Seal
from server.config.settings import RelaySettings
from server.observe.fanout import Listener
from tests.cdc.relay.test_page_reader import everything, leading
from tests.cdc.relay.test_pages_model import contents
from tests.e2e.test_relay_faults import STREAM, by_hand
from tests.plugins.server import wait_until
from tests.server.broker.test_checks import by_hand_as, make, right
from tests.server.broker.test_publishing import PAGE
from tests.support.certificates import write_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nats.js import JetStreamContext

    from tests.plugins.nats import Node, NodeFactory


class Losses(Listener):
    """Remembers why the broker was lost."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def reconnecting(self, _: str, message: str) -> None:
        self.messages.append(message)


class Rig:
    """A relay's reader, its map, and a leader whose pages the test stores."""

    def __init__(self, node: Node, **settings: str) -> None:
        self.node = node
        self.leader = leading("1" * 32, "app_0", "app_1")
        self.store, self.freshness = Store(), LeaderFreshness()
        self.losses = Losses()
        reader = PageReader(self.store)
        intake = Intake(self.store, reader, self.freshness, self.losses)
        self.received = intake.received
        broker = Broker(RelaySettings.load({"broker_url": node.url, **settings}), "test")
        self.reading = Reading(broker, Seal(None), STREAM, intake, self.losses)

    def publish(self, *before: bytes) -> None:
        """Store some bytes, and then all pages that the leader has."""
        contents = [*before, *map(encode, everything(self.leader))]

        async def store(js: JetStreamContext) -> None:
            for content in contents:
                await js.publish(PAGE, content)

        by_hand(self.node, store)

    def equal(self) -> bool:
        """Tell whether the relay holds the leader's map."""
        return contents(self.store) == contents(self.leader.store) and self.store.consistent

    def wait_equal(self) -> None:
        """Return once the relay holds the leader's map."""
        wait_until(self.equal, "the leader's map")


@pytest.fixture
def rig_of() -> Iterator[Callable[[Rig], Rig]]:
    """Starts rigs, which end with the test."""
    rigs: list[Rig] = []

    def start(rig: Rig) -> Rig:
        rigs.append(rig)
        rig.reading.start()
        return rig

    yield start
    for rig in rigs:
        rig.reading.stop()
        rig.leader.publisher.close()


def test_what_is_no_page_is_passed_over(nats: Node, rig_of: Callable[[Rig], Rig]) -> None:
    make(nats, right())
    rig = rig_of(Rig(nats))
    rig.publish(b"hello", b"", b'{"order": 1}')
    rig.wait_equal()
    rig.leader.change([("app_0", b"b")])
    rig.publish(b"hello")
    rig.wait_equal()
    assert (rig.received.breaks, rig.losses.messages) == (0, [])


def test_messages_of_other_subjects_are_nothing_to_it(nats: Node, rig_of: Callable[[Rig], Rig]) -> None:
    make(nats, right(subjects=[PAGE, f"{STREAM}.head", f"{STREAM}.other"]))
    rig = rig_of(Rig(nats))
    by_hand(nats, lambda js: js.publish(f"{STREAM}.other", encode(everything(leading("2" * 32))[0])))
    rig.publish()
    rig.wait_equal()


def test_a_stream_of_somebody_else_is_named(nats: Node, rig_of: Callable[[Rig], Rig]) -> None:
    make(nats, right(subjects=["orders.*"]))
    rig = rig_of(Rig(nats))
    wait_until(lambda: any("BROKER_STREAM" in one for one in rig.losses.messages), "it says so")


def test_other_pages_in_the_places_of_those_that_were_read_are_noticed(
    nats: Node, rig_of: Callable[[Rig], Rig]
) -> None:
    """The broker came back older, and has got as many messages since as it had then."""
    make(nats, right())
    rig = rig_of(Rig(nats))
    rig.publish()
    rig.wait_equal()
    nats.stop()
    older = nats.copy("older")
    nats.start()
    for payload in (b"b", b"c"):
        rig.leader.change([("app_0", payload)])
        rig.publish()
    rig.wait_equal()
    nats.stop()
    nats.restore(older)
    nats.start()
    rig.leader.publisher.resume(None)
    rig.leader.change([("app_1", b"d")])
    rig.publish()
    rig.wait_equal()
    assert rig.received.mismatches == 0


def test_a_page_that_was_read_before_a_loss_is_not_taken_again(
    nats: Node, rig_of: Callable[[Rig], Rig]
) -> None:
    make(nats, right())
    rig = rig_of(Rig(nats))
    rig.publish()
    rig.wait_equal()
    nats.stop()
    nats.start()
    wait_until(lambda: rig.received.connected, "it is there again")
    pages = rig.received.pages
    rig.leader.change([("app_0", b"b")])
    rig.publish()
    rig.wait_equal()
    assert (rig.received.pages, rig.received.breaks) == (pages + 1, 0)


def test_a_relay_that_may_not_answer_flow_control_says_so(
    nats_node: NodeFactory, rig_of: Callable[[Rig], Rig]
) -> None:
    """It would stand still otherwise, with a broker that is there and says nothing."""
    node = nats_node(
        "authorization { users: [ { user: all, password: x }, { user: few, password: x, permissions: {"
        ' publish: ["pads_cdc.wanted", "$JS.API.>"], subscribe: ["_INBOX.>"] } } ] }\n'
    ).start()
    by_hand_as(node, "all", lambda js: js.add_stream(right()))

    async def fill(js: JetStreamContext) -> None:
        for page in everything(leading("1" * 32, "app_0"))[:1] * 200:
            await js.publish(PAGE, encode(page) + bytes(60_000))

    by_hand_as(node, "all", fill)
    few = str(write_secret(node.folder / "few", "few:x"))
    rig = rig_of(Rig(node, broker_credentials_file=few))
    wait_until(lambda: any("$JS.FC.>" in one for one in rig.losses.messages), "it says what it lacks")
