"""The feed over real gRPC, on a real database: what a stream says, and its answers to what should not be."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pads_cdc_client import Replica
from pads_cdc_client.digest import Digest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from cdc.postgres.timeline import Timeline
from cdc.state.origin import Origin
from cdc.state.token import Rejoin, Resume, Token, Verdict, judge
from cdc.store.store import Store
from server.rpc import endpoint_feed
from server.rpc.endpoint_feed import FeedService
from server.rpc.feed import MESSAGE_BYTES, FeedStream
from tests.plugins.feed import Stream, opening, status
from tests.plugins.server import expected, fill, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.feed import StreamFactory
    from tests.plugins.postgres import Database, DatabaseFactory
    from tests.plugins.server import Server, ServerFactory


def follow(stream: Stream, replica: Replica) -> pb.WatchResponse:
    """Apply messages up to the next checkpoint of a batch, and acknowledge; returns them as one message."""
    parts = pb.WatchResponse()
    while True:
        message = stream.read()
        assert message.ByteSize() < MESSAGE_BYTES
        applied = replica.apply(message)
        if applied.acknowledge is not None:
            assert not applied.acknowledge.digest_mismatch
            stream.send(pb.WatchRequest(acknowledge=applied.acknowledge))
        if message.HasField("batch"):
            parts.batch.MergeFrom(message.batch)
        if message.batch.HasField("checkpoint"):
            return parts


def settled(server: Server, database: Database) -> str:
    """Return the digest once it is that of the mapping query's result."""
    digest = bytes(Digest.of(expected(database)))
    wait_until(lambda: status(server).digest == digest, "the database's digest")
    return digest.hex()


def token_of(server: Server, stream: StreamFactory) -> Token:
    found = Token.parse(follow(stream(server, opening()), Replica()).batch.token)
    assert found is not None
    return found


def test_snapshot_then_tail_each_proved_by_a_digest_computed_from_the_database(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 1200)
    server = serve(database)
    feed, replica = stream(server, opening()), Replica()
    opened = feed.read().opened
    assert (opened.reset.reason, opened.reset.count) == (pb.RESET_REASON_NO_TOKEN, 1200)
    assert opened.progress_interval.ToSeconds() == 5
    message = follow(feed, replica)
    assert message.batch.snapshot_end
    assert replica.endpoints == expected(database)
    assert message.batch.checkpoint.digest == bytes(Digest.of(expected(database)))
    for number in range(2, 20):  # its plan is plan_1
        database.execute("UPDATE accounts SET plan_type = %s WHERE id = 'acc_1'", (f"plan_{number % 10}",))
        message = follow(feed, replica)
        assert not message.batch.snapshot_end
        assert {change.endpoint_id for change in message.batch.changes} <= {
            key for (key,) in database.rows("SELECT id FROM portal_applications WHERE account_id = 'acc_1'")
        }
    assert replica.endpoints == expected(database)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_7'")
    [change] = follow(feed, replica).batch.changes
    assert (change.endpoint_id, change.deleted) == ("app_7", True)
    now = status(server)
    assert (now.count, now.ready, now.subscribers) == (1199, True, 1)
    assert now.digest == bytes(Digest.of(expected(database)))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_token_survives_the_server_and_a_resume_costs_the_delta(
    database: Database, serve: ServerFactory, stream: StreamFactory, end: str
) -> None:
    fill(database, 3000)
    server = serve(database)
    replica = Replica()
    follow(stream(server, opening()), replica)
    whole = sum(len(key) + len(value) for key, value in replica.endpoints.items())
    server.stop() if end == "stop" else server.kill()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_2'"
    )
    database.execute("INSERT INTO portal_applications VALUES ('app_new', 'acc_0')")
    server = serve(database)
    settled(server, database)
    feed = stream(server, opening(replica.token))
    opened = feed.read()
    assert opened.opened.HasField("resumed"), opened
    replica.apply(opened)
    message = follow(feed, replica)
    assert {change.endpoint_id for change in message.batch.changes} == {"app_1", "app_2", "app_new"}
    assert message.ByteSize() < whole / 100
    assert replica.endpoints == expected(database)


def test_every_token_that_is_not_good_is_answered_with_its_reason(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 50)
    server = serve(database)
    good = token_of(server, stream)
    other = "f" * 32
    tokens = {
        "NO_TOKEN": b"",
        "MALFORMED": b"gibberish",
        "EXPIRED": replace(good, issued=0).encode(),
        "OTHER_SYSTEM": replace(good, epoch=other, system="42").encode(),
        "TIMELINE": replace(good, epoch=other, timeline=0).encode(),
        "UNKNOWN_REVISION": replace(good, revision=good.revision + 1000).encode(),
        "GAP": replace(good, epoch=other, position=1).encode(),
        "INCOMPLETE": good.incomplete().encode(),
    }
    for reason, token in tokens.items():
        before = server.metric("pads_cdc_feed_resets_total", reason=reason.lower())
        feed, replica = stream(server, opening(token)), Replica({"app_gone": b"x"}, token)
        message = feed.read()
        assert message.opened.reset.reason == pb.ResetReason.Value(f"RESET_REASON_{reason}"), reason
        replica.apply(message)
        assert follow(feed, replica).batch.snapshot_end
        assert replica.endpoints == expected(database)
        assert server.metric("pads_cdc_feed_resets_total", reason=reason.lower()) == before + 1
        feed.close()


