"""From the store's thread to the event loop: one wake-up for everybody who waits for a publication."""

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
"""How long a call waits for that at most: with the database away it stays unknown, and the map is served."""
_LOOK_SECONDS: Final = 0.05


class Hub:
    """Belongs to one event loop. Take `changed` *before* looking at the store, and wait for it if there was
    nothing.

    Looking first would miss what is published between the look and the wait.
    """

    def __init__(self, store: Store, subscribers: Subscribers, pair: Pair, sure: Callable[[], bool]) -> None:
        """``sure`` tells whether our peer cannot have taken over unnoticed."""
        self._store = store
        self._subscribers = subscribers
        self._pair = pair
        self._sure = sure
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self.changed = asyncio.Event()
        """Set at the next publication; another one takes its place then."""
        self._attached: set[asyncio.Event] = set()
        self.stopping = False
        """The server is going down: streams are to end."""
        self._unsubscribe: Callable[[], None] = store.subscribe(self._publish)

    @property
    def ending(self) -> str | None:
        """Why streams are to end and nobody is to be served; None while there is no reason."""
        if self.stopping:
            return SHUTTING_DOWN
        return STANDING_BY if self._pair.standing_by else None

    async def ready(self, within: float) -> bool:
        """Wait until the store holds a complete map; False if not ``within`` so many seconds, or `ending`."""
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
        """Return an event of one's own, set at every publication: for who waits for other things as well."""
        event = asyncio.Event()
        self._attached.add(event)
        return event

    def detach(self, event: asyncio.Event) -> None:
        """End `attach`."""
        self._attached.discard(event)

    def stop(self) -> None:
        """Wake everybody for the last time."""
        self._unsubscribe()
        self.stopping = True
        self._wake()

    def _publish(self) -> None:
        # Called by the writer for every batch: while one wake-up is on its way another would find nothing
        # more.
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
