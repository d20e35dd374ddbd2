"""The JetStream stream of a map: its configuration, its newest page, fenced writes, and purging.

Pages have the subject ``<stream>.page``, and heads have ``<stream>.head`` (only the last head is kept).
Relays ask for a generation with messages on ``<stream>.wanted``, which are not stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.js import errors as js_errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from server.broker.connection import BrokerError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.api import StreamInfo

_SECONDS: Final = 5.0
"""Maximum wait for an answer of the broker, in seconds."""
_WRONG_LAST_SEQUENCE: Final = (10070, 10071)
_FULL: Final = (10023, 10047, 10077)
"""JetStream's error codes for insufficient resources, insufficient storage, and more than max_bytes."""
LEAST_MESSAGE: Final = 4 * 1024
"""The smallest message size limit that we accept, in bytes. With a lower limit JetStream does not work well.
"""
PAYLOAD: Final = 64 * 1024
"""The message size limit that a leader needs for its full speed, in bytes. With a lower limit it has to send
more messages.
"""
OLDEST: Final = (2, 12)
"""The oldest supported version of the NATS server."""
CORRECT: Final = "pads-cdc setup, with the same BROKER_URL, corrects it"
"""The remedy if the configuration of our stream is wrong."""
ANOTHER: Final = "give another BROKER_STREAM to leader and relays"
ANEW: Final = f"{ANOTHER}, or remove the stream; then pads-cdc setup makes it"
"""The remedy if the fault of the stream cannot be corrected."""


class FencedError(BrokerError):
    """The stream does not end where we left it."""


class FullError(BrokerError):
    """The stream is full."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of the stream."""

    sequence: int
    content: bytes = field(repr=False)


class PageStream:
    """One stream on one connection."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=_SECONDS)
        self.name = name
        self.page = f"{name}.page"
        self.head = f"{name}.head"
        self.wanted = f"{name}.wanted"

    def config(self, replicas: int = 1) -> StreamConfig:
        """Return the configuration that the stream should have."""
        return StreamConfig(
            name=self.name,
            description="The map of a pads-cdc server, for its relays",
            subjects=[self.page, self.head],
            retention=RetentionPolicy.LIMITS,
            # A full stream must not drop its oldest pages, which relays need. It refuses new ones instead,
            # and the leader makes room.
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            num_replicas=replicas,
            allow_rollup_hdrs=True,
            allow_direct=True,
        )

    async def info(self) -> StreamInfo | None:
        """Return the stream's current state, or None if it does not exist.

        Raises:
            BrokerError: the broker does not answer, or has no JetStream.

        """
        try:
            return await self._jetstream.stream_info(self.name)
        except js_errors.NotFoundError:
            return None
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, "ask for the stream") from error

    async def make(self, replicas: int = 1) -> StreamInfo:
        """Create the stream, and return its state.

        Raises:
            BrokerError: the broker refuses.

        """
        try:
            return await self._jetstream.add_stream(self.config(replicas))
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, f"make the stream {self.name}") from error

    def corrections(self, present: StreamConfig, replicas: int) -> dict[str, Any]:
        """Return the new values of the fields that have to change in an existing stream's configuration, by
        name.

        Raises:
            BrokerError: the stream is another program's.

        """
        if text := _foreign(present, self.name):
            raise BrokerError(f"{text}; {ANOTHER}")
        wanted, changes = self.config(replicas), dict[str, Any]()
        if set(present.subjects or ()) != set(wanted.subjects or ()):
            changes["subjects"] = wanted.subjects
        if present.discard != wanted.discard:
            changes["discard"] = wanted.discard
        if not present.allow_rollup_hdrs:
            changes["allow_rollup_hdrs"] = True
        if present.no_ack:
            changes["no_ack"] = False
        if bounded(present):
            changes |= {"max_age": 0, "max_msgs": -1, "max_msgs_per_subject": -1}
        if 0 < (present.max_msg_size or -1) < PAYLOAD:
            changes["max_msg_size"] = -1
        if (present.num_replicas or 1) < replicas:
            changes["num_replicas"] = replicas
        return changes

    async def correct(self, present: StreamConfig, changes: dict[str, Any]) -> None:
        """Change the stream's configuration.

        Raises:
            BrokerError: the broker refuses.

        """
        try:
            await self._jetstream.update_stream(present, **changes)
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, f"correct the stream {self.name}") from error

    async def last(self, subject: str) -> Stored | None:
        """Return the newest message of a subject, or None. The NATS server that leads the stream is asked.

        Raises:
            BrokerError: the broker does not answer.

        """
        return await self._get(subject, None)

    async def next_page(self, sequence: int) -> Stored | None:
        """Return the first page that has this sequence number or a greater one; None if there is none.

        Raises:
            BrokerError: the broker does not answer.

        """
        return await self._get(self.page, sequence)

    async def _get(self, subject: str, sequence: int | None) -> Stored | None:
        try:
            found = await self._jetstream.get_msg(self.name, sequence, subject, next=sequence is not None)
        except js_errors.NotFoundError:
            return None
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, "read the stream's last page") from error
        return Stored(found.seq or 0, found.data or b"")

    async def publish(self, subject: str, content: bytes, expected: int) -> int:
        """Store a message if the newest message of its subject has the sequence number ``expected``, which is
        0 if there must be none.

        Returns the sequence number of the stored message. A head replaces the previous head.

        Raises:
            FencedError: the newest message has another sequence number.
            FullError: the stream has no room.
            BrokerError: any other failure; the message may or may not be stored.

        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if subject == self.head:
            headers["Nats-Rollup"] = "sub"
        try:
            answer = await self._client.request(subject, content, timeout=_SECONDS, headers=headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, "store a page") from error
        said: dict[str, Any] = json.loads(answer.data)
        if "error" not in said:
            if said["stream"] != self.name:
                raise BrokerError(
                    f"the subject {subject} is one of the stream {said['stream']}; take it out of its"
                    f" subjects, or give another BROKER_STREAM than {self.name}"
                )
            return int(said["seq"])
        code, text = said["error"].get("err_code"), said["error"].get("description", "")
        if code in _WRONG_LAST_SEQUENCE:
            raise FencedError(f"the stream {self.name} does not end where it was left: {text}")
        if code in _FULL:
            raise FullError(
                f"the stream {self.name} is full ({text}); raise its max_bytes, or the broker's store"
            )
        raise BrokerError(f"the broker does not store a page: {text}")

    async def purge(self, before: int | None) -> None:
        """Remove the pages before a sequence number, or all pages if it is None.

        Raises:
            BrokerError: the broker refuses.

        """
        try:
            await self._jetstream.purge_stream(self.name, seq=before, subject=self.page)
        except (js_errors.Error, nats.errors.Error, TimeoutError) as error:
            raise _broker_error(error, f"purge the stream {self.name}") from error


