"""How the threads are put together: what each may rely on before the others run."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import pytest

from cdc.changes import Note
from cdc.errors import MessageError
from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.postgres import gate
from cdc.replication import wal2json
from cdc.replication.backlog import Backlog
from cdc.requery import requery
from cdc.state.state_file import StateFile
from cdc.store.store import Store
from server.config.settings import Settings
from server.observe.fanout import Listener
from server.pipeline import Pipeline
from tests.plugins.server import expected, fill, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cdc.changes import Message
    from cdc.observer import ReconcileSeen
    from tests.plugins.postgres import Database


class PipelineFactory(Protocol):
    """Makes a pipeline with a state file that says how far which timeline was read."""

    def __call__(self, timeline: int, seen: int) -> Pipeline: ...


@pytest.fixture
def left_behind(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PipelineFactory]:
    """Pipelines whose threads end with the test, if they were started."""
    made: list[Pipeline] = []

    def make(timeline: int, seen: int) -> Pipeline:
        system = database.value("SELECT system_identifier::text FROM pg_control_system()")
        file, store = StateFile(tmp_path / "state", system), Store()
        file.note(system=system, timeline=timeline)
        file.append(store.prepare([("app_1", b"payload")], 1000), position=1000, seen=seen)
        file.close()
        monkeypatch.setenv("POSTGRES_CONNECTION_STRING", database.url())
        monkeypatch.setenv("STATE_FILE", str(tmp_path / "state"))
        made.append(Pipeline(Settings.load({}), Store(), Freshness(), Listener(), Pair(), lambda: None))
        return made[-1]

    yield make
    for pipeline in made:
        if pipeline.applier.ident is not None:
            pipeline.stop()


def test_what_was_read_is_known_before_any_thread_runs(left_behind: PipelineFactory) -> None:
    """The reader of the slot may be the first: it must know a standby that replays again when it sees one."""
    history, position = left_behind(timeline=3, seen=2000).applier.read_so_far()
    assert (history.timeline, position) == (3, 2000)


def test_what_was_read_of_a_history_that_was_left_is_forgotten(left_behind: PipelineFactory) -> None:
    """Of a primary that is not as far: a standby of it would be waited for as long as that takes."""
    pipeline = left_behind(timeline=1, seen=1 << 60)
    pipeline.start()
    wait_until(lambda: pipeline.origin.now().reread is not None, "the map of now")
    assert pipeline.applier.read_so_far()[1] < 1 << 60


class Troubles(Listener):
    """Remembers which lasting conditions hold, and how often they were reported."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.reported: Counter[str] = Counter()

    def trouble(self, key: str, message: str | None) -> None:
        self.reported[key] += message is not None
        if message is None:
            self.now.pop(key, None)
        else:
            self.now[key] = message


_SENT = """
SELECT sent_lsn - '0/0' FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
WHERE database = current_database()
"""
_BACKLOG, _ROOM, _RETAINED = 20_000, 50_000, 2**20


@pytest.fixture
def cramped(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cramped]:
    """A pipeline that has little room, with its store."""
    fill(database, 20)
    monkeypatch.setattr(Backlog.__init__, "__defaults__", (_BACKLOG, 10))
    monkeypatch.setattr(requery, "_ROOM", _ROOM)
    monkeypatch.setattr(gate, "_NAMED", 100)
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", database.url())
    monkeypatch.setenv("STATE_FILE", str(tmp_path / "state"))
    monkeypatch.setenv("MAX_RETAINED_WAL", "1MB")
    store, troubles = Store(), Troubles()
    pipeline = Pipeline(Settings.load({}), store, Freshness(), troubles, Pair(), lambda: None)
    pipeline.start()
    yield Cramped(database, pipeline, store, troubles)
    pipeline.stop()


class Cramped:
    """A pipeline that has little room."""

    def __init__(self, database: Database, pipeline: Pipeline, store: Store, troubles: Troubles) -> None:
        self.database = database
        self.pipeline = pipeline
        self.store = store
        self.troubles = troubles
        wait_until(lambda: store.ready, "the map")

    @property
    def held(self) -> int:
        """Bytes that wait to be read, as they are counted."""
        return sum(task.size for task in self.pipeline.applier._requery._open_tasks())

    def commit(self, count: int) -> int:
        """Commit so many transactions; returns where the WAL ends then."""
        self.database.execute(
            """
            DO $$ BEGIN
                FOR number IN 1..%s LOOP
                    UPDATE portal_application_settings SET secret_key = md5(clock_timestamp()::text)
                        WHERE application_id = 'app_' || (1 + number %% 20);
                    COMMIT;
                END LOOP;
            END $$
            """,
            (count,),
        )
        return int(self.database.value("SELECT pg_current_wal_lsn() - '0/0'"))

    def wait_equal(self) -> None:
        def equal() -> bool:
            live = {entry.id: entry.payload for entry in self.store.live()}
            return live == expected(self.database)

        wait_until(equal, "the mapping query's result")


