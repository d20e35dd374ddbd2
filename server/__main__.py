"""Composition: every part is made here and nowhere else, and handed to those that need it.

The event loop (gRPC, HTTP) has the main thread; the reader of the slot, the follower and the probe have one
each. They share the store, which has a lock, and `Freshness`.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from cdc import preflight
from cdc.backlog import Backlog
from cdc.catalog import Catalog
from cdc.connection import Address
from cdc.database import Database
from cdc.follower import Follower
from cdc.freshness import Freshness
from cdc.ledger import Ledger
from cdc.lineage import Lineage
from cdc.mapping import load, server_queries
from cdc.parents import Parents
from cdc.probe import Probe
from cdc.requery import Requery
from cdc.slot import SlotReader
from cdc.store import Store
from server import grpc_server, http, logs
from server.encode import encode
from server.endpoint_feed import EndpointFeed
from server.fanout import FanOut
from server.health import Health
from server.hub import Hub
from server.journal import Journal
from server.metrics import Metrics
from server.recent import Recent
from server.status_page import StatusPage
from server.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.observer import Observer
    from server.settings import Settings

_log = structlog.get_logger("pads_cdc")

_JOIN_SECONDS = 2.0
"""What each thread gets to end in; the whole server has 5 s."""


def serve(settings: Settings) -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit code.

    Raises:
        PadsCdcError: it cannot start, or cannot go on.

    """
    logs.configure(settings)
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    store, freshness, subscribers = Store(), Freshness(), Subscribers()
    metrics = Metrics(
        version=version("pads-cdc"),
        store=store,
        freshness=freshness,
        subscribers=subscribers,
        audit_interval=settings.audit_interval,
    )
    health = Health(store, freshness, settings.max_staleness)
    recent = Recent()
    page = StatusPage(
        version=version("pads-cdc"),
        slot_name=settings.slot_name,
        store=store,
        freshness=freshness,
        subscribers=subscribers,
        health=health,
        recent=recent,
    )
    hub = Hub(store, subscribers)
    pipeline = await asyncio.to_thread(
        Pipeline,
        settings,
        store,
        freshness,
        FanOut(metrics, health, recent, Journal()),
        lambda: loop.call_soon_threadsafe(stop.set),
    )
    async with AsyncExitStack() as running:
        feed = EndpointFeed(settings, store, pipeline.lineage, freshness, hub, subscribers, metrics)
        grpc = await grpc_server.start(settings, store, hub, subscribers, metrics, health, feed)
        running.push_async_callback(grpc.stop)
        pages = await http.start(
            host=settings.metrics_host,
            port=settings.metrics_port,
            registry=metrics.registry,
            health=health,
            page=page,
        )
        running.push_async_callback(pages.stop)
        pipeline.start()
        running.push_async_callback(asyncio.to_thread, pipeline.stop)
        _log.info(
            "serving", grpc=grpc.port, http=pages.port, mapping=settings.mapping, slot=settings.slot_name
        )
        await stop.wait()
        _log.info("stopping")
        hub.stop()
    if pipeline.follower.failure is not None:
        raise pipeline.follower.failure
    return 0


class Pipeline:
    """The three threads and what they share."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        freshness: Freshness,
        observer: Observer,
        on_failure: Callable[[], object],
    ) -> None:
        """Check that the database is fit for us, and open the state file; nothing runs yet.

        Raises:
            PadsCdcError: with one line that says what to do.

        """
        mapping, queries = load(settings.mapping), server_queries()
        source = Address(settings.postgres_connection_string.read, "POSTGRES_CONNECTION_STRING")
        query = Address(settings.query_connection_string.read, "QUERY_CONNECTION_STRING")
        database = Database(query, mapping, settings.db_schema, encode)
        preflight.check(source, database, queries, settings.db_schema)
        backlog = Backlog()
        catalog = Catalog(queries["Relations"], mapping, settings.db_schema)
        self._reader = SlotReader(
            source, settings.slot_name, queries, catalog.assemble, backlog, freshness, observer
        )
        self._probe = Probe(source, settings.slot_name, queries, self._reader, freshness, observer)
        parents = Parents()
        ledger = Ledger(settings.state_file, database.evidence().system, observer)
        self.lineage = Lineage(ledger)
        requery = Requery(
            database=database,
            catalog=catalog,
            parents=parents,
            store=store,
            ledger=ledger,
            lineage=self.lineage,
            observer=observer,
        )
        self.follower = Follower(
            backlog=backlog,
            reader=self._reader,
            requery=requery,
            database=database,
            catalog=catalog,
            parents=parents,
            store=store,
            ledger=ledger,
            lineage=self.lineage,
            freshness=freshness,
            observer=observer,
            max_retained_wal=settings.max_retained_wal,
            audit_interval=settings.audit_interval,
            on_failure=on_failure,
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in (self.follower, self._reader, self._probe):
            thread.start()

    def stop(self) -> None:
        """End the threads: the follower first, so that the reader confirms all that was done. Blocks for
        seconds at most.

        A thread that a frozen server holds is left behind; it is a daemon.
        """
        self.follower.stop()
        self.follower.join(_JOIN_SECONDS)
        self._probe.stop()
        self._reader.stop()
        self._reader.join(_JOIN_SECONDS)


if __name__ == "__main__":
    from server.cli import main

    main()