def test_a_client_that_has_seen_more_elsewhere_waits_and_then_is_sent_away(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 10)
    server = serve(database)
    good = token_of(server, stream)
    ahead = replace(good, epoch="f" * 32, seen=good.seen + (1 << 40)).encode()
    code, details = stream(server, opening(ahead)).end()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "is behind the server" in details


def test_two_servers_of_one_database_hand_a_client_over_without_ever_going_back(
    database: Database, serve: ServerFactory, stream: StreamFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fill(database, 300)
    folder = tmp_path_factory.mktemp("states")
    servers = [serve(database, SLOT_NAME=f"pads_{n}", STATE_FILE=str(folder / str(n))) for n in range(2)]
    for server in servers:  # a token is good at the other one from when that began to follow
        settled(server, database)
    replica = Replica()
    resets = []
    for number in range(1, 21):
        server = servers[number % 2]
        feed = stream(server, opening(replica.token))
        message = feed.read()
        if message.opened.HasField("reset"):
            resets.append(pb.ResetReason.Name(message.opened.reset.reason))
        replica.apply(message)
        follow(feed, replica)
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = 'app_1'",
            (str(number),),
        )
        database.execute("DELETE FROM portal_applications WHERE id = %s", (f"app_{number + 1}",))
        settled(server, database)
        while replica.endpoints != expected(database):
            follow(feed, replica)
        feed.close()
    assert resets == ["RESET_REASON_NO_TOKEN"], [line for one in servers for line in one.logs]


def test_after_a_reconcile_a_server_takes_no_older_foreign_token(
    database: Database, serve: ServerFactory, stream: StreamFactory, tmp_path: Path
) -> None:
    fill(database, 20)
    one = serve(database, SLOT_NAME="pads_one", STATE_FILE=str(tmp_path / "one"))
    other = serve(database, SLOT_NAME="pads_other", STATE_FILE=str(tmp_path / "other"))
    settled(other, database)
    replica = Replica()
    follow(stream(one, opening()), replica)
    before = replica.token
    database.execute("TRUNCATE portal_application_settings")
    settled(one, database)
    settled(other, database)
    # What had changed and changed back by then, the other server could not tell from nothing.
    assert stream(other, opening(before)).read().opened.reset.reason == pb.RESET_REASON_GAP
    feed = stream(one, opening(before))
    replica.apply(feed.read())
    while replica.endpoints != expected(database):
        follow(feed, replica)
    moved = stream(other, opening(replica.token)).read().opened
    assert moved.HasField("resumed"), "from there on it has followed"


