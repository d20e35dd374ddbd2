"""The reader of the slot on a real server, with a applier that confirms just what the test says."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier, Literal

from cdc import lsn
from cdc.errors import Refusal, SlotHeld, SourceError
from cdc.freshness import Freshness
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import Rule
from cdc.postgres.connection import Address
from cdc.postgres.encoding import Encoding
from cdc.postgres.timeline import Timeline
from cdc.replication import feedback, pgoutput, wal2json
from cdc.replication.assembler import Assembler, Transaction
from cdc.replication.backlog import Backlog, Event, Started, StreamEnded
from cdc.replication.feedback import Feedback
from cdc.replication.own_slot import OwnSlot
from cdc.replication.slot import SlotReader
from cdc.replication.stream import SlotStream
from cdc.replication.synchronous_standby import Sender
from server.observe.fanout import Listener
from tests.plugins.server import fill, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg2.extras import ReplicationCursor

    from cdc.changes import Message
    from cdc.lsn import Lsn
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import ServerFactory

pytestmark = pytest.mark.both_plugins

DEADLINE = 30.0
SIGNAL = "INSERT INTO portal_application_changes (portal_app_id) VALUES (%s)"
RULES = {"portal_application_changes": (Rule("portal_application_changes", "portal_app_id", "Asked"),)}


class Following:
    """A reader that runs, and its backlog, which the test takes from."""

    def __init__(
        self, database: Database, tables: dict[tuple[str, str], str], asked: list[tuple[str, str]] | None
    ) -> None:
        wanted = list(tables) if asked is None else asked

        def assemble(cursor: ReplicationCursor, plugin: str) -> SlotStream:
            rules = {table: (Rule(table, "key", "Asked"),) for table in tables.values()}
            rules |= RULES
            assembler = Assembler(tables, rules)
            if plugin == wal2json.NAME:
                return SlotStream(assembler, wal2json.Wal2JsonDecoder(), wal2json.options(wanted))
            encoding = Encoding.of(cursor.connection)
            return SlotStream(
                assembler, pgoutput.PgoutputDecoder(None, encoding), pgoutput.options("asked"), encoding
            )

        if database.plugin == pgoutput.NAME:
            publish_only(database, wanted)
        self.backlog = Backlog()
        self.session = 0
        slot = OwnSlot(
            Address(database.url, "POSTGRES_CONNECTION_STRING"),
            "pads_cdc",
            server_queries(),
            assemble,
            Listener(),
            plugin=database.plugin,
        )
        read_so_far = Timeline(), lsn.Lsn(0)
        self.reader = SlotReader(slot, self.backlog, Freshness(), Listener(), lambda: read_so_far)
        self.reader.start()

    def wait(self, is_it: Callable[[Event], bool], what: str) -> Event:
        """Return the next event that is it; those before it are gone."""
        deadline = time.monotonic() + DEADLINE
        seen: list[Event] = []
        while time.monotonic() < deadline:
            for event in self.backlog.take(0.05):
                seen.append(event)
                if isinstance(event, Started):
                    self.session = event.session
                if is_it(event):
                    return event
        raise AssertionError(f"{what} never came, but {seen[-5:]}")

    def started(self) -> Started:
        event = self.wait(lambda one: isinstance(one, Started), "the start")
        assert isinstance(event, Started)
        return event

    def lost(self) -> StreamEnded:
        event = self.wait(lambda one: isinstance(one, StreamEnded), "the loss")
        assert isinstance(event, StreamEnded)
        return event

    def transaction(self) -> Transaction:
        """Return the next transaction with rows."""
        event = self.wait(lambda one: isinstance(one, Transaction) and bool(one.rows), "a transaction")
        assert isinstance(event, Transaction)
        return event

    def signal(self, database: Database, key: str) -> Transaction:
        """Make a transaction that names this key, and return it as it arrives."""
        database.execute(SIGNAL, (key,))
        return self.transaction()

    def confirm(self, position: Lsn) -> None:
        self.reader.confirm(position, self.session)
        self.reader.judge(partial(Sender, 0, "", ""))

    def stop(self) -> None:
        self.reader.stop()
        self.reader.join(DEADLINE)
        assert not self.reader.is_alive()


def publish_only(database: Database, tables: list[tuple[str, str]]) -> None:
    """Have the publication ``asked`` let these tables through, without a moment in which it is not there."""
    there = database.rows("SELECT FROM pg_publication WHERE pubname = 'asked'")
    change = SQL("ALTER PUBLICATION asked SET TABLE {}" if there else "CREATE PUBLICATION asked FOR TABLE {}")
    names = [Identifier(*table) for table in tables]
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute(change.format(SQL(", ").join(names)))


class FollowingFactory(Protocol):
    """Starts a reader; it ends with the test. ``tables`` as the plugin names them, to any name."""

    def __call__(
        self,
        database: Database,
        tables: dict[tuple[str, str], str] | None = None,
        asked: list[tuple[str, str]] | None = None,
    ) -> Following: ...


@pytest.fixture
def follow() -> Iterator[FollowingFactory]:
    """Readers of the slot ``pads_cdc``, by default of the signal table."""
    with ExitStack() as readers:

        def start(
            database: Database,
            tables: dict[tuple[str, str], str] | None = None,
            asked: list[tuple[str, str]] | None = None,
        ) -> Following:
            signals = {("public", "portal_application_changes"): "portal_application_changes"}
            following = Following(database, tables or signals, asked)
            readers.callback(following.stop)
            return following

        yield start


def confirmed(database: Database) -> Lsn:
    return lsn.parse(
        database.value(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
        )
    )


def _is_confirmed(database: Database, position: Lsn) -> bool:
    return confirmed(database) >= position


def end_of_wal(database: Database) -> Lsn:
    return lsn.parse(database.value("SELECT pg_current_wal_lsn()::text"))


def test_keepalives_within_a_transaction_confirm_nothing_that_is_pending(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, follow: FollowingFactory
) -> None:
    """Psycopg2's trap: answering one, it may confirm all that was sent, if the last explicit one allows.

    The large transaction has begun before the explicit one, so its rows lie before that; the one in between
    is complete, and pending.
    """
    database = database_factory(cluster=cluster_factory({"wal_sender_timeout": "1500ms"}))
    following = follow(database)
    following.started()
    large = database.connect()
    large.autocommit = False
    large.cursor().execute(
        "INSERT INTO portal_application_changes (portal_app_id)"
        " SELECT 'a' || g FROM generate_series(1, 390000) g"
    )
    database.execute(SIGNAL, ("explicit",))
    explicit = following.transaction()
    following.confirm(explicit.end)
    wait_until(lambda: confirmed(database) >= explicit.end, "the explicit one is confirmed")
    database.execute(SIGNAL, ("pending",))
    pending = following.transaction()
    assert pending.affected.keys == {"Asked": {"pending"}}
    began = time.monotonic()
    large.commit()
    assert following.transaction().rows[("portal_application_changes", "insert")] == 390_000
    assert time.monotonic() - began > 0.8, "no keepalive can have come within: make it larger"
    assert confirmed(database) < pending.end
    idle_until = time.monotonic() + 2
    wait_until(lambda: time.monotonic() > idle_until, "keepalives that come when nothing happens")
    assert explicit.end <= confirmed(database) < pending.end

    following.stop()  # and a crash at this point loses nothing
    again = follow(database)
    assert again.started().confirmed < pending.end
    assert again.transaction().affected.keys == {"Asked": {"pending"}}


def test_stopping_confirms_what_may_be_confirmed_and_nothing_else(
    database: Database, follow: FollowingFactory
) -> None:
    following = follow(database)
    following.started()
    done, pending = following.signal(database, "done"), following.signal(database, "pending")
    following.confirm(done.end)
    following.stop()
    wait_until(partial(_is_confirmed, database, done.end), "the first transaction is confirmed")
    assert confirmed(database) < pending.end
    assert follow(database).transaction().affected.keys == {"Asked": {"pending"}}


def test_only_what_was_pending_before_the_question_is_confirmed(
    database: Database, follow: FollowingFactory
) -> None:
    following = follow(database)
    following.started()
    before = following.signal(database, "before")
    following.reader.confirm(before.end, following.session)
    assert following.reader.to_judge
    later: list[Transaction] = []

    def find() -> Sender:
        later.append(following.signal(database, "meanwhile"))
        following.reader.confirm(later[0].end, following.session)
        return Sender(0, "", "")

    following.reader.judge(find)
    wait_until(partial(_is_confirmed, database, before.end), "the first transaction is confirmed")
    assert following.reader.to_judge
    following.reader.judge(partial(Sender, 0, "", "*"))
    assert isinstance(error := following.lost().error, SourceError)
    assert error.reason == "synchronous_standby"
    assert confirmed(database) < later[0].end


@pytest.mark.parametrize("answered", [True, False])
def test_the_end_waits_a_second_for_the_question(
    database: Database, follow: FollowingFactory, answered: bool
) -> None:
    following = follow(database)
    following.started()
    done = following.signal(database, "done")
    following.reader.confirm(done.end, following.session)

    def find() -> Sender:
        following.reader.join(0.5)
        assert following.reader.is_alive(), "it waits for this answer"
        return Sender(0, "", "")

    began = time.monotonic()
    following.reader.stop()
    if answered:
        following.reader.judge(find)
        following.stop()
        wait_until(partial(_is_confirmed, database, done.end), "the transaction is confirmed")
    else:
        following.stop()
        assert 1 <= time.monotonic() - began < 5
        assert confirmed(database) < done.end


def test_a_position_of_an_earlier_connection_is_not_confirmed(
    database: Database, follow: FollowingFactory
) -> None:
    """The next connection may read another history."""
    following = follow(database)
    first = following.started()
    pending = following.signal(database, "pending")
    following.reader.drop("shutdown")
    following.lost()
    second = following.started()
    assert second.session > first.session
    following.reader.confirm(pending.end, first.session)
    assert not following.reader.to_judge
    following.reader.judge(partial(Sender, 0, "", ""))
    assert following.transaction().affected.keys == {"Asked": {"pending"}}
    following.stop()
    assert confirmed(database) < pending.end


def test_a_lost_connection_is_had_again(database: Database, follow: FollowingFactory) -> None:
    following = follow(database)
    following.started()
    for _ in range(2):
        database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        lost = following.lost()
        assert isinstance(lost.error, SourceError)
        following.started()
    database.execute(SIGNAL, ("after",))
    assert following.transaction().affected.keys == {"Asked": {"after"}}


def test_a_slot_that_is_held_is_named_with_its_holder(database: Database, follow: FollowingFactory) -> None:
    holder = follow(database)
    holder.started()
    [(pid,)] = database.rows("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'pads_cdc'")
    second = follow(database)
    error = second.lost().error
    assert isinstance(error, SlotHeld)
    assert error.pid == pid
    holder.stop()
    second.started()


def test_making_the_slot_waits_and_can_be_ended(database: Database, follow: FollowingFactory) -> None:
    """It waits for every transaction that runs."""
    running = database.connect()
    running.autocommit = False
    running.cursor().execute(SIGNAL, ("runs",))
    following = follow(database)
    wait_until(lambda: following.reader.creating, "the slot is being made")
    began = time.monotonic()
    following.stop()
    assert time.monotonic() - began < 5
    wait_until(lambda: not database.rows("SELECT FROM pg_replication_slots"), "nothing is left of it")
    running.rollback()
    assert follow(database).started().created is not None


def test_a_slot_that_was_made_says_from_where_it_starts(database: Database, follow: FollowingFactory) -> None:
    following = follow(database)
    started = following.started()
    assert started.created is not None
    assert not started.created.sees(started.created.xmax % (1 << 32))
    following.stop()
    assert follow(database).started().created is None


def test_a_fault_of_ours_is_a_loss_and_not_the_end_of_the_thread(
    database: Database, follow: FollowingFactory
) -> None:
    following = follow(database)
    following.started()

    def broken(_: object, __: object) -> SlotStream:
        raise KeyError("s3cr3t")

    following.reader._slot._assemble, right = broken, following.reader._slot._assemble
    following.reader.drop("schema")
    assert following.lost().error.args[0].startswith("the connection was closed")
    error = following.lost().error
    assert "KeyError" in str(error)
    assert "s3cr3t" not in str(error)
    following.reader._slot._assemble = right
    following.started()


def test_a_slot_of_another_plugin_is_refused(database: Database, follow: FollowingFactory) -> None:
    database.execute("SELECT pg_create_logical_replication_slot('pads_cdc', 'test_decoding')")
    error = follow(database).lost().error
    assert isinstance(error, Refusal)
    assert "test_decoding" in str(error)


def test_idle_moves_on(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, serve: ServerFactory
) -> None:
    """An idle portal in a busy cluster retains no WAL."""
    cluster = cluster_factory()
    database, busy = database_factory(cluster=cluster), database_factory(cluster=cluster)
    fill(database, 10)
    server = serve(database)
    wait_until(lambda: server.get("/healthz") == (200, "ok"), "it follows")
    before = end_of_wal(database)
    busy.execute(
        "CREATE TABLE noise AS SELECT repeat(md5(g::text), 30) AS text FROM generate_series(1, 60000) g"
    )
    after = end_of_wal(database)
    assert after - before > 50 << 20
    wait_until(lambda: confirmed(database) >= after, "all of it is confirmed")
    busy.execute("CHECKPOINT")
    restart = "SELECT restart_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
    wait_until(lambda: database.value(restart, (lsn.show(after),)), "and none of it retained")
    wait_until(lambda: server.metric("pads_cdc_slot_retained_bytes") < 1 << 20, "the metric says so")
    wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") == 0, "and it is current")


NAMES = [
    ("plain", "plain"),
    ("UPPER", "Mixed"),
    ("sp ace", " lead and trail "),
    ("com,ma", "a,b,"),
    ("dot.ted", "a.b"),
    ("back\\slash", "\\"),
    ("quo'te", "it''s"),
    ('dou"ble', '"'),
    ("st*r", "*"),
    ("*", "st*r"),
    ("\\,", "\\.\\"),
    ("ünïcödé", "表\u2028𝄞"),
    ("t\tab", "new\nline"),
    ("per%cent", "%s{}()[];--"),
]


@pytest.fixture
def odd_tables(database: Database) -> list[tuple[str, str]]:
    """Make each schema with each table: all others are look-alikes, some without the odd characters."""
    schemas = {schema for schema, _ in NAMES} | {"star", "slash", "upper", "x"}
    tables = {table for _, table in NAMES} | {"star", "b", "a", "mixed", "its", "x"}
    with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
        for schema in schemas:
            cursor.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
            for table in tables:
                create = SQL("CREATE TABLE {} (key TEXT PRIMARY KEY)")
                cursor.execute(create.format(Identifier(schema, table)))
        session.commit()
    return [(schema, table) for schema in sorted(schemas) for table in sorted(tables)]


def test_tables_of_any_name_are_streamed_and_their_look_alikes_are_not(
    database: Database, odd_tables: list[tuple[str, str]], follow: FollowingFactory
) -> None:
    """The assembler knows all tables here, so that only the plugin's list can leave any out."""
    known = {(schema, table): f"{schema}|{table}" for schema, table in odd_tables}
    known["public", "portal_application_changes"] = "the end"
    end = ("public", "portal_application_changes")
    insert_all = SQL("; ").join(
        SQL("INSERT INTO {} VALUES (txid_current()::text)").format(Identifier(*name)) for name in odd_tables
    )
    for asked in NAMES:
        following = follow(database, known, [asked, end])
        following.started()
        with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
            cursor.execute(insert_all)
            session.commit()
        found = following.transaction()
        assert set(found.rows) == {(f"{asked[0]}|{asked[1]}", "insert")}, asked
        following.confirm(found.end)
        following.stop()


