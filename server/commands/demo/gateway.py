"""A subscriber that holds the map, like an authorization server. It runs in its own thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from server.commands.demo.portal import as_bytes
from server.commands.old_client import Disconnected, EndpointUpdate, LegacySubscriber, MapFetched

if TYPE_CHECKING:
    from collections.abc import Callable


class Gateway:
    """Connects to ``target`` while its context lasts, and calls ``on_update`` in its own thread."""

    def __init__(self, target: str, on_update: Callable[[EndpointUpdate], None] = lambda _: None) -> None:
        self._subscriber = LegacySubscriber(target)
        self._on_update = on_update
        self._fetched: int | None = None
        self.updates = 0
        """Number of updates received, including repetitions."""
        self.losses: list[str] = []
        """The reason for each loss of the stream."""
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._subscriber.close()
        self._thread.join()

    @property
    def settled(self) -> bool:
        """Whether it has fetched the map, and the stream has then repeated the whole map."""
        return self._fetched is not None and self.updates >= self._fetched

    @property
    def count(self) -> int:
        """Number of endpoints that it holds."""
        return len(self._subscriber.endpoints)

    def held(self) -> dict[str, bytes]:
        """Return its map, serialized deterministically."""
        return as_bytes(dict(self._subscriber.endpoints))

    def _run(self) -> None:
        for event in self._subscriber.events():
            match event:
                case EndpointUpdate():
                    self.updates += 1
                    self._on_update(event)
                case MapFetched(count):
                    self._fetched = count
                case Disconnected(reason):
                    self.losses.append(reason)
