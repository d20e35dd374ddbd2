"""Histories that hypothesis makes up: one writer, faults between its transactions, clients of all three
generations.

At every quiet moment each client holds the mapping query's result byte for byte, and all that it ever saw is
a state that the database has had, in the order in which it had them.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.history.operations import PREPARE, Writer, chooser
from tests.history.record import Log, Record
from tests.history.witness import GENERATIONS, Generation, Witness
from tests.plugins.server import Server, expected_by, wait_equal, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from psycopg2.extensions import connection

    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import ServerFactory
    from tests.support.cluster import Cluster

SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES, STEPS = 3, 30


class GeneratedHistory(RuleBasedStateMachine):
    """One database with its server and its clients; the cluster is shared by all examples."""

    def __init__(
        self, cluster: Cluster, database: Database, start: Callable[[int], Server], failures: list[str]
    ) -> None:
        super().__init__()
        self._cluster = cluster
        self._database = database
        self._start = start
        self._failures = failures
        self._record = Record()
        self._closing = ExitStack()
        self._session: connection | None = None
        self._prepared = 0
        self._open: connection | None = None
        database.execute(PREPARE)
        with self._writing().cursor() as cursor:
            Writer(cursor, chooser(0)).load()
        self._look()
        self._server = start(0)
        self._clients: list[tuple[Witness, Log]] = []
        for generation in GENERATIONS:
            self.join(generation)

    # --- what writers do

    @rule(seed=SEEDS, transactions=st.integers(1, 40))
    def burst(self, seed: int, transactions: int) -> None:
        self._burst(chooser(seed), transactions)

    @rule(seed=SEEDS, end=st.sampled_from(("COMMIT", "ROLLBACK")))
    def prepared(self, seed: int, end: str) -> None:
        self._prepared += 1
        gid = f"{self._database.name}_{self._prepared}"
        if self._commit(chooser(seed), end=f"PREPARE TRANSACTION '{gid}'"):
            self._database.execute(f"{end} PREPARED %s", (gid,))
            self._look()

    # No rule depends on what the database made of the ones before: hypothesis wants its histories repeatable.

    @rule(seed=SEEDS, operations=st.integers(1, 3))
    def begin_long(self, seed: int, operations: int) -> None:
        """Begin a transaction that later ones overtake."""
        self._abandon_long()
        session = self._connect()
        try:
            with session.cursor() as cursor:
                cursor.execute("BEGIN")
                Writer(cursor, chooser(seed)).transact(operations)
        except psycopg2.Error:
            session.close()
        else:
            self._open = session

    @rule(end=st.sampled_from(("COMMIT", "COMMIT", "ROLLBACK")))
    def end_long(self, end: str) -> None:
        session, self._open = self._open, None
        if session is None:
            return
        with suppress(psycopg2.Error), session.cursor() as cursor:
            cursor.execute(end)
        session.close()
        self._look()

    # --- what goes wrong, each time while the server has something to do

    @rule(how=st.sampled_from(("fast", "immediate", "kill -9")), seed=SEEDS)
    def restart_postgres(self, how: str, seed: int) -> None:
        self._abandon_long()
        self._burst(chooser(seed), 10)
        if how == "kill -9":
            self._cluster.crash()
            self._cluster.start()
        else:
            self._cluster.restart("fast" if how == "fast" else "immediate")

    @rule(seed=SEEDS)
    def terminate_backends(self, seed: int) -> None:
        self._burst(chooser(seed), 10)
        self._database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pads-cdc'"
        )

    @rule(index=st.integers(0, 5), seed=SEEDS)
    def disconnect(self, index: int, seed: int) -> None:
        self._burst(chooser(seed), 10)
        self._clients[index % len(self._clients)][0].disconnect()

    @rule(generation=st.sampled_from(GENERATIONS))
    @precondition(lambda self: len(self._clients) < 6)
    def join(self, generation: Generation) -> None:
        log = Log()
        client = Witness(self._server.grpc, generation, log)
        self._closing.callback(client.stop)
        self._clients.append((client, log))

    @rule(how=st.sampled_from(("SIGTERM", "kill -9", "kill -9 and slot dropped")), seed=SEEDS)
    def restart_server(self, how: str, seed: int) -> None:
        choose = chooser(seed)
        self._burst(choose, 10)
        self._check_counters()
        if how == "SIGTERM":
            assert self._server.stop() == 0
        else:
            self._server.kill()
        self._burst(choose, choose.randrange(10))
        # Whoever never fetches again has to be told of these by a server that was not there.
        for _ in range(5):
            self._commit(choose, work=Writer.remove_application)
        if how.endswith("dropped"):
            self._abandon_long()  # a new slot waits for all transactions
            wait_until(self._drop_slot, "the slot is free and dropped")
        self._server = self._start(self._server.grpc)

    # --- what must hold

    @rule()
    def quiet(self) -> None:
        try:
            self._compare()
        except AssertionError as error:
            self._failures.append(str(error))
            raise

    def _compare(self) -> None:
        for client, _ in self._clients:
            wait_equal(client, self._database)
        for client, log in self._clients:
            faults = log.judge(self._record)
            assert not faults, f"a client that {client.generation} saw {len(faults)} faults: {faults[:5]}"
        self._check_counters()

    def teardown(self) -> None:
        with self._closing:
            self._abandon_long()
            self.quiet()
        if self._session is not None:
            self._session.close()
        assert self._server.stop() == 0
        wait_until(self._drop_slot, "the slot is free and dropped")

    # --- how

    def _burst(self, choose: Random, transactions: int) -> None:
        for _ in range(transactions):
            self._commit(choose, end="ROLLBACK" if choose.random() < 0.1 else "COMMIT")

    def _commit(
        self, choose: Random, end: str = "COMMIT", work: Callable[[Writer], None] | None = None
    ) -> bool:
        """Do some work in a transaction and record what has come of it; tells whether it went well."""
        session = self._writing()
        with session.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                writer = Writer(cursor, choose)
                if work is None:
                    writer.transact(choose.choice((1, 1, 1, 2, 3, 8)))
                else:
                    work(writer)
                cursor.execute(end)
                done = True
            except psycopg2.Error:
                cursor.execute("ROLLBACK")
                done = False
        if not (done and end.startswith("PREPARE")):  # which shows nothing yet, and may have locked all of it
            self._look()
        return done

    def _look(self) -> None:
        try:
            self._record.add(expected_by(self._writing()))
        except psycopg2.errors.LockNotAvailable:
            self._abandon_long()  # it has truncated a table, and nobody can look past that
            self._record.add(expected_by(self._writing()))

    def _writing(self) -> connection:
        """Return the session that writes; faults only come between its transactions, so that it shows when it
        is gone.
        """
        session = self._session
        if session is not None:
            with suppress(psycopg2.OperationalError), session.cursor() as cursor:
                cursor.execute("SELECT")
                return session
        self._session = self._connect()
        return self._session

    def _connect(self) -> connection:
        session = self._database.connect()
        with session.cursor() as cursor:
            # The long transaction's locks would hold up the only thread that could end it.
            cursor.execute("SET lock_timeout = '50ms'")
        return session

    def _abandon_long(self) -> None:
        session, self._open = self._open, None
        if session is not None:
            session.close()

    def _drop_slot(self) -> bool:
        rows = self._database.rows(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = current_database() AND active_pid IS NULL"
        )
        left = self._database.value(
            "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        )
        return bool(rows) or left == 0

    def _check_counters(self) -> None:
        assert self._server.metric("pads_cdc_audit_drift_total") == 0
        assert self._server.metric("pads_cdc_decode_errors_total") == 0


@pytest.mark.slow
@pytest.mark.both_plugins
@pytest.mark.timeout(600)
def test_every_history_ends_equal_and_never_goes_back(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, serve: ServerFactory, tmp_path: Path
) -> None:
    cluster = cluster_factory()
    examples = iter(range(1_000_000))
    failures: list[str] = []

    def history() -> GeneratedHistory:
        database = database_factory(cluster=cluster)
        files = tmp_path / f"state_{next(examples)}"

        def start(port: int) -> Server:
            return serve(database, PORT=str(port), STATE_FILE=str(files), AUDIT_INTERVAL="1s")

        return GeneratedHistory(cluster, database, start, failures)

    try:
        run_state_machine_as_test(
            history,  # type: ignore[arg-type]  # it asks for a class; what makes one will do
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                derandomize=True,  # the same histories every time; `make soak` is for others
                deadline=None,
                phases=(Phase.generate,),  # a history with real faults cannot be shrunk in reasonable time
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as error:
        # A failed history is tried again, and real faults need not fall as they did: that is not the news.
        if failures:
            raise AssertionError(failures[0]) from error
        raise
