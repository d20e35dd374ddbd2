"""The pipeline: makes and starts the threads that follow the database, and stops them in the right order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.applier import Applier
from cdc.checks import Site, preflight
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.mapping.parents import Parents
from cdc.pair.mirrored import Mirrored
from cdc.pair.standby_role import StandbyRole
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.postgres.lock_watch import LockWatch
from cdc.postgres.watchdog import QueryWatchdog
from cdc.replication.backlog import Backlog
from cdc.replication.catalog import Catalog
from cdc.replication.own_slot import OwnSlot
from cdc.replication.probe import Probe, ReplayProbe
from cdc.replication.slot import SlotReader
from cdc.replication.standby_snapshot import StandbySnapshotRequest
from cdc.requery.auditor import Auditor
from cdc.requery.requery import Requery
from cdc.state.forgetting import Forgetting, Marks
from cdc.state.ledger import Ledger
from cdc.state.origin import CurrentOrigin
from server.pair.mirror import Mirror
from server.pair.peer import Peer
from server.payload import ENCODING, encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc.freshness import Freshness
    from cdc.observer import Observer
    from cdc.pair.pair import Pair
    from cdc.store.store import Store
    from server.config.settings import Settings

_JOIN_SECONDS = 1.5
"""Seconds that each thread has to end. The whole server has 5 s."""


class Pipeline:
    """The threads and the objects that they share."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        freshness: Freshness,
        observer: Observer,
        pair: Pair,
        on_failure: Callable[[], object],
    ) -> None:
        """Check the database, and open the state file. No thread is started yet.

        Raises:
            PadsCdcError: a check failed. The text is one line that contains the remedy.

        """
        mapping, queries, peer = load(settings.mapping), server_queries(), _peer(settings)
        strings = settings.postgres_connection_string, settings.query_connection_string
        source, query = (Address(each.read, each.setting) for each in strings)
        backlog = Backlog()
        database = Database(query, mapping, settings.db_schema, encoder(mapping.columns), backlog.wake)
        preflight.check(
            lambda: Site(
                source=source,
                database=database,
                queries=queries,
                schema=settings.db_schema,
                slot_name=settings.slot_name,
                plugin=settings.plugin,
                publication_name=settings.publication,
                failover=settings.slot_failover,
            )
        )
        catalog = Catalog(
            queries,
            mapping,
            settings.db_schema,
            slot=settings.slot_name,
            publication=settings.publication,
        )
        slot = OwnSlot(
            source,
            settings.slot_name,
            queries,
            catalog.assemble,
            observer,
            plugin=settings.plugin,
            failover=settings.slot_failover,
            max_retained_wal=settings.max_retained_wal,
        )
        self._reader = SlotReader(
            slot,
            backlog,
            freshness,
            observer,
            lambda: self.applier.read_so_far(),  # noqa: PLW0108 - the applier is made with the reader
        )
        self._probe = Probe(
            source,
            settings.slot_name,
            queries,
            self._reader,
            freshness,
            observer,
            _snapshot_request(settings, queries),
        )
        self.parents = Parents()
        system = database.evidence().system
        ledger = Ledger(settings.state_file, system, observer)
        [(oid,)] = database.query(queries["DatabaseId"])
        self.origin = CurrentOrigin(ledger, ENCODING, mapping.fingerprint(str(oid), settings.db_schema))
        requery = Requery(
            database=database,
            catalog=catalog,
            parents=self.parents,
            store=store,
            ledger=ledger,
            origin=self.origin,
            observer=observer,
        )
        auditor = Auditor(
            requery=requery,
            database=database,
            store=store,
            ledger=ledger,
            observer=observer,
            interval=settings.audit_interval,
        )
        mirrored = Mirrored(store, ledger, self.origin)
        self._mirror: Mirror | None = None
        if peer is not None:
            self._mirror = Mirror(peer, system, pair, mirrored, backlog, observer)
        self.applier = Applier(
            backlog=backlog,
            reader=self._reader,
            requery=requery,
            auditor=auditor,
            database=database,
            catalog=catalog,
            parents=self.parents,
            store=store,
            ledger=ledger,
            origin=self.origin,
            freshness=freshness,
            observer=observer,
            standby_role=StandbyRole(pair, mirrored, requery, store, freshness, observer),
            forgetting=Forgetting(store, ledger, self.origin, Marks(settings.tombstone_retention)),
            max_retained_wal=settings.max_retained_wal,
            on_failure=on_failure,
        )

        elsewhere = settings.query_connection_string is not settings.postgres_connection_string
        self._replay_probe = ReplayProbe(query, queries["WalEnd"], freshness, observer) if elsewhere else None
        self._watchdog = QueryWatchdog(database.connections)
        self._lock_watch = LockWatch(database.connections, queries["Blocked"], observer)
        threads = (
            self.applier,
            self._reader,
            self._probe,
            self._replay_probe,
            self._watchdog,
            self._lock_watch,
        )
        self._threads = [thread for thread in threads if thread is not None]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        if self._mirror is not None:
            self._mirror.start()

    def stop(self) -> None:
        """Stop the threads. The applier is stopped first, so that the reader confirms everything that it has
        done.

        Blocks for at most some seconds. If a thread waits for a frozen database, it is left running; it is a
        daemon.
        """
        if self._mirror is not None:
            self._mirror.stop()
        self.applier.stop()
        self.applier.join(_JOIN_SECONDS)
        self._watchdog.stop()
        self._lock_watch.stop()
        if self._replay_probe is not None:
            self._replay_probe.stop()
        self._reader.stop()
        self._reader.join(_JOIN_SECONDS)
        self._probe.stop()  # it is stopped last, because the reader's last confirmation needs it


def _snapshot_request(settings: Settings, queries: dict[str, str]) -> StandbySnapshotRequest | None:
    given = settings.primary_connection_string
    if given is None:
        return None
    return StandbySnapshotRequest(Address(given.read, given.setting), queries["LogRunning"])


def _peer(settings: Settings) -> Peer | None:
    if settings.peer_address is None:
        return None
    peer = Peer(
        settings.peer_address,
        ca_file=settings.peer_ca_file,
        cert_file=settings.peer_cert_file,
        key_file=settings.peer_key_file,
        token_file=settings.peer_token_file,
    )
    peer.verify()
    return peer
