"""What a peer may do to the gRPC port: malformed calls, pings, sizes, streams, silence."""

from __future__ import annotations

import secrets
import signal
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest, AuthDataUpdatesRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from tests.plugins.server import DEADLINE, expected, fill, wait_equal, wait_until
from tests.support.certificates import Authority, write_secret
from tests.support.crowd import Stalled
from tests.support.http2 import ACK, GOAWAY, HEADERS, PING, SETTINGS, connected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

TOKEN = secrets.token_hex(32)
_MAX_CONCURRENT_STREAMS = 3
_ENHANCE_YOUR_CALM = struct.pack(">I", 11)


@pytest.fixture
def server(database: Database, serve: ServerFactory) -> Iterator[Server]:
    fill(database, 20)
    server = serve(database)
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize(
    "path", [b"/\xff\xfe/Method", b"/proto.GatewayEndpoints/\x80", b"\xc3", b"nothing", b"*"]
)
def test_a_call_of_anything_at_all_is_answered_and_harms_nobody(
    server: Server, database: Database, gateway: GatewayFactory, path: bytes
) -> None:
    client = gateway(server)
    with connected(server.grpc) as stranger:
        for number in range(20):
            stranger.call(2 * number + 1, path)
        stranger.wait(HEADERS, b"Method not found!")
    database.execute("UPDATE pay_plans SET monthly_relay_limit = 77")
    wait_equal(client, database)
    assert client.ends == []


