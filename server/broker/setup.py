"""Creates the stream with an administrator's credentials, so that servers need no permission to create it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from server.broker.connection import Broker
from server.broker.stream import PageStream

if TYPE_CHECKING:
    from server.config.settings import Serving


def make_stream(settings: Serving, *, dry_run: bool) -> None:
    """Create the stream if it does not exist, and print that. Blocks while the broker answers.

    Raises:
        BrokerError: the broker cannot be reached, or refuses.

    """
    asyncio.run(_make(settings, dry_run=dry_run))


async def _make(settings: Serving, *, dry_run: bool) -> None:
    async with Broker(settings, "pads-cdc setup").connected() as client:
        stream = PageStream(client, settings.broker_stream)
        if await stream.info() is not None:
            click.echo(f"-- the stream {stream.name} is there")
        else:
            config = stream.config(settings.broker_replicas)
            click.echo(
                f"nats stream add {stream.name} --subjects={','.join(config.subjects or ())} --storage=file"
                f" --discard=new --replicas={config.num_replicas} --allow-rollup --allow-direct --defaults"
            )
            if not dry_run:
                await stream.make(settings.broker_replicas)