def test_misuse_is_said_and_costs_nobody_else_anything(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 10)
    server = serve(database)
    good = token_of(server, stream)
    acknowledge = pb.WatchRequest(acknowledge=pb.Acknowledge(token=good.encode()))
    for first, says in (
        (b"\xff\xff\xff", "parsed as WatchRequest"),
        (pb.WatchRequest(), "must be `open`"),
        (acknowledge, "must be `open`"),
        (opening(client_id=""), "client_id"),
        (opening(client_id="x" * 129), "client_id"),
        (opening(client_id="a\nb"), "client_id"),
    ):
        code, details = stream(server, first).end()
        assert (code, says in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    for later, says in (
        (opening(), "only `acknowledge`"),
        (b"\xff\xff\xff", "parsed as WatchRequest"),
        (pb.WatchRequest(acknowledge=pb.Acknowledge(token=b"x")), "not sent on this stream"),
        (
            pb.WatchRequest(
                acknowledge=pb.Acknowledge(token=replace(good, revision=good.revision + 9).encode())
            ),
            "not sent on this stream",
        ),
    ):
        feed = stream(server, opening())
        follow(feed, Replica())
        feed.send(later)
        code, details = feed.end()
        assert (code, says in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    assert status(server).subscribers <= 1
    assert server.metric("grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", grpc_method="Watch") == 10


def test_whatever_bytes_come_the_answer_is_a_status(database: Database, serve: ServerFactory) -> None:
    fill(database, 10)
    server = serve(database)
    openings = st.builds(
        pb.Open, client_id=st.text(max_size=200), resume_token=st.binary(max_size=80) | st.just(b"x" * 60_000)
    ).map(lambda one: pb.WatchRequest(open=one).SerializeToString())
    later = st.builds(pb.Acknowledge, token=st.binary(max_size=80), digest_mismatch=st.booleans()).map(
        lambda one: pb.WatchRequest(acknowledge=one).SerializeToString()
    )

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(openings | later | st.binary(max_size=200), min_size=1, max_size=3))
    def throw(messages: list[bytes]) -> None:
        one = Stream(f"127.0.0.1:{server.grpc}", *messages)
        one.send(b"\xff")  # what ends it, if nothing before has
        code, _ = one.end()
        one.close()
        assert code is grpc.StatusCode.INVALID_ARGUMENT

    throw()
    wait_until(lambda: status(server).subscribers == 0, "the end of all streams")
    assert server.process.poll() is None
    assert "Traceback" not in server.output


def test_too_large_a_request_is_refused(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    server = serve(database)
    code, _ = stream(server, opening(b"x" * 100_000)).end()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_signs_of_life_come_by_the_clock_with_a_token_where_nothing_is_outstanding(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 10)
    server = serve(database, PROGRESS_INTERVAL="100ms")
    feed, replica = stream(server, opening()), Replica()
    replica.apply(feed.read())
    follow(feed, replica)
    wait_until(lambda: server.metric("pads_cdc_replication_lag_seconds") == 0.0, "being caught up")
    for _ in range(3):
        message = feed.until("progress")
        assert message.progress.token
        applied = replica.apply(message)
        assert applied.acknowledge is not None
        assert not applied.acknowledge.digest_mismatch
    assert applied.staleness == 0.0


def test_a_difference_that_the_client_reports_is_answered_with_everything(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 10)
    server = serve(database)
    feed, replica = stream(server, opening()), Replica()
    token = follow(feed, replica).batch.token
    feed.acknowledge(token, mismatch=True)
    opened = feed.until("opened")
    assert opened.opened.reset.reason == pb.RESET_REASON_DIGEST_MISMATCH
    replica.apply(opened)
    assert follow(feed, replica).batch.snapshot_end
    assert replica.endpoints == expected(database)


def test_who_stalls_in_a_snapshot_gives_the_turn_back_and_holds_up_nobody(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 1)
    # Far more than the connection's buffers hold.
    database.execute(
        "INSERT INTO portal_applications SELECT 'big_' || g, 'acc_0' FROM generate_series(1, 60000) g"
    )
    server = serve(database, MAX_CONCURRENT_SNAPSHOTS="1", PROGRESS_INTERVAL="100ms")
    stalled = stream(server, opening())
    stalled.read()
    one, other = stream(server, opening()), stream(server, opening())
    queued = one.until("progress")
    assert queued.progress.queued
    assert not queued.progress.HasField("checkpoint")
    for feed in (one, other):
        replica = Replica()
        assert follow(feed, replica).batch.snapshot_end
        assert len(replica.endpoints) == 60001
    database.execute("DELETE FROM portal_applications WHERE id = 'big_1'")
    settled(server, database)
    replica = Replica()
    follow(stalled, replica)
    assert "big_1" not in replica.endpoints, "a slow reader gets the latest state"
    assert replica.endpoints == expected(database)


@pytest.mark.slow
def test_two_hundred_clients_start_over_at_once(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 2000)
    server = serve(database, PROGRESS_INTERVAL="60s")  # nobody's turn may wait for somebody's next message
    feeds = [stream(server, opening(client_id=f"c{n}")) for n in range(200)]

    def write() -> None:
        for number in range(20):
            database.execute("UPDATE accounts SET plan_type = 'plan_1' WHERE id = %s", (f"acc_{number}",))

    writing = threading.Thread(target=write)
    writing.start()
    replicas = [Replica() for _ in feeds]
    with ThreadPoolExecutor(len(feeds)) as readers:
        assert all(message.batch.snapshot_end for message in readers.map(follow, feeds, replicas))
    writing.join()
    settled(server, database)
    oracle = expected(database)
    for feed, replica in zip(feeds, replicas, strict=True):
        while replica.endpoints != oracle:
            follow(feed, replica)
    assert server.metric("pads_cdc_subscribers", protocol="endpoint_feed") == 200
    server.wait_metric(200, "pads_cdc_subscribers_current", protocol="endpoint_feed")


def test_lag_is_what_clients_have_not_acknowledged(
    database: Database, serve: ServerFactory, stream: StreamFactory
) -> None:
    fill(database, 10)
    server = serve(database)
    feed, replica = stream(server, opening()), Replica()
    follow(feed, replica)
    server.wait_metric(1, "pads_cdc_subscribers_current", protocol="endpoint_feed")
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    token = feed.until("batch").batch.token
    server.wait_metric(0.2, "pads_cdc_subscriber_max_lag_seconds")
    assert server.metric("pads_cdc_subscribers_current", protocol="endpoint_feed") == 0
    feed.acknowledge(token)
    server.wait_metric(1, "pads_cdc_subscribers_current", protocol="endpoint_feed")
    assert server.metric("pads_cdc_subscriber_max_lag_seconds") == 0


def test_a_server_that_goes_says_so(database: Database, serve: ServerFactory, stream: StreamFactory) -> None:
    fill(database, 10)
    server = serve(database)
    feed = stream(server, opening())
    follow(feed, Replica())
    assert server.stop() == 0
    code, details = feed.end()
    assert (code, "shutting down" in details) == (grpc.StatusCode.UNAVAILABLE, True)


def test_an_endpoint_that_is_larger_than_a_message_travels_alone(
    database_factory: DatabaseFactory, serve: ServerFactory, stream: StreamFactory
) -> None:
    database = database_factory("grove_jwt")
    fill(database, 20)
    database.execute(
        """
        INSERT INTO users SELECT 'user_' || g FROM generate_series(1, 9000) g;
        INSERT INTO user_auth_providers (user_id, type, provider_user_id)
            SELECT 'user_' || g, 'auth0_github', 'auth0|' || repeat('x', 200) || g
            FROM generate_series(1, 9000) g;
        INSERT INTO account_users (user_id, account_id)
            SELECT 'user_' || g, 'acc_0' FROM generate_series(1, 9000) g;
        """
    )
    server = serve(database, MAPPING="grove_jwt")
    feed, replica = stream(server, opening()), Replica()
    replica.apply(feed.read())
    large = 0
    while not replica.complete:
        message = feed.read()
        replica.apply(message)
        if message.ByteSize() >= MESSAGE_BYTES:
            assert len(message.batch.changes) == 1
            large += 1
    assert large > 0
    # Compared as messages: serializers may order the users as they like.
    held, oracle = replica.endpoints, expected(database, "grove_jwt")
    assert {key: GatewayEndpoint.FromString(held[key]) for key in held} == {
        key: GatewayEndpoint.FromString(oracle[key]) for key in oracle
    }


def test_a_promotion_between_the_verdict_and_the_first_message_is_judged_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The verdict speaks of positions that mean something else by then."""
    store, origin = Store(), Origin("a" * 32, followed_since=1)
    before = Timeline("7", 1, end=900)
    after = Timeline("7", 2, end=700, switches=((1, 600),))
    store.follow_timeline(before)
    store.publish(store.prepare([("app_1", b"1")], 500), consistent=True, position=900, seen=500)
    token = Token(
        "b" * 32, "7", 1, revision=9, position=900, seen=500, mapping=0, issued=int(time.time()), encoding=1
    )
    verdicts: list[Verdict] = []

    def judge_slowly(*arguments: Any, **options: Any) -> Verdict:
        verdicts.append(judge(*arguments, **options))
        if len(verdicts) == 1:
            store.follow_timeline(after, 600)
            store.publish(store.prepare([("app_1", b"2")], 650), consistent=True, position=650, seen=650)
        return verdicts[-1]

    monkeypatch.setattr(endpoint_feed, "judge", judge_slowly)
    settings = SimpleNamespace(tombstone_retention=60.0, progress_interval=5.0, max_concurrent_snapshots=1)
    none = cast("Any", None)
    service = FeedService(cast("Any", settings), store, lambda: origin, none, none, none, none, none)
    feed = FeedStream(store, lambda: origin, lambda: 0.0, 5.0)
    opened = asyncio.run(service._open(feed, token.encode(), none, asyncio.Event()))
    assert verdicts == [Rejoin(900), Rejoin(600)]
    assert opened.opened.HasField("resumed")
    [batch, *_] = feed.take()
    assert [one.endpoint for one in batch.batch.changes] == [b"2"]


def test_a_token_of_a_new_epoch_stays_good_between_checkpoints() -> None:
    """What the database has lost in an earlier epoch is no reason to take this one's token away."""
    store, old = Store(), Origin("a" * 32, followed_since=1)
    origin = old

    def publish(position: int, *, consistent: bool) -> pb.WatchResponse:
        row = [("app_1", str(position).encode())]
        store.publish(store.prepare(row, position), consistent=consistent, position=position, seen=position)
        [message] = feed.take()
        return message

    store.follow_timeline(Timeline("7", 1, end=900))
    feed = FeedStream(store, lambda: origin, lambda: 0.0, 5.0)
    feed.open(Resume(store.head))
    origin = replace(old, epoch="b" * 32, left=frozenset({old.epoch}))
    assert publish(500, consistent=True).batch.HasField("checkpoint")
    between = publish(600, consistent=False).batch
    assert not between.HasField("checkpoint")
    token = Token.parse(between.token)
    assert token is not None
    assert (token.epoch, token.complete) == ("b" * 32, True)
