"""A relay's thread that reads the stream. The relay continues to serve its map even if the broker fails.

After each loss of the connection, the thread creates a new consumer, which starts after the last received
message. The broker removes a consumer without a reader. If the consumer's sequence numbers show that a
message was lost between broker and relay, the thread connects again. `PageReader` decides whether the relay's
map lacks pages.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import nats.errors
import structlog
from google.protobuf.message import DecodeError
from nats.js import errors as js_errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from cdc.failpoints import reach
from server.broker.connection import BrokerError
from server.broker.page_bytes import PageAssembly, decode_head
from server.broker.reconnecting import Reconnecting
from server.broker.seal import LOOK_SECONDS
from server.broker.stream import PageStream

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from cdc.errors import PadsCdcError
    from cdc.observer import Observer
    from cdc.relay.intake import Intake
    from server.broker.connection import Broker
    from server.broker.seal import Seal

_log = structlog.get_logger("pads_cdc")

REASON: Final = "broker"
_HEARTBEAT_SECONDS: Final = 1.0
"""Interval of an idle consumer's heartbeats, in seconds."""
_SILENCE_SECONDS: Final = 3.0
"""A consumer that has been silent for longer than this number of seconds is created again, since it does not
recover by itself.
"""
_FORGET_SECONDS: Final = 30.0
"""Seconds for which the broker keeps a consumer without a reader."""
_ASK_SECONDS: Final = 10.0
"""Interval between two requests for a generation, in seconds."""


class Reading(Reconnecting):
    """The thread that reads the stream."""

    def __init__(self, broker: Broker, seal: Seal, stream: str, intake: Intake, observer: Observer) -> None:
        super().__init__("broker-reader")
        self._broker = broker
        self._seal = seal
        self._stream_name = stream
        self._intake = intake
        self._observer = observer
        self._newest: tuple[int, bytes] | None = None
        """Sequence number and stored content of the newest received message that is a page or a piece of one.
        """
        self._assembly = PageAssembly()
        self._unproved = False
        """Whether the first page on this connection must be `_newest` again. If it is another page, the
        stream has been replaced.
        """
        self._asked_at = -_ASK_SECONDS

    def _lost(self, error: PadsCdcError) -> None:
        self._intake.lost(REASON, str(error))

    async def _session(self) -> None:
        await self._seal.look(self._observer)  # the last connection may have ended because a key was missing
        async with self._broker.connected() as client:
            stream = PageStream(client, self._stream_name)
            info = await stream.info()
            if info is None:
                raise BrokerError(
                    f"the broker has no stream {self._stream_name}: start a server with BROKER_URL, or"
                    " correct BROKER_STREAM"
                )
            if info.config.mirror is None and stream.page not in (info.config.subjects or ()):
                raise BrokerError(
                    f"the stream {stream.name} has no subject {stream.page}: it is not the one of a server"
                    " with BROKER_URL; correct BROKER_STREAM"
                )
            if self._newest is not None and info.state.last_seq < self._newest[0]:
                self._newest = None  # this is an older copy of the stream, or a new stream
            self._unproved = self._newest is not None
            inbox = client.new_inbox()
            incoming = await client.subscribe(inbox)
            await self._consume(client, stream, inbox)
            self._intake.connected()
            await self._read(client, stream, incoming)

    async def _consume(self, client: Client, stream: PageStream, inbox: str) -> None:
        config = ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE if self._newest else DeliverPolicy.ALL,
            opt_start_seq=self._newest[0] if self._newest else None,
            filter_subjects=[stream.page, stream.head],
            ack_policy=AckPolicy.NONE,
            flow_control=True,  # bounds the number of messages in flight
            idle_heartbeat=_HEARTBEAT_SECONDS,
            inactive_threshold=_FORGET_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            await client.jetstream().add_consumer(stream.name, config)
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            text = getattr(error, "description", None) or str(error) or type(error).__name__
            raise BrokerError(f"the broker does not let us read the stream {stream.name}: {text}") from error

    async def _read(self, client: Client, stream: PageStream, incoming: Subscription) -> None:
        expected, caught_up = 1, False
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                await self._seal.look(self._observer)
            try:
                message = await incoming.next_msg(_SILENCE_SECONDS)
            except (nats.errors.Error, TimeoutError) as error:
                raise BrokerError(f"the broker was silent for {_SILENCE_SECONDS:.0f} s") from error
            if not message.reply.startswith("$JS.ACK."):
                await self._answer(client, message)
                caught_up = caught_up or not message.data
            else:
                sequence = message.metadata.sequence
                if sequence.consumer != expected:
                    raise BrokerError("messages of the stream were lost on the way")
                expected += 1
                self._take(stream, message, sequence.stream, live=caught_up)
                caught_up = caught_up or not message.metadata.num_pending
            self._intake.look()
            if caught_up:
                await self._ask_for_generation(client, stream)

    async def _answer(self, client: Client, message: Msg) -> None:
        """Answer the broker's flow control message, because all messages before it have been applied."""
        headers = message.headers or {}
        stalled = headers.get("Nats-Consumer-Stalled")
        if stalled and self._broker.refuses("$JS.FC."):
            raise BrokerError(
                "the broker waits for an answer that we may not give; permit $JS.FC.> to our user"
            )
        for subject in (message.reply, stalled):
            if subject:
                await client.publish(subject)

    def _take(self, stream: PageStream, message: Msg, sequence: int, *, live: bool) -> None:
        if self._unproved and not self._is_proof(stream, message, sequence):
            return
        try:
            content = self._seal.open(message.subject, message.data)
            if message.subject == stream.head:
                reach("head_received")
                self._intake.head(decode_head(content), live=live)
                return
            page = self._assembly.take(content)
        except DecodeError:
            # No leader has made this message. If it has taken the place of a page, the next page's number
            # shows the gap.
            _log.warning("stray message", stream=stream.name, sequence=sequence)
            return
        reach("page_received")
        self._intake.count(len(message.data), whole=page is not None)
        self._newest = sequence, message.data
        if page is None:
            return
        self._intake.page(page)
        reach("page_applied")

    def _is_proof(self, stream: PageStream, message: Msg, sequence: int) -> bool:
        """Check the first page after a lost connection, which must be the newest page that we had received.

        A broker that was restored from an older state may have other messages with the same sequence numbers.
        Always returns False: neither that page nor the messages before it need to be applied.

        Raises:
            BrokerError: another page has arrived in its place.

        """
        if message.subject == stream.page:
            self._unproved = False
            if (sequence, message.data) != self._newest:
                self._newest = None
                raise BrokerError("the stream was purged or replaced: it is read from its beginning")
        return False

    async def _ask_for_generation(self, client: Client, stream: PageStream) -> None:
        now = time.monotonic()
        if self._intake.wanting and now - self._asked_at > _ASK_SECONDS:
            self._asked_at = now
            await client.publish(stream.wanted)