@pytest.mark.only_with("pgoutput")
def test_messages_are_not_asked_for(
    database: Database, follow: FollowingFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody may emit them, of any size: nobody's memory must be filled with them."""
    kinds: set[bytes] = set()
    decode = pgoutput.PgoutputDecoder.decode

    def noting(self: pgoutput.PgoutputDecoder, raw: bytes) -> Sequence[Message]:
        kinds.add(raw[:1])
        return decode(self, raw)

    monkeypatch.setattr(pgoutput.PgoutputDecoder, "decode", noting)
    following = follow(database)
    following.started()
    database.execute(
        "SELECT pg_logical_emit_message(g % 2 = 0, 'x', 'y') FROM generate_series(1, 10) g;"
        + SIGNAL.replace("%s", "'last'")
    )
    assert following.transaction().affected.keys == {"Asked": {"last"}}
    assert kinds == {b"B", b"R", b"I", b"C"}


def test_all_of_them_at_once(
    database: Database, odd_tables: list[tuple[str, str]], follow: FollowingFactory
) -> None:
    following = follow(database, {name: f"{name[0]}|{name[1]}" for name in NAMES})
    following.started()
    for number, name in enumerate(odd_tables):
        insert = SQL("INSERT INTO {} VALUES ({})").format(Identifier(*name), Literal(f"key {number}"))
        with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
            cursor.execute(insert)
            session.commit()
        if name in NAMES:
            assert following.transaction().affected.keys == {"Asked": {f"key {number}"}}


@pytest.mark.both_plugins(quick=False)
def test_an_applier_that_hangs_holds_up_the_reader_but_no_connection(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, follow: FollowingFactory
) -> None:
    """The backlog is full for longer than the server's patience: signs of life go on."""
    database = database_factory(cluster=cluster_factory({"wal_sender_timeout": "3s"}))
    following = follow(database)
    following.started()
    [sender] = database.rows("SELECT pid, backend_start FROM pg_stat_replication")
    following.backlog._limit = 1
    for number in range(20):
        database.execute(SIGNAL, (f"app_{number}",))
    full_until = time.monotonic() + 8
    wait_until(lambda: time.monotonic() > full_until, "more than twice the timeout")
    assert database.rows("SELECT pid, backend_start FROM pg_stat_replication") == [sender], "it was cut off"
    assert len(following.backlog) < 20
    named: set[str] = set()
    while len(named) < 20:
        named |= following.transaction().affected.keys["Asked"]
    assert named == {f"app_{number}" for number in range(20)}


@pytest.mark.both_plugins(quick=False)
def test_a_slot_that_is_lost_again_and_again_is_left_to_a_person(
    cluster_factory: ClusterFactory, database_factory: DatabaseFactory, follow: FollowingFactory
) -> None:
    database = database_factory(cluster=cluster_factory({"max_slot_wal_keep_size": "1MB"}))
    following = follow(database)
    first = following.started()
    assert first.created is not None

    def lose() -> None:
        for _ in range(3):  # nothing is confirmed, so the slot needs WAL that is not kept
            database.execute("CREATE TABLE gone (); DROP TABLE gone; SELECT pg_switch_wal()")
        database.execute("CHECKPOINT")
        following.lost()

    for _ in range(3):
        lose()
        assert following.started().created is not None, "made anew"
    lose()
    following.wait(lambda one: isinstance(one, StreamEnded) and "3 times" in str(one.error), "it gives up")
    [(status,)] = database.rows("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'pads_cdc'")
    assert status == "lost", "as it is, for whoever looks into it"


@pytest.mark.slow
@pytest.mark.both_plugins(quick=False)
def test_a_server_that_says_nothing_any_more_is_given_up(
    database: Database, follow: FollowingFactory
) -> None:
    """The connection stays open, as behind a firewall that has forgotten it; nothing else would end it.

    20 s, as production has it; psycopg2's own feedback, which used to be taken for the server's, comes after
    10.
    """
    with Proxy(database.cluster.port) as proxy:
        following = follow(database.on(replace(database.cluster, port=proxy.port)))
        following.started()
        proxy.stalled = True
        stalled_at = time.monotonic()
        error = following.lost().error
        assert isinstance(error, SourceError)
        assert error.reason == "stalled"
        assert 15 < time.monotonic() - stalled_at < 22
        proxy.stalled = False
        following.started()


def test_a_reader_that_was_frozen_itself_blames_nobody() -> None:
    """It has not asked meanwhile: what it finds after waking up is no silence of the server's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        feedback = Feedback(*(_Deaf(ours) for _ in range(2)))  # type: ignore[arg-type]
        feedback._asked_at -= 100
        assert feedback.silence == 0
        feedback.send(Freshness(), 0)
        assert 0 < feedback.silence < 5
        feedback.heard()
        assert feedback.silence == 0


def test_a_confirmation_is_sent_once_and_says_nothing_beyond_its_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write position beyond it would release commits with remote_write; a repetition, any that wait."""
    monkeypatch.setattr(feedback, "_SIGN", 0.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        confirming, signs = (Recording(ours) for _ in range(2))
        sending, freshness = Feedback(confirming, signs), Freshness()  # type: ignore[arg-type]
        freshness.received(lsn.Lsn(100))
        for _ in range(3):
            sending.send(freshness, lsn.Lsn(50))
        sending.confirm(lsn.Lsn(50))  # as at the end
    assert confirming.sent == [{"write_lsn": 50, "flush_lsn": 50, "apply_lsn": 50, "force": True}]
    assert [sign["write_lsn"] for sign in signs.sent] == [100, 100, 100]
    assert not any("flush_lsn" in sign for sign in signs.sent)


class _Deaf:
    """A cursor whose server does not answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def send_feedback(self, **_: object) -> None:
        pass


class Recording(_Deaf):
    """A cursor that keeps what it sends."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self.sent: list[dict[str, object]] = []

    def send_feedback(self, **feedback: object) -> None:
        self.sent.append(feedback)


def test_no_flush_position_stands(database: Database, follow: FollowingFactory) -> None:
    """Postgres lets the slot go, and yet sees an asynchronous standby, as it does in pg_receivewal."""
    following = follow(database)
    following.started()
    for number in range(3):
        database.execute(SIGNAL, (f"app_{number}",))
        done = following.transaction()
        following.confirm(done.end)
        wait_until(partial(_is_confirmed, database, done.end), "it is confirmed")
    sender = "SELECT flush_lsn IS NULL AND replay_lsn IS NULL AND sync_priority = 0 FROM pg_stat_replication"
    [pid] = database.rows("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'pads_cdc'")
    wait_until(lambda: database.value(f"{sender} WHERE pid = %s", pid), "no flush position")


def test_messages_of_any_role_are_left_out_by_the_plugin(
    database: Database, follow: FollowingFactory
) -> None:
    """200 MB of control characters are 1.2 GB of JSON, more than Postgres allocates."""
    following = follow(database)
    following.started()
    role = database.create_role()
    session = database.connect(*role)
    with session.cursor() as cursor:
        for transactional in (False, True):
            cursor.execute(
                "SELECT pg_logical_emit_message(%s, 'pads_cdc', repeat(chr(1), 200000000))", (transactional,)
            )
    database.execute(SIGNAL, ("after",))
    assert following.transaction().affected.keys == {"Asked": {"after"}}
