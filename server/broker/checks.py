"""Checks whether a broker is suitable for relays, and suggests what to type if it is not.

The checks connect with the leader's settings, and change nothing.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

import nats.errors
from nats.js import errors as js_errors
from nats.js.api import DiscardPolicy, StorageType

from cdc.checks.finding import Finding, fail, good, warn
from server.broker.connection import Broker, BrokerError
from server.broker.stream import (
    ANEW,
    CORRECT,
    LEAST_MESSAGE,
    OLDEST,
    PAYLOAD,
    FencedError,
    PageStream,
    bounded,
    unfit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.client import Client
    from nats.js.api import StreamConfig, StreamInfo

    from server.config.settings import Serving

_SYSTEM_SECONDS: Final = 1.0
_IMPOSSIBLE: Final = (1 << 63) - 1
"""A sequence number that no stream has reached. The broker refuses to store a message that expects it."""


def examine(settings: Serving) -> list[tuple[str, Finding]]:
    """Run all checks; returns each finding with the name of its check. Blocks while the broker answers."""
    return asyncio.run(_examine(settings))


async def _examine(settings: Serving) -> list[tuple[str, Finding]]:
    broker = Broker(settings, "pads-cdc check")
    found: list[tuple[str, Finding]] = []
    try:
        async with broker.connected() as client:
            found.append(
                ("broker", good(f"connected to {client.connected_url and client.connected_url.netloc}"))
            )
            async for one in _ask(client, settings):
                found.append(one)  # noqa: PERF401 (findings before an error are kept)
    except BrokerError as error:
        text, _, remedy = str(error).partition("; ")
        found.append(("broker", fail(text, remedy)))
    return found


async def _ask(client: Client, settings: Serving) -> AsyncIterator[tuple[str, Finding]]:
    yield "broker_version", _version(client)
    yield (
        "broker_payload",
        _size("the broker", client.max_payload, "set max_payload: 1MB in the broker's configuration"),
    )
    stream = PageStream(client, settings.broker_stream)
    info = await stream.info()
    if info is None:
        yield (
            "broker_stream",
            warn(
                f"there is no stream {stream.name} yet: the first server with BROKER_URL creates it, if its"
                " user may do so",
                "pads-cdc setup, with the same BROKER_URL, creates it beforehand",
            ),
        )
    else:
        for finding in _stream(info, stream.config(settings.broker_replicas)):
            yield "broker_stream", finding
        yield "broker_rights", await _rights(stream)
    yield "broker_sync_interval", await _sync_interval(client)


def _version(client: Client) -> Finding:
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return fail(
            f"the broker is nats-server {version.major}.{version.minor}", f"upgrade it to {oldest} or later"
        )
    return good(f"nats-server {version.major}.{version.minor}.{version.patch}")


def _size(who: str, most: int, remedy: str) -> Finding:
    if most < LEAST_MESSAGE:
        return fail(f"{who} takes messages of up to {most} bytes: we need {LEAST_MESSAGE}", remedy)
    if most < PAYLOAD:
        return warn(f"{who} takes messages of up to {most} bytes: relays get changes more slowly", remedy)
    return good(f"messages may have {most} bytes")


def _stream(info: StreamInfo, wanted: StreamConfig) -> list[Finding]:
    config, name = info.config, wanted.name
    found = [fail(text, remedy) for text, remedy in unfit(config, wanted)]
    if config.discard != DiscardPolicy.NEW:
        found.append(
            fail(
                f"the stream {name} drops its oldest pages when it is full, and relays cannot start then",
                CORRECT,
            )
        )
    if bounded(config):
        found.append(
            fail(
                f"the stream {name} forgets pages by age or number, and relays cannot start then",
                CORRECT,
            )
        )
    if 0 < (config.max_msg_size or -1) < PAYLOAD:
        found.append(_size(f"the stream {name}", config.max_msg_size or 0, CORRECT))
    if config.storage != StorageType.FILE:
        found.append(
            warn(
                f"the stream {name} is in the broker's memory: after its restart relays cannot start until"
                " the leader has published again",
                ANEW,
            )
        )
    if (config.num_replicas or 1) < (wanted.num_replicas or 1):
        found.append(
            warn(
                f"the stream {name} has {config.num_replicas} copies, and BROKER_REPLICAS is"
                f" {wanted.num_replicas}",
                CORRECT,
            )
        )
    return found or [good(f"the stream {name}: {info.state.messages} messages, {info.state.bytes} bytes")]


async def _rights(stream: PageStream) -> Finding:
    try:
        await stream.publish(stream.page, b"", _IMPOSSIBLE)
    except FencedError:
        return good(f"we may publish to {stream.page}")
    except BrokerError:
        return fail(
            f"we may not publish to {stream.page} (a relay need not)",
            f"permit our user to publish {stream.name}.> and $JS.API.>, and to subscribe _INBOX.>",
        )
    raise AssertionError("a message with an impossible sequence was stored")


async def _sync_interval(client: Client) -> Finding:
    unknown = good("sync_interval is only shown to the system account: JetStream's default is 2 minutes")
    try:
        answer = await client.request("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout=_SYSTEM_SECONDS)
        said = json.loads(answer.data)
    except (nats.errors.Error, js_errors.Error, TimeoutError, ValueError):
        return unknown
    seconds = said.get("data", {}).get("config", {}).get("sync_interval", 0) / 1e9
    return good(f"sync_interval is {seconds:g} s") if seconds else unknown