def test_a_stranger_calls_anything_at_all_and_is_not_let_in(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    fill(database, 20)
    tokens = write_secret(tmp_path / "tokens", f"gateway:{TOKEN}")
    server = serve(database, AUTH_TOKENS_FILE=str(tokens))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel, connected(server.grpc) as stranger:
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        stub = GatewayEndpointsStub(channel)
        stream = stub.StreamAuthDataUpdates(AuthDataUpdatesRequest(), metadata=metadata)
        next(stream)
        stranger.call(1, b"/\xff\xfe/Method")
        stranger.call(
            3,
            b"/proto.GatewayEndpoints/FetchAuthDataSync",
            (b"authorization", f"Bearer {TOKEN}".encode() + b"\xff"),
        )
        stranger.wait(HEADERS, b"a valid token is needed", count=2)
        fetched = stub.FetchAuthDataSync(AuthDataRequest(), metadata=metadata)
        assert fetched.endpoints.keys() == expected(database).keys()
        assert stream.is_active()
    assert server.stop() == 0
    assert TOKEN not in server.output


def test_a_flood_of_strangers_that_hang_up_leaves_nothing_behind(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    fill(database, 20)
    tokens = write_secret(tmp_path / "tokens", f"gateway:{TOKEN}")
    server = serve(database, AUTH_TOKENS_FILE=str(tokens))
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stream = GatewayEndpointsStub(channel).StreamAuthDataUpdates(
            AuthDataUpdatesRequest(), metadata=metadata
        )
        next(stream)
        for number in range(3_000):
            path = ("/proto.GatewayEndpoints/FetchAuthDataSync", "/a/b", "/grpc.health.v1.Health/Check")[
                number % 3
            ]
            method: Any = channel.unary_unary(path)
            call = method.future(b"" if number % 2 else b"x")
            if number % 5:
                call.cancel()
            else:
                call.exception(timeout=DEADLINE)
        assert stream.is_active()
        fetch = GatewayEndpointsStub(channel).FetchAuthDataSync
        assert fetch(AuthDataRequest(), metadata=metadata).endpoints.keys() == expected(database).keys()
    wait_until(lambda: server.metric("pads_cdc_subscribers") == 0, "nobody is subscribed")
    assert server.stop() == 0
    refused = [line for line in server.logs if line["event"] == "call refused"]
    assert len(refused) < 20


def test_a_client_that_goes_while_it_is_sent_something_is_no_fault(
    server: Server, database: Database
) -> None:
    """GRPC wrote an error with a traceback for each; the fixture holds the log against that."""
    fill_more = "INSERT INTO portal_applications SELECT 'more_' || g, 'acc_0' FROM generate_series(1, 5000) g"
    database.execute(fill_more)
    wait_until(lambda: server.metric("pads_cdc_endpoints") > 5_000, "more than a window holds")
    with Stalled(server.grpc) as stalled:
        stalled.connect(5, lambda one: one.call(1, b"/proto.GatewayEndpoints/StreamAuthDataUpdates"))
        stalled.wait_full()
    wait_until(lambda: server.metric("pads_cdc_subscribers") == 0, "they are gone")


def test_pings_that_come_too_often_end_the_connection(server: Server) -> None:
    with connected(server.grpc) as impatient:
        for _ in range(
            4
        ):  # the first is in time, the third that is not is one too many; a fifth would meet a RST
            impatient.ping()
        assert impatient.wait(GOAWAY, b"too_many_pings")[4:8] == _ENHANCE_YOUR_CALM
        impatient.wait_end()


@pytest.mark.soak
def test_pings_from_every_10_s_on_are_welcome(server: Server) -> None:
    with connected(server.grpc) as patient:
        for number in range(5):
            if number:
                time.sleep(10)  # not for a condition: this is the interval that is promised
            patient.ping()
            patient.wait(PING, flags=ACK, count=number + 1)
        assert all(kind != GOAWAY for kind, _, _ in patient.frames)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_connection_without_a_stream_is_ended_after_ten_minutes(server: Server) -> None:
    with connected(server.grpc) as idle:
        began = time.monotonic()
        while all(kind != GOAWAY for kind, _, _ in idle.frames):
            assert time.monotonic() - began < 800
            idle.ping()  # pings are no use that anybody makes of it
            idle.wait(PING, flags=ACK, count=sum(kind == PING for kind, _, _ in idle.frames) + 1)
            time.sleep(15)  # not for a condition: they must not come too often


def test_the_streams_of_a_connection_are_bounded(server: Server) -> None:
    with connected(server.grpc) as curious:
        settings = dict(struct.iter_unpack(">HI", curious.wait(SETTINGS)))
        assert settings[_MAX_CONCURRENT_STREAMS] == 1_000


def test_everybody_who_comes_at_once_is_served(server: Server) -> None:
    """As after a restart. gRPC would refuse some of more than 1,000 calls that nobody has taken yet."""
    with ExitStack() as channels:
        fetches: list[Any] = []
        for _ in range(2):  # connections, since each may have 1,000 streams
            own = (("grpc.use_local_subchannel_pool", 1),)
            channel = channels.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc}", options=own))
            fetches.append(channel.unary_unary("/proto.GatewayEndpoints/FetchAuthDataSync"))
            assert fetches[-1](bytes(0), wait_for_ready=True)
        server.process.send_signal(signal.SIGSTOP)
        calls = [fetch.future(bytes(0), timeout=DEADLINE) for fetch in fetches for _ in range(950)]
        server.process.send_signal(signal.SIGCONT)
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_requests_are_bounded(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        fetch: Any = channel.unary_unary("/proto.GatewayEndpoints/FetchAuthDataSync")
        assert fetch(bytes(0), wait_for_ready=True)
        with pytest.raises(grpc.RpcError) as refused:
            fetch(b"\x0a\x80\x80\x08" + bytes(128 * 1024))
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_requests_that_cannot_be_decoded_are_answered_and_not_logged(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        refused = grpc.StatusCode.INVALID_ARGUMENT
        bad = b"\xff\xff\xff\xff"
        assert _code(channel.unary_unary("/grpc.health.v1.Health/Check"), bad) == refused
        assert _code(channel.unary_stream("/grpc.health.v1.Health/Watch"), bad) == refused
        reflection: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        assert _code(reflection, iter((b":\0", bad))) == refused, "the second one, too"
        watch: Any = channel.stream_stream("/pads.cdc.v1.EndpointFeedService/Watch")
        assert _code(watch, iter((bad,))) == refused
        # The requests of these methods have no fields: whatever comes is one.
        assert (
            _code(channel.unary_unary("/proto.GatewayEndpoints/FetchAuthDataSync"), bad) == grpc.StatusCode.OK
        )
        assert (
            _code(channel.unary_unary("/pads.cdc.v1.EndpointFeedService/Status"), bad) == grpc.StatusCode.OK
        )
    assert "Traceback" not in server.output


def _code(method: Any, request: Any) -> grpc.StatusCode:
    """Return the status with which a call ends."""
    call = getattr(method, "future", method)(request, wait_for_ready=True, timeout=DEADLINE)
    with suppress(grpc.RpcError):
        for _ in () if hasattr(method, "future") else call:
            pass
    ended: grpc.StatusCode = call.code()
    return ended


@pytest.mark.slow
def test_who_connects_and_says_nothing_is_sent_away(
    database: Database, serve: ServerFactory, tmp_path: Path
) -> None:
    pair = Authority().issue("server")
    (tmp_path / "tls.crt").write_bytes(pair.certificate)
    key = write_secret(tmp_path / "tls.key", pair.key)
    server = serve(database, TLS_CERT_FILE=str(tmp_path / "tls.crt"), TLS_KEY_FILE=str(key))
    with socket.create_connection(("127.0.0.1", server.grpc), DEADLINE) as silent:
        silent.settimeout(DEADLINE)
        assert silent.recv(1) == b""
