"""Wakes the tasks of the event loop that wait for a publication. The store's thread triggers this."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from server.rpc.calls import SHUTTING_DOWN, STANDING_BY, wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.pair.pair import Pair
    from cdc.store.store import Store
    from server.subscribers import Subscribers

_UNSURE_SECONDS: Final = 2.0
"""Maximum wait until it is certain that the peer has not taken over, in seconds. After it the map is served
anyway.
"""
_LOOK_SECONDS: Final = 0.05


class Hub:
    """Events about the store, for one event loop.

    Take `changed` *before* you read the store, and wait for it if there was nothing to read. If you read
    first, you would miss a publication between the read and the wait.
    """

    def __init__(self, store: Store, subscribers: Subscribers, pair: Pair, sure: Callable[[], bool]) -> None:
        """``sure`` returns whether it is certain that the peer has not taken over."""
        self._store = store
        self._subscribers = subscribers
        self._pair = pair
        self._sure = sure
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self.changed = asyncio.Event()
        """Set at the next publication, and then replaced by a new event."""
        self._attached: set[asyncio.Event] = set()
        self.stopping = False
        """Whether the server is shutting down, so that streams must end."""
        self._unsubscribe: Callable[[], None] = store.subscribe(self._publish)

    @property
    def ending(self) -> str | None:
        """The reason why streams must end and calls must be refused, or None."""
        if self.stopping:
            return SHUTTING_DOWN
        return STANDING_BY if self._pair.standing_by else None

    async def ready(self, within: float) -> bool:
        """Wait until the store has a complete map. Return False after ``within`` seconds, or if `ending` is
        set.
        """
        unsure_until = self._loop.time() + _UNSURE_SECONDS
        while self.ending is None and not self._sure() and self._loop.time() < unsure_until:
            await wait(self.changed, _LOOK_SECONDS)
        try:
            async with asyncio.timeout(within):
                while self.ending is None:
                    changed = self.changed
                    if self._store.ready:
                        return True
                    await changed.wait()
        except TimeoutError:
            pass
        return False

    def attach(self) -> asyncio.Event:
        """Return a new event that every publication sets. The caller may also set it for other reasons."""
        event = asyncio.Event()
        self._attached.add(event)
        return event

    def detach(self, event: asyncio.Event) -> None:
        """Stop setting an event that `attach` returned."""
        self._attached.discard(event)

    def stop(self) -> None:
        """Record that the server is shutting down, and set all events for the last time."""
        self._unsubscribe()
        self.stopping = True
        self._wake()

    def _publish(self) -> None:
        # The writer calls this for every batch. While a wake-up is pending, no other one is needed.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._scheduled = False
        self._subscribers.published(self._store.head)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        for event in self._attached:
            event.set()