def unfit(config: StreamConfig, wanted: StreamConfig) -> list[tuple[str, str]]:
    """Return the reasons why a leader cannot publish to a stream, each with its remedy."""
    name = wanted.name
    found = []
    if text := _foreign(config, name):
        found.append((text, ANOTHER))
    elif set(config.subjects or ()) != set(wanted.subjects or ()):
        found.append(
            (f"the stream {name} has other subjects: {', '.join(config.subjects or ()) or 'none'}", CORRECT)
        )
    if config.deny_purge or config.sealed:  # for ever, and then JetStream allows no roll-ups either
        found.append((f"the stream {name} does not let us purge the pages before a snapshot", ANEW))
    elif not config.allow_rollup_hdrs:
        found.append((f"the stream {name} does not let a head take the place of another", CORRECT))
    if config.retention not in (None, RetentionPolicy.LIMITS):
        found.append((f"the stream {name} removes a page once it has been read", ANEW))
    if config.no_ack:
        found.append((f"the stream {name} acknowledges nothing", CORRECT))
    return found


def _foreign(present: StreamConfig, name: str | None) -> str | None:
    """Return an error text if a stream belongs to another program; None if it may be ours."""
    subjects = present.subjects or ()
    if all(subject.startswith(f"{name}.") for subject in subjects):
        return None
    return f"the stream {name} is another program's: its subjects are {', '.join(subjects)}"


def bounded(config: StreamConfig) -> bool:
    """Return whether a stream removes pages because of their age or number."""
    return (config.max_age or 0) > 0 or (config.max_msgs or -1) > 0 or config.max_msgs_per_subject > 0


def _broker_error(error: Exception, what: str) -> BrokerError:
    if isinstance(error, js_errors.ServiceUnavailableError | js_errors.NoStreamResponseError):
        return BrokerError(
            f"cannot {what}: the broker has no JetStream for us; turn it on there, and for our account"
        )
    if isinstance(error, nats.errors.NoRespondersError):
        return BrokerError(f"cannot {what}: no answer; does the stream exist, and does it have a leader?")
    if isinstance(error, nats.errors.TimeoutError | TimeoutError):
        return BrokerError(f"cannot {what}: no answer within {_SECONDS:.0f} s, or no right to ask")
    text = getattr(error, "description", None) or str(error) or type(error).__name__
    return BrokerError(f"cannot {what}: {' '.join(text.split()).removeprefix('nats: ')}")
