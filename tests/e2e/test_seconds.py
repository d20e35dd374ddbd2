"""Time-outs at the values that production has. Which test shows which: the table in tests/README.md.

They take long, and most of them only wait: ``make test-all`` runs them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psycopg2
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub
from psycopg2.extras import LogicalReplicationConnection

from cdc.errors import SourceError
from cdc.mapping.mapping import load
from cdc.postgres import refused
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.postgres.watchdog import QueryWatchdog
from server.commands.old_client import Disconnected, LegacySubscriber
from server.commands.role_file import RoleFile
from tests.cdc.postgres.test_database import encode
from tests.e2e.test_losses import reasons, wait_healthy
from tests.e2e.test_wal_sender import stopped
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.plugins import postgres
    from tests.plugins.feed import FeedFactory
    from tests.plugins.server import GatewayFactory, RelayFactory, ServerFactory

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def took(began: float, least: float, most: float) -> None:
    """Check how many seconds have passed."""
    passed = time.monotonic() - began
    assert least <= passed <= most, f"{passed:.1f} s, not {least:g} to {most:g}"


# --- the database


def test_a_statement_on_a_frozen_backend_is_hung_up(database: postgres.Database) -> None:
    """`statement_timeout` does nothing there, and the kernel answers for it: 75 s."""
    reader = Database(Address(database.url, "TEST"), load("grove"), "public", encode)
    watchdog = QueryWatchdog(reader.connections)
    watchdog.start()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            reader.query("SELECT pg_sleep(250)")
        except SourceError as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    began = time.monotonic()
    asking.start()
    find = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pads-cdc' AND datname = %s"
    [[pid]] = wait_until(lambda: database.rows(find, (database.name,)), "the statement runs")
    with stopped(pid):
        asking.join(120)
    took(began, 74, 82)
    assert isinstance(raised[0], SourceError)
    watchdog.stop()
    reader.close()


def test_a_statement_ends_after_a_minute(database: postgres.Database) -> None:
    reader = Database(Address(database.url, "TEST"), load("grove"), "public", encode)
    began = time.monotonic()
    with pytest.raises(SourceError) as error:
        reader.query("SELECT pg_sleep(100)")
    took(began, 59, 65)
    assert error.value.reason == "cancelled"
    reader.close()


@pytest.mark.own_cluster
def test_a_server_that_accepts_and_says_nothing_is_given_up(database: postgres.Database) -> None:
    with database.cluster.frozen():
        began = time.monotonic()
        with pytest.raises(SourceError) as error:
            Address(database.url, "TEST").connect()
        took(began, 4, 9)
    assert error.value.reason == "unreachable"


def test_a_role_s_file_that_leads_to_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=x user=x password=x"
        began = time.monotonic()
        assert not RoleFile(tmp_path / "file", where, new=False).works()
        took(began, 4, 9)


def test_who_refuses_us_is_asked_why_and_not_for_ever() -> None:
    """The second try meets a server that has stopped answering since the first."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        port = silent.getsockname()[1]
        assert refused.why({"host": "127.0.0.1", "port": port, "dbname": "x", "user": "x"}) is None
        took(began, 4.5, 7)


_CUT_OFF = """
import subprocess, sys, threading, time
from cdc.errors import PadsCdcError
from cdc.postgres.connection import Address
from cdc.postgres.errors import translated
from tests.support.cluster import ephemeral_cluster

def network(state):
    subprocess.run(["/usr/sbin/ip", "link", "set", "lo", state], check=True)

network("up")
with ephemeral_cluster() as cluster:
    connection = Address(cluster.url, "TEST").connect()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        statement = "SELECT 2"
        if sys.argv[1] == "waiting":
            statement = "SELECT pg_sleep(100)"
            threading.Timer(1.0, network, ("down",)).start()
        else:
            network("down")
        began = time.monotonic()
        try:
            with translated("TEST"):
                cursor.execute(statement)
        except PadsCdcError as error:
            print(time.monotonic() - began, error.reason)
    network("up")
"""


