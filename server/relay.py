"""``pads-cdc relay``: serves a leader's map as a server does, but without a database and without a state
file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cdc.pair.pair import Pair
from cdc.relay.intake import Intake
from cdc.relay.leader import LeaderFreshness
from cdc.relay.page_reader import PageReader
from cdc.state.forgetting import Marks
from server.broker.connection import Broker
from server.broker.gauges import ReceivedGauges
from server.broker.reading import Reading
from server.broker.seal import Seal
from server.front import Front, prepare
from server.pair.following import Following
from server.pair.peer import Peer
from server.rpc.calls import unavailable
from server.rpc.endpoint_feed import FeedService

if TYPE_CHECKING:
    from server.config.settings import RelaySettings
    from server.observe.log_writer import LogWriter
    from server.rpc.calls import Context

_NO_LEADER = "this is a relay: a mirror has to follow the server that reads the slot"


def relay(settings: RelaySettings) -> int:
    """Run the relay until SIGTERM or SIGINT, and return the exit code.

    Raises:
        PadsCdcError: the relay cannot start, or cannot continue.

    """
    writer = prepare(settings)
    return asyncio.run(_relay(settings, writer))


async def _relay(settings: RelaySettings, writer: LogWriter) -> int:
    freshness = LeaderFreshness()
    source = settings.leader_address or settings.broker_stream
    front = Front(settings, writer, freshness, Pair(), source=source, audit_interval=None)
    reader = PageReader(front.store, Marks(settings.tombstone_retention))
    intake = Intake(front.store, reader, freshness, front.observer)
    following = _following(settings, reader, intake, front)
    front.metrics.registry.register(ReceivedGauges(intake.received, freshness))
    feed = FeedService(
        settings,
        front.store,
        reader.origin,
        freshness,
        front.hub,
        front.subscribers,
        front.metrics,
        _mirror,
        lambda: freshness.reached_at,
    )
    await front.serve(feed, following.start, following.stop, follows=source)
    return 0


def _following(
    settings: RelaySettings, reader: PageReader, intake: Intake, front: Front
) -> Reading | Following:
    """Make the thread that follows the leader.

    Raises:
        ConfigurationError: a file that a setting names cannot be read.

    """
    if settings.leader_address is not None:
        leader = Peer(
            settings.leader_address,
            ca_file=settings.leader_ca_file,
            cert_file=settings.leader_cert_file,
            key_file=settings.leader_key_file,
            token_file=settings.leader_token_file,
            setting="LEADER",
        )
        leader.verify()
        return Following(leader, reader, intake)
    broker, seal = Broker(settings, "pads-cdc relay"), Seal(settings.broker_seal_file)
    broker.verify()
    return Reading(broker, seal, settings.broker_stream, intake, front.observer)


async def _mirror(_: object, context: Context) -> None:
    await unavailable(context, _NO_LEADER)
