"""Relays in a storm: a broker that is killed, frozen, emptied and restored, and clients that hop from one to
another.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nats
from pads_cdc_client import EndpointFeed

from tests.history.witness import Versions
from tests.plugins.feed import status
from tests.plugins.nats import Node, free_ports
from tests.plugins.server import Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import ExitStack
    from pathlib import Path
    from random import Random

    from nats.js import JetStreamContext
    from pads_cdc_client.replica import Change

    from tests.history.faults import Fault
    from tests.soak import Storm

STREAM = "pads_cdc"
_HOPPERS = 3


class Hopper(threading.Thread):
    """A client of the feed that goes from server to server with its map and its token."""

    def __init__(self, ports: Callable[[], list[int]], choose: Random) -> None:
        super().__init__(daemon=True)
        self._ports = ports
        self._choose = choose
        self._ending = threading.Event()
        self.hops = self.resets = 0
        self.judge = Versions()
        self.client = self._connect(b"", {})

    def _connect(self, token: bytes, endpoints: dict[str, bytes]) -> EndpointFeed:
        target = f"127.0.0.1:{self._choose.choice(self._ports())}"
        return EndpointFeed(
            target, client_id="hopper", on_change=self._see, endpoints=endpoints, resume_token=token
        ).start()

    def _see(self, change: Change) -> None:
        self.judge(change.endpoint_id, change.after)

    def run(self) -> None:
        while not self._ending.wait(self._choose.uniform(0.2, 3.0)):
            self.hop()

    def hop(self) -> None:
        """Go to another server, or to the same one."""
        old = self.client
        old.close()
        self.resets += old.resets
        self.hops += 1
        self.client = self._connect(old.resume_token, dict(old.endpoints))

    def stop(self) -> None:
        """End it."""
        self._ending.set()
        self.join()
        self.client.close()


class Relays:
    """The broker, the relays behind it, and the clients that hop."""

    def __init__(self, folder: Path, closing: ExitStack, choose: Random) -> None:
        self.node = Node(folder / "nats", "n0", free_ports(1)[0], "").start()
        closing.callback(self.node.kill)
        self.copies: list[Path] = []
        self.choose = choose
        self.servers = [self._relay("0"), self._relay("0")]
        closing.callback(self._end)
        self.hoppers: list[Hopper] = []

    def begin(self, leader: Callable[[], int], closing: ExitStack, choose: Callable[[], Random]) -> None:
        """Let clients hop between the leader and the relays."""
        for _ in range(_HOPPERS):
            hopper = Hopper(lambda: [leader(), *(server.grpc for server in self.servers)], choose())
            self.hoppers.append(hopper)
            closing.callback(hopper.stop)
            hopper.start()

    def _relay(self, port: str) -> Server:
        environment = {
            "BROKER_URL": self.node.url,
            "PORT": port,
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
        }
        return Server(environment, "relay")

    def restart(self, number: int) -> None:
        """Kill a relay and start it again on its port."""
        self.servers[number].kill()
        self.servers[number] = self._relay(str(self.servers[number].grpc))

    def by_hand(self, what: Callable[[JetStreamContext], Awaitable[Any]]) -> None:
        """Do something to the stream, as an operator might."""

        async def run() -> None:
            client = await nats.connect(self.node.url, allow_reconnect=False)
            try:
                await what(client.jetstream())
            finally:
                await client.close()

        asyncio.run(run())

    def compare(self, leader: Server, oracle: dict[str, bytes], deadline: float) -> int:
        """Wait until relays and hoppers hold the mapping query's result; returns how many endpoints that
        were.
        """
        for server in self.servers:

            def same(server: Server = server) -> bool:
                return status(server).digest == status(leader).digest

            wait_until(same, "a relay holds the leader's map", deadline)
            assert server.metric("pads_cdc_relay_digest_mismatches_total") == 0
            assert "Traceback" not in server.output
        for hopper in self.hoppers:

            def equal(hopper: Hopper = hopper) -> bool:
                return dict(hopper.client.endpoints) == oracle

            wait_until(equal, "a client that hops holds the mapping query's result", deadline)
            assert not hopper.judge.faults, hopper.judge.faults[:10]
        return len(oracle) * (len(self.servers) + len(self.hoppers))

    def _end(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                server.kill()


def broker_killed(storm: Storm) -> None:
    _of(storm).node.kill()
    time.sleep(storm.choose.uniform(0.0, 2.0))
    _of(storm).node.start()


def broker_frozen(storm: Storm) -> None:
    node = _of(storm).node
    node.signal(signal.SIGSTOP)
    time.sleep(storm.choose.uniform(0.0, 20.0) if storm.choose.random() < 0.1 else 2.0)
    node.signal(signal.SIGCONT)


def broker_came_back_older(storm: Storm) -> None:
    relays = _of(storm)
    relays.node.stop()
    if relays.copies and storm.choose.random() < 0.7:
        relays.node.restore(storm.choose.choice(relays.copies))
    else:
        relays.copies.append(relays.node.copy(f"copy-{len(relays.copies)}"))
    relays.node.start()


def stream_purged(storm: Storm) -> None:
    _of(storm).by_hand(lambda js: js.purge_stream(STREAM))


def stream_deleted(storm: Storm) -> None:
    _of(storm).by_hand(lambda js: js.delete_stream(STREAM))


def page_lost(storm: Storm) -> None:
    async def lose(js: JetStreamContext) -> None:
        last = (await js.get_last_msg(STREAM, f"{STREAM}.page")).seq
        assert last is not None
        await js.delete_msg(STREAM, max(1, last - storm.choose.randrange(3)))

    with suppress(nats.js.errors.APIError):  # there is none, or that one is gone already
        _of(storm).by_hand(lose)


def relay_killed(storm: Storm) -> None:
    relays = _of(storm)
    relays.restart(storm.choose.randrange(len(relays.servers)))


def relay_frozen(storm: Storm) -> None:
    server = storm.choose.choice(_of(storm).servers)
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(storm.choose.uniform(0.0, 5.0))
    server.process.send_signal(signal.SIGCONT)


def _of(storm: Storm) -> Relays:
    assert storm.relays is not None
    return storm.relays


RELAY_FAULTS: dict[Fault, int] = {
    broker_killed: 3,
    broker_frozen: 3,
    broker_came_back_older: 3,
    stream_purged: 1,
    stream_deleted: 1,
    page_lost: 3,
    relay_killed: 3,
    relay_frozen: 3,
}