def cut_off(how: str) -> None:
    """Check that a connection is given up after some 20 s in a network of its own that goes down."""
    if os.geteuid() != 0:
        pytest.skip("a network of its own wants root")
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", sys.executable, "-c", _CUT_OFF, how],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, reason = done.stdout.split()
    assert 15 < float(seconds) < 30, done.stdout
    assert reason == "unreachable"


def test_a_network_that_swallows_everything_is_noticed() -> None:
    """What we send is not acknowledged any more, not even by a kernel (tcp_user_timeout)."""
    cut_off("sending")


def test_a_network_that_swallows_everything_while_we_wait_is_noticed() -> None:
    """We send nothing, and the answer never comes (keepalives)."""
    cut_off("waiting")


def test_what_passes_is_waited_for_at_the_start_and_not_for_ever(
    database: postgres.Database, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        done = pads_cdc("serve", POSTGRES_CONNECTION_STRING=database.url(), PORT="0", METRICS_PORT="0")
        assert (done.returncode, "holds a lock" in done.stderr) == (1, True), done.stderr
        took(began, 29, 45)


def test_a_lock_is_trouble_only_when_it_lasts(
    database: postgres.Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """A migration of a second or two is nobody's business: 5 s."""
    fill(database, 50)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_healthy(server)
    for seconds, said in ((2.0, False), (20.0, True)):
        with closing(database.connect()) as session, session.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
            database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
            began = time.monotonic()
            while time.monotonic() - began < seconds and "query" not in reasons(server):
                time.sleep(0.05)
            assert ("query" in reasons(server)) is said
            if said:
                took(began, 4.5, 8)
            cursor.execute("ROLLBACK")
        wait_equal(client, database)
        wait_healthy(server)


# --- a pair


@contextmanager
def holding(database: postgres.Database) -> Iterator[None]:
    """Have the slot be read by somebody who is no server."""
    with closing(
        psycopg2.connect(
            database.url(),
            connection_factory=LogicalReplicationConnection,
            options="-c wal_sender_timeout=0",
        )
    ) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE_REPLICATION_SLOT pads_cdc LOGICAL wal2json")
        cursor.start_replication(slot_name="pads_cdc", options={"format-version": "2"})
        yield


def test_a_standby_whose_peer_is_never_heard_goes_on_alone(
    database: postgres.Database, serve: ServerFactory
) -> None:
    """The slot is in use, and the peer's address takes connections and says nothing: 90 s, of which gRPC
    needs some to find out.
    """
    fill(database, 20)
    with socket.create_server(("127.0.0.1", 0)) as nobody, holding(database):
        nobody.listen(5)  # connections stand, and nothing is ever said
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        began = time.monotonic()
        server = serve(database, PEER_ADDRESS=address, PLUGIN="wal2json")
        wait_until(lambda: server.get("/readyz")[0] == 200, "it serves what it polls", 150)
        took(began, 85, 130)
        assert server.metric("pads_cdc_endpoints") == 20


def test_a_standby_whose_peer_does_not_read_the_slot_either_goes_on_alone(
    database: postgres.Database, serve: ServerFactory, tmp_path: Path
) -> None:
    """Both are peers of each other, and somebody else has the slot: 10 s after they have told each other."""
    fill(database, 20)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    with holding(database):
        began = time.monotonic()
        one = serve(
            database,
            PEER_ADDRESS=f"127.0.0.1:{other}",
            STATE_FILE=str(tmp_path / "one"),
            PLUGIN="wal2json",
        )
        two = serve(
            database,
            PORT=str(other),
            PEER_ADDRESS=f"127.0.0.1:{one.grpc}",
            STATE_FILE=str(tmp_path / "two"),
            PLUGIN="wal2json",
        )
        for server in (one, two):
            wait_until(lambda: server.get("/readyz")[0] == 200, "it serves what it polls", 80)  # noqa: B023
        took(began, 9, 60)


# --- silence after the first word, and before it


class Mute(grpc.GenericRpcHandler):
    """Takes every call, and never answers one."""

    def __init__(self) -> None:
        self.called = 0
        self.ended = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        assert details.method
        return grpc.stream_stream_rpc_method_handler(self._wait)

    def _wait(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        assert requests is not None
        self.called += 1
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(200)
        self.ended.set()
        yield from ()


@pytest.fixture
def mute() -> Iterator[tuple[Mute, str]]:
    """A gRPC server that never says anything, and where it is."""
    with ThreadPoolExecutor(8) as threads:
        server, handler = grpc.server(threads), Mute()
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield handler, f"127.0.0.1:{port}"
        server.stop(0).wait()


def wait_given_up(mute: Mute) -> None:
    """Check that a call is given up after 45 s."""
    wait_until(lambda: mute.called > 0, "a call")
    began = time.monotonic()
    assert mute.ended.wait(60), "it waits for ever"
    took(began, 43, 48)


def test_a_client_of_the_feed_gives_up_a_server_without_a_first_word(
    mute: tuple[Mute, str], feed: FeedFactory
) -> None:
    feed(mute[1])
    wait_given_up(mute[0])


def test_watch_gives_up_a_server_without_a_first_word(mute: tuple[Mute, str]) -> None:
    watch = subprocess.Popen([sys.executable, "-m", "server", "watch", mute[1], "--json"], cwd=ROOT)
    try:
        wait_given_up(mute[0])
    finally:
        watch.send_signal(signal.SIGINT)
        watch.wait(30)


def test_a_mirror_gives_up_a_peer_without_a_first_word(
    mute: tuple[Mute, str], database: postgres.Database, serve: ServerFactory
) -> None:
    fill(database, 5)
    with holding(database):
        serve(database, PEER_ADDRESS=mute[1], PLUGIN="wal2json")
        wait_given_up(mute[0])


def test_a_relay_gives_up_a_leader_without_a_first_word(mute: tuple[Mute, str], relay: RelayFactory) -> None:
    relay(LEADER_ADDRESS=mute[1])
    wait_given_up(mute[0])


# --- clients


def test_an_old_client_gives_up_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = LegacySubscriber(f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert isinstance(next(client.events()), Disconnected)
        took(began, 4, 9)
        client.close()


def test_a_call_that_waits_for_the_first_map_ends(database: postgres.Database, serve: ServerFactory) -> None:
    """The slot waits for a transaction that runs, and polling for a lock: 30 s."""
    fill(database, 5)
    running = database.connect()
    running.autocommit = False
    server = serve(database, SLOT_NAME="waits")
    with running.cursor() as cursor:
        cursor.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        if server.get("/readyz")[0] == 200:
            pytest.skip("the map was there first")
        began = time.monotonic()
        with (
            grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            GatewayEndpointsStub(channel).FetchAuthDataSync(AuthDataRequest(), timeout=60)
        took(began, 29, 33)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_opens_a_stream_and_does_not_say_who_it_is_is_sent_away(
    database: postgres.Database, serve: ServerFactory
) -> None:
    fill(database, 5)
    server = serve(database).wait_ready()
    quiet = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        watch: Any = channel.stream_stream("/pads.cdc.v1.EndpointFeedService/Watch")
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as error:
            next(watch(iter(lambda: quiet.wait(60), True)))
        took(began, 9, 12)
        quiet.set()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("said", "least", "most"), [(b"", 9, 13), (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 88, 95)]
)
def test_a_connection_to_the_metrics_port_that_stays_silent_is_closed(
    database: postgres.Database, serve: ServerFactory, said: bytes, least: float, most: float
) -> None:
    """10 s for the first request, 90 s for the next."""
    fill(database, 5)
    server = serve(database).wait_ready()
    with socket.create_connection(("127.0.0.1", server.http)) as connection:
        connection.settimeout(120)
        began = time.monotonic()
        if said:
            connection.sendall(said)
            assert re.match(rb"HTTP/1.1 200", connection.recv(65536))
        while connection.recv(65536):
            pass
        took(began, least, most)
