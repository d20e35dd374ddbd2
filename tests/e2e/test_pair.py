"""Two servers for one slot: one reads it, the other one stands by with a copy and takes over exactly."""

from __future__ import annotations

import itertools
import secrets
import shutil
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from pads_cdc_client import Replica
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from tests.plugins.feed import opening, status, wait_exact
from tests.plugins.server import DEADLINE, expected, fill, wait_confirmed, wait_equal, wait_until
from tests.server.rpc.test_endpoint_feed import follow, settled
from tests.support import ROOT
from tests.support.certificates import Authority, write_secret
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from pads_cdc_client import EndpointFeed
    from pads_cdc_client.replica import Change

    from tests.plugins.feed import FeedFactory, Stream, StreamFactory
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory


def change(database: Database, number: int) -> None:
    """Change a key, take an endpoint away, touch one without changing it, and move a row to another parent.

    With the tables' default identities the WAL does not name what the moved row has left.
    """
    for statement in (
        "UPDATE portal_application_settings SET secret_key = %(key)s WHERE application_id = 'app_1'",
        "DELETE FROM portal_applications WHERE id = %(gone)s",
        "UPDATE portal_applications SET id = id WHERE id = 'app_2'",
        "DELETE FROM portal_application_settings WHERE application_id = %(to)s",
        "UPDATE portal_application_settings SET application_id = %(to)s WHERE application_id = %(left)s",
    ):
        values = {
            "key": f"v{number:04}",
            "gone": f"app_{number + 100}",
            "left": f"app_{200 + number}",
            "to": f"app_{201 + number}",
        }
        database.execute(statement, values)


def wait_streaming(server: Server) -> None:
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "reads the slot")


def wait_ready(server: Server) -> None:
    wait_until(lambda: server.get("/readyz") == (200, "ok"), f"ready: {server.get('/readyz')}")


def wait_mirrored(leader: Server, standby: Server) -> None:
    """Return when the standby holds what the leader holds, and the leader knows."""
    wait_until(lambda: leader.metric("pads_cdc_peer_connected") == 1, "the leader has a standby")
    wait_until(lambda: standby.metric("pads_cdc_standing_by") == 1, "the standby stands by")
    wait_until(lambda: standby.metric("pads_cdc_peer_connected") == 1, "the standby mirrors")
    wait_until(lambda: status(standby).digest == status(leader).digest, "the same map")
    wait_until(lambda: leader.metric("pads_cdc_peer_lag_bytes") == 0, "nothing outstanding")


def reconciles(server: Server) -> float:
    """Count whole readings that were not the audit's."""
    return server.metric("pads_cdc_reconcile_total") - server.metric("pads_cdc_audit_runs_total")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def start_pair(
    serve: ServerFactory, database: Database, folder: Path, leaders: dict[str, str] | None = None
) -> tuple[Server, Server]:
    """Start a leader, and a standby that holds what it holds; each names the other as its peer."""
    other = free_port()  # the leader cannot know a port that its standby has yet to get
    own = {"PEER_ADDRESS": f"127.0.0.1:{other}", "STATE_FILE": str(folder / "one")}
    leader = serve(database, **own, **(leaders or {}))
    wait_streaming(leader)
    own = {"PEER_ADDRESS": f"127.0.0.1:{leader.grpc}", "STATE_FILE": str(folder / "two")}
    standby = serve(database, PORT=str(other), **own)
    wait_mirrored(leader, standby)
    return leader, standby


def resume(stream: Stream, replica: Replica, database: Database) -> set[str]:
    """Go on at another server, up to the mapping query's result; returns the ids that were sent."""
    opened = stream.read()
    assert opened.opened.HasField("resumed"), opened.opened.reset
    replica.apply(opened)
    sent: set[str] = set()
    while not sent or replica.endpoints != expected(database):
        sent |= {one.endpoint_id for one in follow(stream, replica).batch.changes}
    return sent


def never_older(client: Gateway) -> None:
    """Check that the key that only ever grows never shrank at a client."""
    endpoints = [GatewayEndpoint.FromString(one) for key, one in client.updates if key == "app_1" and one]
    keys = [one.auth.static_api_key.api_key for one in endpoints]
    numbered = [key for key in keys if key.startswith("v")]
    assert numbered == sorted(numbered)


