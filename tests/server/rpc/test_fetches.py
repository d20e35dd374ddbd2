"""Answers to fetches are as large as the map: only so many are under way, whatever their clients do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from server.rpc import fetches
from server.rpc.fetches import Fetches
from tests.plugins.server import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Call:
    """A call whose end a test decides."""

    def __init__(self) -> None:
        self._ended: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._ended.append(callback)

    def end(self) -> None:
        for callback in self._ended:
            callback(self)


async def enter(answers: Fetches, calls: list[Any]) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(answers.admit(call)) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_turns_come_in_order_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetches, "_ROOM", 600)

    async def main() -> None:
        answers = Fetches()
        answers.answered(100)  # three of them, with gRPC's copies
        calls: list[Any] = [Call() for _ in range(8)]
        tasks = await enter(answers, calls)
        assert [task.done() for task in tasks] == [True] * 3 + [False] * 5
        tasks[3].cancel()
        calls[1].end()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True] * 5 + [False] * 3
        assert tasks[3].cancelled()
        answers.answered(1_000)  # now two are too many, and yet allowed
        calls[0].end()
        await asyncio.sleep(0)
        assert not tasks[5].done()
        calls[2].end()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in tasks[5:]] == [True, False, False]
        for one in (4, 5):
            calls[one].end()
        await asyncio.gather(*tasks[6:])
        calls[6].end()
        calls[7].end()
        await enter(answers, [Call(), Call()])
        assert answers._under_way == 2

    asyncio.run(main())


def test_a_turn_that_comes_as_its_client_goes_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetches, "_LEAST", 1)
    monkeypatch.setattr(fetches, "_ROOM", 0)

    async def main() -> None:
        answers, first = Fetches(), Call()
        calls: list[Any] = [first, Call(), Call()]
        tasks = await enter(answers, calls)
        first.end()
        tasks[1].cancel()
        await asyncio.wait_for(tasks[2], DEADLINE)
        assert tasks[1].cancelled()
        assert answers._under_way == 1

    asyncio.run(main())
