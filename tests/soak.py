"""The storm: concurrent writers, faults at random, clients of all generations; ``make soak SECONDS=3600``.

Every some seconds the writers pause, and each client has to hold the mapping query's result byte for byte,
odd rows by their rule. Between, no client may see an endpoint go back. One difference ends the storm with
exit code 1 and the server's log beside it.

One of the writers makes odd rows. Before each round of faults there are some seconds without any, in which it
makes odd rows half of the time, and ordinary ones of the same kind for the other half; meanwhile the time
from COMMIT to client is measured for endpoints that have nothing to do with it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from cdc.replication import pgoutput, wal2json
from cdc.replication.own_slot import PLUGINS
from tests.history.faults import (
    FAULTS,
    FREEZING,
    PUBLICATION_FAULTS,
    STANDBY_FAULTS,
    moved_to_a_standby,
    standby_promoted,
)
from tests.history.odd import OddWriter, make_odd_tables
from tests.history.operations import PREPARE, Writer, chooser
from tests.history.pulse import Pulse
from tests.history.relays import RELAY_FAULTS, Relays
from tests.history.waits import MOST, Waits
from tests.history.witness import GENERATIONS, Generation, Versions, Witness
from tests.plugins.decoding import plugin_settings
from tests.plugins.postgres import Database
from tests.plugins.server import Server, expected, wait_equal, wait_until
from tests.support import ROOT
from tests.support.cluster import Cluster, ephemeral_cluster, ephemeral_standby
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from random import Random

    from psycopg2.extensions import cursor

    from tests.history.faults import Fault

WRITERS = 3
"""Beside the one that makes odd rows."""
APPLICATIONS = 80
"""Of each writer."""
SETTLE = 90.0
"""Seconds after the last write within which every client must be equal."""
REPORT = 300
"""Seconds between reports."""
MEASURED = 3.0
"""Seconds without faults before each round, beside odd rows and without them each."""
PACE = 0.05
"""Seconds between a writer's transactions meanwhile: a backlog's length is not what is measured."""


class Storm:
    """Everything that takes part."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        seed: int,
        closing: ExitStack,
        *,
        plugin: str = wal2json.NAME,
        standby: bool = False,
        relays: bool = False,
        encoding: str = "UTF8",
    ) -> None:
        """``plugin`` decodes. ``standby`` puts one between the cluster, where the writers are, and the
        server; ``relays`` puts a broker and two of them behind it. ``encoding`` is the database's.
        """
        self.primary = self.cluster = cluster
        self.choose = chooser(seed)
        self._folder = folder
        self._closing = closing
        self.plugin = plugin
        self._any_bytes = encoding == "SQL_ASCII"
        create = f"CREATE DATABASE portal TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        Database(cluster, "postgres", plugin, "grove", closing).execute(create)
        self.database = self.read = Database(cluster, "portal", plugin, "grove", closing)
        """Where the writers are, and where the server is, which may be a standby of that."""
        self.database.execute((ROOT / "sql/grove/schema.sql").read_text())
        self.database.execute(PREPARE)
        self._null_ids = make_odd_tables(self.database)
        self.database.publish()
        self.proxy = closing.enter_context(Proxy(cluster.port))
        self._primary_file.write_text(self.database.url())
        self.standbys = 0
        self._faults = FAULTS | (PUBLICATION_FAULTS if plugin == pgoutput.NAME else {})
        self._faults |= STANDBY_FAULTS if standby else {}
        if standby:
            self.follow_a_standby()
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.starts = 0
        self._port = 0
        self.relays: Relays | None = None
        if relays:
            self.relays = Relays(folder, closing, self.choose)
            self._faults |= RELAY_FAULTS
        self.start_server()
        closing.callback(self._end_server)
        self.clients: list[Witness] = []
        self._judges: list[Versions] = []
        for generation in GENERATIONS:
            self._join(generation)
        self.pulse = Pulse()
        self._join("fetches_once", judge=self.pulse)
        if self.relays is not None:
            for server in self.relays.servers:  # old clients at a relay must be told of deletes, too
                self._join("fetches_once", server.grpc)
            self.relays.begin(lambda: self._port, closing, lambda: chooser(self.choose.random()))
        self.waits = Waits(lambda: [self.read.url()])
        closing.callback(self.waits.stop)
        self._writing, self._odd, self._measuring = (threading.Event() for _ in range(3))
        self._ending = threading.Event()
        self._turns = threading.Condition()
        self._busy = 0
        self._writers = [
            threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS + 1)
        ]
        for writer in self._writers:
            writer.start()
        closing.callback(self._end_writers)

    def start_server(self) -> None:
        """Start the server on the port that the clients know."""
        url = self.read.url().replace(f":{self.cluster.port}/", f":{self.proxy.port}/")
        environment = {
            "POSTGRES_CONNECTION_STRING": url,
            "PRIMARY_CONNECTION_STRING_FILE": str(self._primary_file),
            "PORT": str(self._port),
            "METRICS_PORT": "0",
            "STATE_FILE": str(self._folder / "state"),
            "LOG_FORMAT": "json",
            "AUDIT_INTERVAL": "2s",
            **plugin_settings(self.plugin),
        }
        if self.relays is not None:
            environment["BROKER_URL"] = self.relays.node.url
        self.server = Server(environment)
        self._port = self.server.grpc
        self.starts += 1

    @property
    def _primary_file(self) -> Path:
        return self._folder / "primary"

    def follow_a_standby(self) -> None:
        """Make a standby of the primary, and have the server find that where it has found its source."""
        self.standbys += 1
        standby = ephemeral_standby(self.primary, slot=f"standby_{self.standbys}")
        self._read_from(self._closing.enter_context(standby))

    def promote(self) -> None:
        """Let the standby that is read be the primary, to which the writers go."""
        self.cluster.promote()
        self.primary, self.database = self.cluster, self.read
        self._read_from(self.cluster)

    def _read_from(self, cluster: Cluster) -> None:
        self.cluster, self.read = cluster, self.database.on(cluster)
        self._primary_file.write_text(self.database.url())
        if self.proxy.target != cluster.port:
            self.proxy.target = cluster.port
            self.proxy.cut()

    def round(self, seconds: float, *, promote: bool = False, measured: float = 0.0) -> None:
        """Let the storm rage for so long, then calm it and compare; with ``promote``, halfway.

        ``measured`` are the seconds of `_measure` before that.
        """
        self._writing.set()
        if measured:
            self._measure(measured)
        self._odd.set()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 or promote:
            time.sleep(self.choose.uniform(0.0, 2.5))
            [fault] = self.choose.choices(list(self._faults), list(self._faults.values()))
            if promote and left < seconds / 2:
                promote = False
                fault = standby_promoted if self.primary is not self.cluster else moved_to_a_standby
            self._look_at_counters()
            self._befall(fault)
        with self._turns:
            self._writing.clear()
            assert self._turns.wait_for(lambda: self._busy == 0, SETTLE), "the writers do not end"
        for client in self.clients:
            wait_equal(client, self.database, deadline=SETTLE)
            self.counts["endpoints compared"] += len(expected(self.database))
        self.counts["odd rows at quiet moments"] += int(self.server.metric("pads_cdc_odd_rows"))
        if self.relays is not None:
            held = self.relays.compare(self.server, expected(self.database), SETTLE)
            self.counts["endpoints compared at relays and hopping clients"] += held
        self.counts["quiet moments"] += 1
        self._look_at_counters()
        for judge in self._judges:
            assert not judge.faults, judge.faults[:10]
        assert "Traceback" not in self.server.output

    def _measure(self, seconds: float) -> None:
        """Measure for so long beside odd rows, and for so long without them, in either order.

        Nobody truncates meanwhile, which takes away what is measured, or writes megabytes: those take their
        time whether they are odd or not.
        """
        self._measuring.set()
        self._odd.clear()
        self._wait_odd_rows(some=False)
        for odd in self.choose.sample((False, True), 2):
            if odd:
                self._odd.set()
            else:
                self._odd.clear()
            self._wait_odd_rows(some=odd)
            self.pulse.measure(self.database, seconds, odd=odd)
        self._measuring.clear()

    def _wait_odd_rows(self, *, some: bool) -> None:
        wait_until(
            lambda: (self.server.metric("pads_cdc_odd_rows") > 0) == some,
            f"{'some' if some else 'no'} odd rows",
            SETTLE,
        )

    def _befall(self, fault: Fault) -> None:
        self.waits.during = lambda: fault.__name__.replace("_", " ")
        if fault in FREEZING:
            self.waits.excused.set()
        try:
            fault(self)
        finally:
            self.waits.excused.clear()
        self.faults[fault.__name__] += 1
        longest, who = self.waits.longest, self.waits.who
        assert longest < MOST, f"somebody waited for us for {longest:.1f} s: {who}"
        assert not self.waits.victims, self.waits.victims[0]

    def _look_at_counters(self) -> None:
        for counter in ("audit_drift", "decode_errors"):
            value = self.server.metric(f"pads_cdc_{counter}_total")
            assert value == 0, f"{counter}: {value:.0f}"

    def _join(self, generation: Generation, port: int = 0, judge: Versions | Pulse | None = None) -> None:
        observe = Versions() if judge is None else judge
        client = Witness(port or self._port, generation, observe)
        self._closing.callback(client.stop)
        self.clients.append(client)
        self._judges.append(observe.judge if isinstance(observe, Pulse) else observe)

    def report(self) -> str:
        """Return the counts, one a line."""
        observations = sum(client.observations for client in self.clients)
        reconnects = sum(len(client.ends) for client in self.clients)
        counts = {
            **self.counts,
            "observations of clients": observations,
            "streams that ended": reconnects,
            "server starts": self.starts,
            **self._hops(),
            "faults": self.faults.total(),
            **{f"  {name.replace('_', ' ')}": number for name, number in sorted(self.faults.items())},
        }
        counted = "\n".join(f"{number:>12,} {name}" for name, number in counts.items())
        waited = f"{self.waits.longest:>12.2f} s is the longest that anybody waited for us ({self.waits.who})"
        return f"{counted}\n{waited}\n{self.pulse.report()}"

    def _hops(self) -> dict[str, int]:
        hoppers = [] if self.relays is None else self.relays.hoppers
        if not hoppers:
            return {}
        return {
            "hops between servers": sum(hopper.hops for hopper in hoppers),
            "resets of clients that hopped": sum(hopper.resets for hopper in hoppers),
        }

    # --- the writers' threads

    def _start_writers(self) -> None:
        for number in range(WRITERS + 1):
            writer = threading.Thread(target=self._write, args=(number,))
            self._writers.append(writer)
            writer.start()

    def _write(self, number: int) -> None:
        choose = chooser(self.choose.random() + number)
        while not self._ending.is_set():
            self._writing.wait(0.1)
            with self._turns:
                if not self._writing.is_set():
                    continue
                self._busy += 1
            try:
                self._write_until_calm(number, choose)
            except psycopg2.Error:
                self.counts["sessions lost"] += 1
                self._ending.wait(0.05)
            finally:
                with self._turns:
                    self._busy -= 1
                    self._turns.notify_all()

    def _write_until_calm(self, number: int, choose: Random) -> None:
        options = "-c statement_timeout=20s -c lock_timeout=3s"
        session = psycopg2.connect(self.database.url(), options=options, client_encoding="UTF8")
        try:
            session.autocommit = True
            with session.cursor() as cursor:
                writer = self._writer(cursor, choose, number)
                cursor.execute(
                    "ROLLBACK PREPARED %s" if self._left_prepared(number) else "SELECT", (f"w{number}",)
                )
                cursor.execute("BEGIN")
                writer.load()
                cursor.execute("COMMIT")
                while self._writing.is_set():
                    writer.gentle = self._measuring.is_set()
                    self._transact(writer, number)
                    if self._measuring.is_set():
                        self._ending.wait(PACE)
        finally:
            session.close()

    def _writer(self, cursor: cursor, choose: Random, number: int) -> Writer:
        if number < WRITERS:
            return Writer(cursor, choose, number=number, writers=WRITERS, applications=APPLICATIONS)
        return OddWriter(
            cursor,
            choose,
            odd=self._odd.is_set,
            bytes_that_are_no_text=self._any_bytes,
            null_ids=self._null_ids,
        )

    def _transact(self, writer: Writer, number: int) -> None:
        cursor, choose, before = writer.cursor, writer.choose, writer.rows
        try:
            cursor.execute("BEGIN")
            if choose.random() < 0.2:
                cursor.execute("SET LOCAL synchronous_commit = local")
            writer.transact(choose.choice((1, 1, 1, 2, 3, 10)))
            end = choose.random()
            if end < 0.05:
                cursor.execute(f"PREPARE TRANSACTION 'w{number}'")
                cursor.execute(f"{'COMMIT' if choose.random() < 0.7 else 'ROLLBACK'} PREPARED 'w{number}'")
            else:
                cursor.execute("ROLLBACK" if end < 0.1 else "COMMIT")
        except (
            psycopg2.IntegrityError,
            psycopg2.errors.DeadlockDetected,
            psycopg2.errors.LockNotAvailable,
        ) as error:
            self.waits.blame(error)
            cursor.execute("ROLLBACK")
            self.counts["transactions refused"] += 1
        else:
            self.counts["transactions"] += 1
            self.counts["row changes"] += writer.rows - before

    def _left_prepared(self, number: int) -> bool:
        return bool(self.database.rows("SELECT FROM pg_prepared_xacts WHERE gid = %s", (f"w{number}",)))

    def _end_writers(self) -> None:
        self._ending.set()
        self._writing.clear()
        for writer in self._writers:
            writer.join()

    def _end_server(self) -> None:
        if self.server.process.poll() is None:
            self.server.kill()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a program's report to whoever has started it


