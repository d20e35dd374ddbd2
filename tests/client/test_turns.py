"""A feed that an event loop applies itself, in turns: nobody waits for long, and it ends at any moment."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from pads_cdc_client import Change, EndpointFeed, FeedStoppedError
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.steps import in_turns

from tests.plugins.server import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pads_cdc_client.steps import Steps

    from tests.plugins.feed import Scripted

STEP = 0.0002
"""Seconds of one step, at least."""


def work(steps: int, taken: list[str] | None = None, seconds: float = STEP) -> Steps[int]:
    for _ in range(steps):
        time.sleep(seconds)
        if taken is not None:
            taken.append("step")
        yield
    return steps


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (each round of the loop counts)
        await asyncio.sleep(0)


def test_others_have_turns_between_a_few_steps() -> None:
    order: list[str] = []

    async def run() -> None:
        taking = asyncio.create_task(in_turns(work(100, order), lambda: True))
        while not taking.done():
            order.append("other")
            await asyncio.sleep(0)
        assert await taking == 100

    asyncio.run(run())
    turns = [turn for turn in "".join(each[0] for each in order).split("o") if turn]
    assert sum(map(len, turns)) == 100
    assert max(map(len, turns)) <= 1 + 0.001 / STEP, "a turn is a millisecond"


def test_others_have_as_much_time_as_a_turn_took() -> None:
    """A step that had to wait for a core takes several times as long as the shortest pause."""

    async def run() -> float:
        began = time.perf_counter()
        await in_turns(work(10, seconds=0.005), lambda: False)
        return time.perf_counter() - began

    assert asyncio.run(run()) > 2 * 0.9 * 10 * 0.005


def test_a_cancelled_task_takes_no_further_step() -> None:
    taken: list[str] = []

    async def run() -> None:
        task = asyncio.create_task(in_turns(work(1_000_000, taken), lambda: False))
        await until(lambda: bool(taken))
        task.cancel()
        before = len(taken)
        await asyncio.sleep(0.02)
        assert task.cancelled()
        assert len(taken) == before

    asyncio.run(run())


def endpoints(count: int) -> list[GatewayEndpoint]:
    return [GatewayEndpoint(endpoint_id=f"app_{number}") for number in range(count)]


def test_a_ripple_is_applied_between_what_the_loop_has_to_do(scripted: Scripted) -> None:
    count = 30_000

    async def run() -> None:
        threads: set[threading.Thread] = set()
        sizes: set[int] = set()

        def note(_: Change) -> None:
            threads.add(threading.current_thread())

        target, loop = f"127.0.0.1:{scripted.port}", asyncio.get_running_loop()
        async with EndpointFeed(target, client_id="test", on_change=note, loop=loop) as feed:
            scripted.opened()
            scripted.send(end=True)
            async with asyncio.timeout(DEADLINE):
                await feed.until_ready()
                scripted.send(*endpoints(count))
                while feed.proofs < 2:
                    sizes.add(len(feed))
                    await asyncio.sleep(0)
            assert len(feed) == count
        assert threads == {threading.current_thread()}, "callbacks are the loop's as well"
        assert len(sizes) > count / 2_000, "no more than some hundred endpoints at once"

    asyncio.run(run())


@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
def test_closing_amid_a_ripple_ends_at_once(scripted: Scripted, where: str) -> None:
    async def run() -> None:
        target, loop = f"127.0.0.1:{scripted.port}", asyncio.get_running_loop()
        feed = EndpointFeed(target, client_id="test", loop=loop).start()
        scripted.opened()
        scripted.send(*endpoints(100_000), end=True)
        async with asyncio.timeout(DEADLINE):
            await until(lambda: len(feed) > 0)
            if where == "in the loop":
                feed.close()
            else:
                await asyncio.to_thread(feed.close)
            size = len(feed)
            await asyncio.sleep(0.02)
        assert 0 < size < 100_000
        assert len(feed) == size, "the map stays as it was left"

    asyncio.run(run())


def test_a_callback_that_closes_the_feed_is_the_last_one(scripted: Scripted) -> None:
    async def run() -> None:
        target, loop = f"127.0.0.1:{scripted.port}", asyncio.get_running_loop()
        changes: list[Change] = []

        def close(change: Change) -> None:
            changes.append(change)
            feed.close()

        feed = EndpointFeed(target, client_id="test", on_change=close, loop=loop).start()
        scripted.opened()
        scripted.send(*endpoints(10), proof=False)
        async with asyncio.timeout(DEADLINE):
            await until(lambda: bool(changes))
            with pytest.raises(FeedStoppedError, match="closed"):
                await feed.until_ready()
        assert len(changes) == 1

    asyncio.run(run())


def test_a_loop_that_ends_ends_the_feed(scripted: Scripted) -> None:
    async def run() -> EndpointFeed:
        target, loop = f"127.0.0.1:{scripted.port}", asyncio.get_running_loop()
        feed = EndpointFeed(target, client_id="test", loop=loop).start()
        scripted.opened()
        scripted.send(*endpoints(10), proof=False)
        async with asyncio.timeout(DEADLINE):
            await until(lambda: len(feed) > 0)
        return feed

    feed = asyncio.run(run())
    with pytest.raises(FeedStoppedError):
        feed.wait_ready(DEADLINE)
    feed.close()


def test_a_feed_that_was_closed_before_it_began_never_connects(scripted: Scripted) -> None:
    async def run() -> None:
        target, loop = f"127.0.0.1:{scripted.port}", asyncio.get_running_loop()
        feed = EndpointFeed(target, client_id="test", loop=loop)
        feed.close()
        feed.start()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(FeedStoppedError, match="closed"):
                await feed.until_ready()
        assert feed.attempts == 0

    asyncio.run(run())
