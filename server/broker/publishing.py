"""The leader's thread that publishes the store's map to a broker. No other thread waits for it.

While the broker is unreachable, the store continues without it. Later the publisher continues from the end of
the stream.

Only one leader may write. Each page is sent with the sequence number that the newest page of the stream must
have. So if a leader was frozen or cut off and another leader has written, the broker refuses the first
leader's pages. After a refusal the publisher looks at the end of the stream:

- If our own page is there, its acknowledgement was lost, and we continue after it.
- If the stream is gone, or shorter than what was acknowledged to us, the broker has lost pages or was
  restored, and we continue from its current end.
- If a message is there that is not a page, we continue after it, and relays ignore it.
- If another server's page is there, we stop publishing until we get the slot again. There is one exception.
  If we have not stored a page since we got the slot, that page may be the last one of the previous leader. So
  we look again after 3 s: if we had lost the slot, we would have detected it by then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from google.protobuf.message import DecodeError

from cdc.failpoints import reach
from cdc.relay.leader import HEAD_SECONDS
from cdc.relay.publisher import Publisher
from cdc.units import Revision
from server.broker.connection import BrokerError
from server.broker.page_bytes import decode, encode_head, pieces
from server.broker.reconnecting import Reconnecting
from server.broker.seal import LOOK_SECONDS, SealError
from server.broker.stream import (
    LEAST_MESSAGE,
    FencedError,
    FullError,
    PageStream,
    unfit,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.js.api import StreamConfig

    from cdc.errors import PadsCdcError
    from cdc.freshness import Freshness
    from cdc.observer import Observer
    from cdc.pair.pair import Pair
    from cdc.relay.pages import Page
    from cdc.state.origin import Origin
    from cdc.store.store import Store
    from server.broker.connection import Broker
    from server.broker.seal import Seal

_log = structlog.get_logger("pads_cdc")

TROUBLE: Final = "broker"
FENCED: Final = "broker_fenced"
_LOOK_SECONDS: Final = 0.2
"""Interval, in seconds, at which the publisher checks whether there is a map and whether this server leads.
"""
_CHECK_SECONDS: Final = 5.0
"""Interval, in seconds, at which the publisher checks that the stream still ends with our last page. It may
have been purged.
"""
_WANTED_SECONDS: Final = 10.0
"""Minimum interval between two generations that relays have asked for, in seconds."""
_MESSAGE_BYTES: Final = 64 * 1024
"""Maximum size of a message, with its headers and its seal. A larger page is sent in pieces."""
_AROUND_PAGE: Final = 1024
"""Maximum size of a message without its page, in bytes: the subject, the headers and the seal."""
_AROUND_ENTRIES: Final = 3 * 1024
"""Bytes that are reserved for a page's fields other than its entries, mainly the checkpoint. A page that
needs more is sent in pieces.
"""
_SURE_SECONDS: Final = 3.0
"""Seconds without an answer from the database after which it may have given our slot to another server."""


@dataclass(slots=True)
class PublishingCounts:
    """Counts of published pages, for the metrics. Only the publisher's thread writes them."""

    connected: bool = False
    pages: int = 0
    bytes: int = 0
    generations: int = 0
    fenced: int = 0
    restarts: int = 0
    """Number of connections to the broker that were lost or could not be opened."""
    revision: Revision = Revision(0)
    """Every change up to this revision is in the stream."""


@dataclass(frozen=True)
class _Emptied:
    """The moment when the stream was emptied."""

    restarts: int
    """Number of connections that had ended before the stream was emptied."""
    generations: int
    """Number of generations that had been completed before the stream was emptied."""
    head: Revision
    """The newest revision of the map when the stream was emptied."""