def _aftermath(server: Server) -> str:
    """Return the server's log, and what it says of itself now."""
    parts = [server.output]
    for path in ("/healthz", "/metrics"):
        with suppress(OSError):
            parts.append(server.get(path)[1])
    return "\n".join(parts)


def main() -> int:
    """Run a storm; the exit code says whether there was a difference."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--plugin", choices=PLUGINS, default=wal2json.NAME, help="what decodes")
    parser.add_argument("--standby", action="store_true", help="read a standby (PostgreSQL 17 or 18)")
    parser.add_argument("--promote", action="store_true", help="promote it, and read a new one, in turn")
    parser.add_argument("--encoding", default="SQL_ASCII", help="the database's: SQL_ASCII takes any bytes")
    parser.add_argument("--relays", action="store_true", help="put a broker and two relays behind the server")
    arguments = parser.parse_args()
    logging.getLogger("pads_cdc_client").setLevel(logging.ERROR)  # that a server is away is what is wanted
    _say(f"a storm of {arguments.seconds:.0f} s, seed {arguments.seed}")
    until = time.monotonic() + arguments.seconds
    difference: BaseException | None = None
    with ExitStack() as closing:
        cluster = closing.enter_context(ephemeral_cluster())
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="pads-cdc-soak-")))
        storm = Storm(
            cluster,
            folder,
            arguments.seed,
            closing,
            plugin=arguments.plugin,
            standby=arguments.standby,
            relays=arguments.relays,
            encoding=arguments.encoding,
        )
        try:
            while (left := until - time.monotonic()) > 0:
                seconds = min(storm.choose.uniform(5.0, 20.0), max(1.0, left))
                storm.round(seconds, promote=arguments.promote, measured=MEASURED)
                if left // REPORT != (until - time.monotonic()) // REPORT:
                    _say(f"{left:.0f} s left, no difference so far\n{storm.report()}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the storm has found it
            difference = error
            log = Path(tempfile.gettempdir()) / f"pads-cdc-soak-{arguments.seed}.log"
            log.write_text(_aftermath(storm.server))
            _say(f"DIFFERENCE: {error}\nthe server's log and state: {log}")
        _say(storm.report())
        _say(f"{0 if difference is None else 1:>12} differences")
    return 0 if difference is None else 1


if __name__ == "__main__":
    sys.exit(main())