@pytest.mark.both_plugins
def test_a_standby_serves_nobody_and_takes_over_without_reading_everything(
    database: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    fill(database, 300)
    third = serve(database, SLOT_NAME="pads_third", STATE_FILE=str(tmp_path / "third"))
    leader, standby = start_pair(serve, database, tmp_path)
    code, body = standby.get("/readyz")
    assert (code, "standing_by" in body) == (503, True)
    assert standby.get("/healthz") == (200, "ok")
    assert stream(standby, opening()).end()[0] is grpc.StatusCode.UNAVAILABLE

    settled(third, database)
    replica, elsewhere = Replica(), Replica()
    follow(stream(leader, opening()), replica)
    follow(stream(third, opening()), elsewhere)
    wait_equal(gateway(leader), database)
    for number in range(3):
        change(database, number)
    settled(leader, database)
    wait_mirrored(leader, standby)

    leader.kill()
    died = time.monotonic()
    wait_ready(standby)
    assert time.monotonic() - died < 2
    sent = resume(stream(standby, opening(replica.token)), replica, database)
    assert {"app_1", "app_2", "app_100", "app_200"} <= sent
    assert len(sent) < 20
    # What was named and left as it is may have been something else in between, at a server with its own slot.
    assert "app_2" in resume(stream(standby, opening(elsewhere.token)), elsewhere, database)
    after = gateway(standby, fetch=False)
    wait_equal(after, database)
    assert {endpoint_id for endpoint_id, payload in after.updates if payload is None} >= {"app_100"}
    change(database, 3)
    wait_equal(after, database)
    standby.wait_metric(1, "pads_cdc_audit_runs_total")
    assert standby.metric("pads_cdc_audit_drift_total") == 0
    assert reconciles(standby) == 0, "with the memory of parents nothing asked for a whole reading"
    assert not [line for line in standby.logs if line.get("reason") == "slot_held"]


@pytest.mark.parametrize("point", ["received", "read", "published", "confirmed"])
def test_a_leader_that_is_killed_at_work_leaves_nothing_behind(
    database: Database,
    serve: ServerFactory,
    stream: StreamFactory,
    gateway: GatewayFactory,
    tmp_path: Path,
    point: str,
) -> None:
    fill(database, 300)
    leader, standby = start_pair(serve, database, tmp_path, {"PADS_CDC_FAILPOINT": f"{point}:12"})
    replica, feed, number = Replica(), stream(leader, opening()), 0
    follow(feed, replica)
    while leader.process.poll() is None and number < 40:
        change(database, number)
        number += 1
    leader.join()
    try:  # what it has sent, down to the last message
        for message in feed.call:
            replica.apply(message)
    except grpc.RpcError:
        pass
    wait_ready(standby)
    change(database, number)
    resume(stream(standby, opening(replica.token)), replica, database)
    wait_equal(gateway(standby), database)
    standby.wait_metric(1, "pads_cdc_audit_runs_total")
    assert standby.metric("pads_cdc_audit_drift_total") == 0
    assert reconciles(standby) == 0


@pytest.fixture
def impatient(cluster_factory: ClusterFactory, database_factory: DatabaseFactory) -> Database:
    """A database whose server gives up a silent reader after two seconds."""
    database = database_factory(cluster=cluster_factory({"wal_sender_timeout": "2s"}))
    fill(database, 300)
    return database


def test_a_leader_that_was_frozen_wakes_up_as_the_standby(
    impatient: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    database = impatient
    leader, standby = start_pair(serve, database, tmp_path)
    replica, client = Replica(), gateway(leader)
    follow(stream(leader, opening()), replica)
    change(database, 0)
    wait_equal(client, database)
    wait_mirrored(leader, standby)

    leader.process.send_signal(signal.SIGSTOP)
    change(database, 1)
    wait_ready(standby)
    assert gateway(standby).map == expected(database), "nothing older than what a leader can have shown"
    resume(stream(standby, opening(replica.token)), replica, database)
    change(database, 2)
    wait_equal(gateway(standby), database)
    leader.process.send_signal(signal.SIGCONT)
    wait_mirrored(standby, leader)
    assert leader.get("/readyz")[0] == 503
    never_older(client)
    assert client.ends
    assert set(client.ends) == {grpc.StatusCode.UNAVAILABLE}

    # And back again.
    resume_from = replica.token
    change(database, 3)
    settled(standby, database)
    wait_mirrored(standby, leader)
    standby.kill()
    wait_ready(leader)
    resume(stream(leader, opening(resume_from)), replica, database)
    wait_equal(client, database)
    never_older(client)
    leader.wait_metric(1, "pads_cdc_audit_runs_total")
    assert leader.metric("pads_cdc_audit_drift_total") == 0


def test_a_leader_that_is_cut_off_from_the_database_stands_by_when_it_is_back(
    impatient: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    database = impatient
    with Proxy(database.cluster.port) as proxy:
        through = database.url().replace(f":{database.cluster.port}/", f":{proxy.port}/")
        assert through != database.url()
        leader, standby = start_pair(serve, database, tmp_path, {"POSTGRES_CONNECTION_STRING": through})
        replica, client = Replica(), gateway(leader)
        follow(stream(leader, opening()), replica)
        wait_equal(client, database)
        proxy.stalled = True
        change(database, 1)
        wait_ready(standby)
        assert leader.get("/readyz")[0] == 200, "a database outage is none of its gateways"
        resume(stream(standby, opening(replica.token)), replica, database)
        proxy.cut()
        proxy.stalled = False
        wait_mirrored(standby, leader)
        change(database, 2)
        wait_equal(gateway(standby), database)
        never_older(client)


def test_a_standby_that_has_missed_something_reads_everything_before_it_serves(
    database: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    fill(database, 300)
    leader = serve(database, STATE_FILE=str(tmp_path / "one"))
    wait_streaming(leader)
    with Proxy(leader.grpc) as proxy:
        standby = serve(database, PEER_ADDRESS=f"127.0.0.1:{proxy.port}", STATE_FILE=str(tmp_path / "two"))
        wait_until(lambda: standby.metric("pads_cdc_peer_connected") == 1, "mirrors")
        wait_until(lambda: status(standby).digest == status(leader).digest, "the same map")
        client = gateway(leader)
        replica = Replica()
        follow(stream(leader, opening()), replica)
        proxy.stalled = True
        database.execute("DELETE FROM portal_applications WHERE id = 'app_50'")
        wait_confirmed(database)  # the leader goes on alone
        wait_equal(client, database)
        proxy.refusing = True
        proxy.cut()
        proxy.stalled = False
        wait_until(lambda: standby.metric("pads_cdc_peer_connected") == 0, "mirrors no more")
        assert "cannot be mirrored" in standby.get("/healthz")[1]
        leader.kill()
        wait_ready(standby)
        assert reconciles(standby) == 1
        after = gateway(standby)
        assert after.map == expected(database)
        opened = stream(standby, opening(replica.token)).read().opened
        assert opened.HasField("resumed") or opened.reset.reason == pb.RESET_REASON_GAP


def test_a_peer_is_shown_what_it_asks_for_and_a_wrong_token_is_told(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    fill(database, 20)
    servers, clients = Authority("servers"), Authority("clients")
    one, other = servers.issue("one"), clients.issue("other")
    files = {
        name: str(tmp_path / name) for name in ("crt", "key", "ca", "clients", "own", "own_key", "tokens")
    }
    for name, content in (
        ("crt", one.certificate),
        ("ca", servers.certificate),
        ("clients", clients.certificate),
        ("own", other.certificate),
    ):
        (tmp_path / name).write_bytes(content)
    write_secret(tmp_path / "key", one.key)
    write_secret(tmp_path / "own_key", other.key)
    good, wrong = secrets.token_hex(32), secrets.token_hex(32)
    write_secret(tmp_path / "tokens", f"peer:{good}\n")
    shown = write_secret(tmp_path / "shown", wrong)
    leader = serve(
        database,
        STATE_FILE=str(tmp_path / "one"),
        TLS_CERT_FILE=files["crt"],
        TLS_KEY_FILE=files["key"],
        TLS_CLIENT_CA_FILE=files["clients"],
        AUTH_TOKENS_FILE=files["tokens"],
    )
    wait_streaming(leader)
    standby = serve(
        database,
        STATE_FILE=str(tmp_path / "two"),
        PEER_ADDRESS=f"127.0.0.1:{leader.grpc}",
        PEER_CA_FILE=files["ca"],
        PEER_CERT_FILE=files["own"],
        PEER_KEY_FILE=files["own_key"],
        PEER_TOKEN_FILE=str(shown),
    )
    wait_until(lambda: "UNAUTHENTICATED" in standby.get("/healthz")[1], "it says that the token is not good")
    shown.write_text(good)
    wait_until(lambda: standby.get("/healthz") == (200, "ok"), "mirrors")
    assert standby.metric("pads_cdc_peer_connected") == 1
    wait_until(lambda: standby.metric("pads_cdc_endpoints") == 20, "the map")
    for token in (good, wrong):
        assert token not in leader.output + standby.output


def another_mapping(folder: Path) -> str:
    """Return a mapping that makes other endpoints of the same rows."""
    other = Path(shutil.copytree(ROOT / "sql/grove", folder / "another"))
    text = (other / "queries.sql").read_text()
    assert "    settings.secret_key,\n" in text
    text = text.replace("    settings.secret_key,\n", "    upper(settings.secret_key) AS secret_key,\n")
    (other / "queries.sql").write_text(text)
    return str(other)


def test_a_pair_that_is_moved_to_another_mapping_one_by_one(
    database: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    """The standby has the new one already, and a copy that the old one has made: nobody is served that."""
    fill(database, 300)
    other = another_mapping(tmp_path)
    leader, standby = start_pair(serve, database, tmp_path)
    client, replica = gateway(leader), Replica()
    follow(stream(leader, opening()), replica)
    assert standby.stop() == 0
    standby = serve(database, **{**standby.environment, "PORT": str(standby.grpc), "MAPPING": other})
    wait_mirrored(leader, standby)
    assert "MAPPING" in standby.get("/healthz")[1]
    database.execute("DELETE FROM portal_applications WHERE id = 'app_50'")
    wait_equal(client, database)
    wait_mirrored(leader, standby)

    leader.kill()
    wait_ready(standby)
    first = gateway(standby)
    assert first.map == expected(database, other), "what is served first is what the new mapping makes"
    deleted = gateway(standby, fetch=False)
    deleted.wait(lambda one: ("app_50", None) in one.updates, "the delete that the old leader has sent")
    opened = stream(standby, opening(replica.token)).read().opened
    # Its map is of the other mapping. A gap is said if a delivered change has become part of the reconcile.
    assert opened.reset.reason in (pb.RESET_REASON_MALFORMED, pb.RESET_REASON_GAP)
    assert reconciles(standby) == 1
    wait_until(lambda: standby.get("/healthz") == (200, "ok"), f"all is well: {standby.get('/healthz')}")

    again = serve(database, **{**leader.environment, "PORT": str(leader.grpc), "MAPPING": other})
    wait_mirrored(standby, again)
    assert again.get("/healthz") == (200, "ok")
    standby.kill()
    wait_ready(again)
    assert reconciles(again) == 0, "the copy of a server with the same mapping is good"
    assert gateway(again).map == expected(database, other)


def test_a_restart_with_another_mapping_tells_everybody_what_is_different(
    database: Database, serve: ServerFactory, stream: StreamFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    """The state file is of the other mapping: it has the digests of what that has made."""
    fill(database, 300)
    other = another_mapping(tmp_path)
    server = serve(database)
    settled(server, database)
    client, replica = gateway(server), Replica()
    follow(stream(server, opening()), replica)
    wait_equal(client, database)
    before = status(server)
    assert server.stop() == 0
    database.execute("DELETE FROM portal_applications WHERE id = 'app_50'")
    again = serve(database, PORT=str(server.grpc), MAPPING=other).wait_ready()
    wait_equal(client, database, other)
    assert status(again).epoch == before.epoch
    assert status(again).revision > before.revision
    same = {key for key, value in expected(database).items() if expected(database, other)[key] == value}
    sent = {key for key, _ in client.updates}
    assert same
    opened = stream(again, opening(replica.token)).read().opened
    assert opened.reset.reason == pb.RESET_REASON_MALFORMED
    assert sent >= {"app_50"} | (expected(database).keys() - same)
    assert again.metric("pads_cdc_audit_drift_total") == 0


def proved(client: EndpointFeed, often: int) -> bool:
    return client.proofs > often


def test_the_slot_goes_back_and_forth_under_writers_and_clients_notice_nothing(
    database: Database, serve: ServerFactory, feed: FeedFactory, tmp_path: Path
) -> None:
    """Killed and stopped in turn; whoever has gone comes back as the standby."""
    fill(database, 300)
    leader, standby = start_pair(serve, database, tmp_path)
    seen: list[str] = []

    def note(changed: Change) -> None:
        if changed.endpoint_id == "app_1" and changed.after is not None:
            seen.append(GatewayEndpoint.FromString(changed.after).auth.static_api_key.api_key)

    client = feed(leader, standby, on_change=note)
    assert client.wait_ready(DEADLINE)
    stopping = threading.Event()

    def write() -> None:
        for number in itertools.count(1):
            if stopping.wait(0.005):
                return
            database.execute(
                "UPDATE portal_application_settings SET secret_key = %(key)s WHERE application_id = 'app_1';"
                "DELETE FROM portal_applications WHERE id = %(one)s AND id <> 'app_1';"
                "INSERT INTO portal_applications VALUES (%(other)s, 'acc_1') ON CONFLICT DO NOTHING",
                {"key": f"v{number:06}", "one": f"app_{number % 300}", "other": f"app_{number * 7 % 300}"},
            )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(6):
            proofs = client.proofs
            wait_until(partial(proved, client, proofs + 5), "changes arrive")
            leader.kill() if turn % 2 else leader.stop()
            wait_ready(standby)
            again = serve(database, **{**leader.environment, "PORT": str(leader.grpc)})
            leader, standby = standby, again
            standby.wait_metric(1, "pads_cdc_peer_connected")
    finally:
        stopping.set()
        writer.join()
    wait_exact(client, expected(database))
    assert client.resets == 1
    numbered = [key for key in seen if key.startswith("v")]
    assert len(numbered) > 10
    assert numbered == sorted(numbered)
    leader.wait_metric(1, "pads_cdc_audit_runs_total")
    assert leader.metric("pads_cdc_audit_drift_total") == 0