def test_what_waits_for_a_locked_table_has_a_bound_and_the_rest_waits_in_the_wal(cramped: Cramped) -> None:
    with closing(cramped.database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        before = cramped.database.value(_SENT)
        end = cramped.commit(1_500)
        assert end - before < _RETAINED
        wait_until(lambda: cramped.held >= _ROOM, "as much as there is room for")
        wait_until(lambda: cramped.troubles.reported["query"] >= 2, "reads fail again and again")
        assert cramped.held < _ROOM + 11 * 1_000, "and one batch more"
        # What it has not read is in the server's and the kernel's buffers, and the rest in the WAL.
        assert cramped.pipeline.applier._requery.reached < end
        assert "owed" not in cramped.troubles.now
        locking.execute("COMMIT")
    cramped.wait_equal()
    wait_until(lambda: cramped.pipeline.applier._requery.done_up_to >= end, "all of it is done")
    assert "owed" not in cramped.troubles.now


def test_beyond_max_retained_wal_everything_becomes_one_reconcile(
    cramped: Cramped,
) -> None:
    with closing(cramped.database.connect()) as session, session.cursor() as locking:
        locking.execute("BEGIN; LOCK TABLE pay_plans IN ACCESS EXCLUSIVE MODE")
        ends = [cramped.commit(3_000) for _ in range(3)]
        wait_until(lambda: "owed" in cramped.troubles.now, "a reconcile is owed")
        confirmed = (
            "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = current_database()"
        )
        wait_until(
            lambda: ends[-1] - cramped.database.value(confirmed) < _RETAINED + 2**18, "the slot lets go", 60
        )
        assert cramped.held < _ROOM + 11 * 1_000
        locking.execute("COMMIT")
    cramped.wait_equal()
    wait_until(lambda: not cramped.troubles.now, "nothing is owed")


class Told(Listener):
    """Remembers what was compared, why, and what was not understood."""

    def __init__(self) -> None:
        self.reconciles: list[str] = []
        self.errors: list[str] = []

    def reconciled(self, reconcile: ReconcileSeen) -> None:
        self.reconciles.append(reconcile.reason)

    def decode_error(self, reason: str, message: str) -> None:  # noqa: ARG002 (the reason will do)
        self.errors.append(reason)


@pytest.mark.parametrize("transactional", [False, True])
def test_a_message_that_is_not_understood_is_answered_by_one_reconcile(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transactional: bool
) -> None:
    """Between transactions, where there is no end to tell it by, as within one.

    A plugin of the future may send an action that we do not know. wal2json's messages stand for it: here the
    stream lets those of one prefix through, and the decoder does not know them.
    """
    parse = wal2json.parse

    def parse_all_but_messages(raw: bytes) -> Message:
        message = parse(raw)
        if isinstance(message, Note):
            raise MessageError("unknown_action", "an action of the future")
        return message

    monkeypatch.setattr(wal2json, "_unguessable", lambda: "let_through")
    monkeypatch.setattr(wal2json, "parse", parse_all_but_messages)
    monkeypatch.setenv("PLUGIN", "wal2json")
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", database.url())
    monkeypatch.setenv("STATE_FILE", str(tmp_path / "state"))
    fill(database, 10)
    told, freshness = Told(), Freshness()
    pipeline = Pipeline(Settings.load({}), Store(), freshness, told, Pair(), lambda: None)
    pipeline.start()
    try:
        wait_until(lambda: told.reconciles, "the first load")
        send = "SELECT pg_logical_emit_message(%s, 'let_through', 'x') - '0/0'"
        end = database.value(send, (transactional,))
        wait_until(lambda: len(told.reconciles) > 1, "the answer")
        database.execute("UPDATE pay_plans SET throughput_limit = 7")
        wait_until(lambda: freshness.positions().confirmed > end, "it is confirmed")
        assert told.errors == ["unknown_action"]
        assert told.reconciles[1:] == ["unknown_action"]
    finally:
        pipeline.stop()
