"""Creates or corrects the stream with an administrator's credentials, so that servers do not need this
privilege.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from server.broker.connection import Broker
from server.broker.stream import PageStream

if TYPE_CHECKING:
    from server.config.settings import Serving


def make_stream(settings: Serving, *, dry_run: bool) -> None:
    """Create the stream if it does not exist, or correct its configuration, and print what is done. Blocks
    while the broker answers.

    Raises:
        BrokerError: the broker cannot be reached or refuses the change, or the stream is another program's.

    """
    asyncio.run(_make(settings, dry_run=dry_run))


async def _make(settings: Serving, *, dry_run: bool) -> None:
    async with Broker(settings, "pads-cdc setup").connected() as client:
        stream = PageStream(client, settings.broker_stream)
        info = await stream.info()
        if info is not None:
            changes = stream.corrections(info.config, settings.broker_replicas)
            if not changes:
                click.echo(f"-- the stream {stream.name} is there")
                return
            click.echo(f"-- the stream {stream.name} gets another {', '.join(changes)}")
            if not dry_run:
                await stream.correct(info.config, changes)
        else:
            subjects = ", ".join(stream.config().subjects or ())
            click.echo(f"-- the stream {stream.name} is created, with the subjects {subjects}")
            if not dry_run:
                await stream.make(settings.broker_replicas)