class Publishing(Reconnecting):
    """The publisher's thread. It need not finish before `stop`, since the next leader publishes the rest."""

    def __init__(
        self,
        broker: Broker,
        seal: Seal,
        stream: str,
        replicas: int,
        store: Store,
        origin: Callable[[], Origin],
        freshness: Freshness,
        pair: Pair,
        observer: Observer,
    ) -> None:
        super().__init__("publisher")
        self._broker = broker
        self._seal = seal
        self._stream_name = stream
        self._replicas = replicas
        self._store = store
        self._freshness = freshness
        self._pair = pair
        self._observer = observer
        self._publisher = Publisher(store, origin, freshness)
        self._room = _MESSAGE_BYTES
        """Number of bytes of a page that fit into one message."""
        self.published = PublishingCounts()
        self._sequence = 0
        """Sequence number of the newest page that is known to be stored; 0 if there is none."""
        self._head_sequence = 0
        self._generation = 0
        """Sequence number of the page that opened the newest generation."""
        self._claimed = -1
        """The value of `Pair.led` when we last took over the stream; -1 if we have to take it over."""
        self._stored = False
        """Whether we have stored a page since we took over the stream. If so, a page of another server is
        from a newer leader.
        """
        self._fenced = False
        self._emptied: _Emptied | None = None
        """When the stream was last emptied to make room; None if it never was."""
        self._wanted = False
        self._wanted_at = -_WANTED_SECONDS

    def _interrupt(self) -> None:
        self._wake.set()  # a page that is being stored is finished

    async def _run(self) -> None:
        unsubscribe = self._store.subscribe(lambda: self._soon(self._wake.set))
        try:
            await super()._run()
        finally:
            unsubscribe()
            self._publisher.close()

    def _lost(self, error: PadsCdcError) -> None:
        self.published.connected = False
        self.published.restarts += 1
        self._observer.trouble(TROUBLE, f"nothing is published to relays: {error}")

    async def _session(self) -> None:
        async with self._broker.connected() as client:
            stream = PageStream(client, self._stream_name)
            info = await stream.info()
            if info is None:
                info = await stream.make(self._replicas)
            for text, remedy in unfit(info.config, stream.config()):
                raise BrokerError(f"{text}; {remedy}")
            self._room = _room(client, info.config)
            self._publisher.limit(self._room - _AROUND_ENTRIES)
            await client.subscribe(stream.wanted, cb=self._hear_wanted)
            self.published.connected = True
            while not self._stopping:
                if not await self._ours(stream):
                    await self._rest(_LOOK_SECONDS)
                    continue
                self._observer.trouble(TROUBLE, None)
                try:
                    await self._publish(stream)
                except FencedError:
                    continue  # the next check finds out why
                except FullError as full:
                    await self._make_room(stream, full)

    async def _hear_wanted(self, _: object) -> None:
        self._wanted = True
        self._wake.set()

    async def _ours(self, stream: PageStream) -> bool:
        """Return whether there is a map and this server leads. If so, finds the stream's end."""
        pair = self._pair
        if not self._store.ready or pair.standing_by:
            return False
        if self._claimed >= 0 and not self._fenced:
            return await self._find_end(stream)
        # We take over another server's stream only if the database has just confirmed that we hold the slot.
        if not pair.leading or pair.led == self._claimed or self._freshness.silence() > _SURE_SECONDS:
            return False
        self._claimed, self._fenced, self._stored = pair.led, False, False
        self._observer.trouble(FENCED, None)
        await self._go_on(stream, await self._end(stream))
        return True

    async def _end(self, stream: PageStream) -> Page | None:
        """Return the stream's last page, or None if we cannot read one. Also notes its sequence number."""
        stored, head = await stream.last(stream.page), await stream.last(stream.head)
        self._sequence = 0 if stored is None else stored.sequence
        self._head_sequence = 0 if head is None else head.sequence
        if stored is None:
            return None
        try:
            return decode(self._seal.open(stream.page, stored.content))
        except (SealError, DecodeError):
            return None

    async def _find_end(self, stream: PageStream) -> bool:
        """Find the end of the stream after a refusal or a reconnection. Return whether we may write there."""
        before, number, line = self._sequence, self._publisher.number, self._publisher.line
        last = await self._end(stream)
        if self._sequence > before:
            alone, last = await self._stored_since(stream, before)
            if not alone and self._stored:
                self._stand_back()
                return False
            if not alone:
                self._claimed = -1
                await self._rest(_SURE_SECONDS)
                return False
            await self._go_on(stream, last)
        elif last is not None and last.line == line:
            if (self._sequence, last.number) != (before, number):
                await self._go_on(stream, last)
        elif self._sequence < before or (self._stored and last is not None):
            # The stream was purged or deleted, or it is an older copy, so its content is out of date.
            if not self._pair.sure(self._freshness.silence()):
                return False  # another leader may have written since then
            await self._go_on(stream, last)
        return True

    async def _stored_since(self, stream: PageStream, sequence: int) -> tuple[bool, Page | None]:
        """Look at the pages from a sequence number on. Return whether no other server has stored one after
        it, and the newest page that we have stored, if any.
        """
        ours, before = None, sequence
        while (stored := await stream.next_page(sequence)) is not None:
            sequence = stored.sequence + 1
            try:
                page = decode(self._seal.open(stream.page, stored.content))
            except SealError:
                page = None
            except DecodeError:
                _log.warning("stray message", stream=self._stream_name, sequence=stored.sequence)
                continue
            if page is not None and page.line == self._publisher.line:
                ours = page
            elif stored.sequence > before:
                return False, None
        return True, ours

    def _stand_back(self) -> None:
        self._fenced = True
        self.published.fenced += 1
        self._observer.trouble(
            FENCED,
            f"another server publishes to the stream {self._stream_name}: we stop until we get the slot"
            " again; give each database and mapping a BROKER_STREAM of its own",
        )
        _log.warning("fenced", stream=self._stream_name)

    async def _go_on(self, stream: PageStream, last: Page | None) -> None:
        if await stream.info() is None:
            await stream.make(self._replicas)
            last, self._sequence, self._head_sequence = None, 0, 0
        resumed = self._publisher.resume(last)
        self._generation = 0
        _log.info("publishing", stream=self._stream_name, resumed=resumed)

    async def _publish(self, stream: PageStream) -> None:
        """Publish changes until another server leads, the broker refuses a page, or the connection ends."""
        head_at = check_at = look_at = 0.0
        while not self._stopping and self._store.ready and not self._pair.standing_by:
            self._wake.clear()
            now = time.monotonic()
            if now >= head_at:
                head_at = now + HEAD_SECONDS
                await self._publish_head(stream)
            if now >= look_at:
                look_at = now + LOOK_SECONDS
                await self._seal.look(self._observer)
            if now >= check_at:
                check_at = now + _CHECK_SECONDS
                await self._check_end(stream)
            self._begin_generation_if_due(now)
            pages = self._publisher.take()
            for page in pages:
                await self._publish_page(stream, page)
            if not pages and not self._publisher.more:
                self.published.revision = self._store.head
                await self._sleep(min(head_at - time.monotonic(), _CHECK_SECONDS))

    def _begin_generation_if_due(self, now: float) -> None:
        wanted = self._wanted and now - self._wanted_at >= _WANTED_SECONDS
        if wanted:
            self._wanted, self._wanted_at = False, now
        if self._publisher.outgrown or (wanted and not self._publisher.generating):
            self._publisher.begin_generation()

    async def _publish_head(self, stream: PageStream) -> None:
        content = self._seal.seal(stream.head, encode_head(self._publisher.head()))
        self._head_sequence = await stream.publish(stream.head, content, self._head_sequence)
        reach("head_stored")

    async def _publish_page(self, stream: PageStream, page: Page) -> None:
        for piece in pieces(page, self._room):
            content = self._seal.seal(stream.page, piece)
            reach("page_made")
            self._sequence = await stream.publish(stream.page, content, self._sequence)
            self._stored = True
            reach("page_stored")
            self.published.bytes += len(content)
        self.published.pages += 1
        if page.opening:
            self._generation = self._sequence
        if page.checkpoint is not None:
            self.published.revision = page.checkpoint.revision
        if page.complete:
            self.published.generations += 1
            reach("snapshot_complete")
            if self._generation:
                await stream.purge(self._generation)
                reach("snapshot_purged")

    async def _check_end(self, stream: PageStream) -> None:
        """Raise `FencedError` if the stream does not end with our last page."""
        stored = await stream.last(stream.page)
        if self._sequence and (stored is None or stored.sequence != self._sequence):
            raise FencedError("the stream does not end where it was left")

    async def _make_room(self, stream: PageStream, full: FullError) -> None:
        """Empty the stream and publish everything again. Until then, relays keep the maps that they have."""
        published, last = self.published, self._emptied
        now = _Emptied(published.restarts, published.generations, self._store.head)
        # If no snapshot has been completed since the stream was last emptied, either the map does not fit
        # into the empty stream, or changes have taken the room. In the second case we try again, after a
        # pause.
        if (
            last is not None
            and last.generations == now.generations
            and (last.restarts == now.restarts or last.head == now.head)
        ):
            raise full
        self._emptied = now
        self._observer.trouble(TROUBLE, f"everything is published again: {full}")
        await stream.purge(None)
        await self._go_on(stream, None)


def _room(client: Client, config: StreamConfig) -> int:
    """Return the number of bytes of a page that fit into one message.

    Raises:
        BrokerError: the broker or the stream accepts only messages that are too small for us.

    """
    most = client.max_payload
    if config.max_msg_size is not None and config.max_msg_size > 0:
        most = min(most, config.max_msg_size)
    if most < LEAST_MESSAGE:
        raise BrokerError(
            f"the broker takes messages of up to {most} bytes, and we need {LEAST_MESSAGE}; raise its"
            f" max_payload, or the max_msg_size of the stream {config.name}"
        )
    return min(most, _MESSAGE_BYTES) - _AROUND_PAGE
