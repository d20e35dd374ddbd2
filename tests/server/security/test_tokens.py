"""Bearer tokens, as the real server asks for them: what strangers get, and what a withdrawn token becomes."""

from __future__ import annotations

import secrets
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest, AuthDataUpdatesRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as feed
from pads_cdc_client.pb.pads.cdc.v1.endpoint_feed_pb2_grpc import EndpointFeedServiceStub

from tests.plugins.server import DEADLINE, expected, fill, wait_until
from tests.support.certificates import write_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataUpdate

    from tests.plugins.postgres import Database
    from tests.plugins.server import Server, ServerFactory

A, B, C = (secrets.token_hex(32) for _ in "abc")
WRONG = secrets.token_hex(32)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

METHODS = (
    "/proto.GatewayEndpoints/FetchAuthDataSync",
    "/proto.GatewayEndpoints/StreamAuthDataUpdates",
    "/proto.GatewayEndpoints/None",
    "/pads.cdc.v1.EndpointFeedService/Watch",
    "/pads.cdc.v1.EndpointFeedService/Status",
    f"/{REFLECTION}/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/Watch",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/None",
    "/grpc.channelz.v1.Channelz/GetServers",
    "/no.such.Service/Method",
    "/",
)
MALFORMED = (f"Basic {A}", A, "Bearer", "Bearer ", f"Token {A}", "")
UNKNOWN = (f"Bearer {WRONG}", f"Bearer {A[:-1]}", f"Bearer {A}0", f"Bearer {A.upper()}", f"Bearer a:{A}")


Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_secret(tmp_path / "tokens", f"# of the test\ngateway-a:{A}\ngateway-b:{B}\n")


@pytest.fixture
def server(database: Database, serve: ServerFactory, tokens: Path) -> Iterator[Server]:
    """A server that asks for tokens; whatever a test does, none of them is written anywhere."""
    fill(database, 40)
    server = serve(database, AUTH_TOKENS_FILE=str(tokens), LOGGER_LEVEL="debug", PROGRESS_INTERVAL="100ms")
    yield server
    pages = "".join(server.get(path)[1] for path in ("/", "/metrics", "/healthz", "/readyz"))
    assert server.stop() == 0
    for secret in (A, B, C, WRONG):
        assert secret not in server.output
        assert secret not in pages


class Stream:
    """An open stream of the legacy contract, read by a thread."""

    def __init__(self, server: Server, token: str) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
        self.map: dict[str, bytes] = {}
        self.end: grpc.RpcError | None = None
        call = GatewayEndpointsStub(self.channel).StreamAuthDataUpdates(
            AuthDataUpdatesRequest(), metadata=bearer(token)
        )
        self._thread = threading.Thread(target=self._read, args=(call,), daemon=True)
        self._thread.start()

    def _read(self, call: Iterator[AuthDataUpdate]) -> None:
        try:
            for update in call:
                if update.delete:
                    self.map.pop(update.endpoint_id, None)
                else:
                    payload = update.gateway_endpoint.SerializeToString(deterministic=True)
                    self.map[update.endpoint_id] = payload
        except grpc.RpcError as error:
            self.end = error

    def close(self) -> None:
        self.channel.close()
        self._thread.join(DEADLINE)


def code(call: Callable[..., Any], *arguments: object, **options: object) -> grpc.StatusCode:
    """Call, or go on reading, to the end; returns the status."""
    try:
        answer = call(*arguments, **options)
        if hasattr(answer, "__next__"):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return status(error)
    return grpc.StatusCode.OK


def status(error: grpc.RpcError | None) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


@pytest.fixture
def silence() -> Iterator[Callable[[], Iterator[bytes]]]:
    """Requests of a client that says nothing; they end with the test."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(DEADLINE)
        yield from ()

    yield nothing
    over.set()


def test_a_stranger_gets_the_same_refusal_from_every_method(
    server: Server, silence: Callable[[], Iterator[bytes]]
) -> None:
    credentials: list[Metadata] = [(("authorization", value),) for value in (*MALFORMED, *UNKNOWN)]
    credentials += [(), (*bearer(A), *bearer(A)), (("x-authorization", f"Bearer {A}"),), (("token", A),)]
    answers = set()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        for method in METHODS:
            stream: Any = channel.stream_stream(method)
            unary: Any = channel.unary_unary(method)
            for metadata in credentials:
                # It says nothing and is answered: no message of a stranger's is read.
                call = stream(silence(), metadata=metadata, timeout=DEADLINE)
                answers.add((code(iter, call), call.details(), call.trailing_metadata()))
                assert code(unary, b"\xff", metadata=metadata) is UNAUTHENTICATED
    assert answers == {(UNAUTHENTICATED, "a valid token is needed: authorization: Bearer TOKEN", ())}
    for reason, each in (("missing", 3), ("malformed", len(MALFORMED) + 1), ("unknown", len(UNKNOWN))):
        counted = server.metric("pads_cdc_auth_failures_total", reason=reason)
        assert counted == 2 * each * len(METHODS), reason
    assert server.metric("pads_cdc_subscribers") == 0


def test_a_stranger_may_probe_the_overall_health_and_no_more(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        wait_until(lambda: check(b"") == serving.SerializeToString(), "it is well")
        for name in ("proto.GatewayEndpoints", "pads.cdc.v1.EndpointFeedService", "no.such.Service"):
            request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
            assert code(check, request) is UNAUTHENTICATED
        assert code(check, b"\xff\xff\xff") is UNAUTHENTICATED


def test_a_token_opens_everything(server: Server, database: Database) -> None:
    request = health_pb2.HealthCheckRequest(service="proto.GatewayEndpoints")
    opening = feed.WatchRequest(open=feed.Open(client_id="test"))
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    serving = health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        endpoints, watcher = GatewayEndpointsStub(channel), EndpointFeedServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        unknown: Any = channel.unary_unary("/no.such.Service/Method")
        for metadata in (bearer(A), (("authorization", f"bearer  {B} "),)):
            fetched = endpoints.FetchAuthDataSync(AuthDataRequest(), metadata=metadata)
            assert fetched.endpoints.keys() == expected(database).keys()
            assert watcher.Status(feed.StatusRequest(), metadata=metadata).count == 40
            watch = watcher.Watch(iter([opening]), metadata=metadata)
            assert next(watch).HasField("opened")
            watch.cancel()
            looking = health.Watch(request, metadata=metadata)
            wait_until(lambda looking=looking: next(looking).status == serving, "it is well")  # type: ignore[misc] # of this turn
            looking.cancel()
            assert health.Check(request, metadata=metadata).status == serving
            told = next(reflection.ServerReflectionInfo(iter([ask]), metadata=metadata))
            assert "proto.GatewayEndpoints" in {one.name for one in told.list_services_response.service}
            assert code(unknown, b"", metadata=metadata) is grpc.StatusCode.UNIMPLEMENTED
    lines = [line for line in server.logs if line["event"] == "call admitted"]
    assert {line["caller"] for line in lines} == {"gateway-a", "gateway-b"}


def test_a_withdrawn_token_ends_its_streams_and_no_others_under_load(
    server: Server, database: Database, tokens: Path, silence: Callable[[], Iterator[bytes]]
) -> None:
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            database.execute("UPDATE pay_plans SET monthly_relay_limit = %s", (number,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with (
            closing(Stream(server, A)) as of_a,
            closing(Stream(server, A)) as another_of_a,
            closing(Stream(server, B)) as of_b,
            grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel,
        ):
            streams = of_a, another_of_a, of_b
            wait_until(lambda: all(len(one.map) == 40 for one in streams), "everybody has everything")
            health: Any = health_pb2_grpc.HealthStub(channel)
            looking = health.Watch(health_pb2.HealthCheckRequest(), metadata=bearer(A))
            next(looking)
            opening = feed.WatchRequest(open=feed.Open(client_id="test"))
            watch = EndpointFeedServiceStub(channel).Watch(iter([opening]), metadata=bearer(A))
            next(watch)
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asking = reflection.ServerReflectionInfo(silence(), metadata=bearer(A))
            server.wait_log("call admitted", method=f"/{REFLECTION}/ServerReflectionInfo")
            # Moved to another line and name, B stays; A goes, C comes.
            tokens.write_text(f"gateway-c:{C}\nrenamed:{B}\n")
            for stream in (looking, watch, asking):
                assert code(iter, stream) is UNAUTHENTICATED
            wait_until(lambda: of_a.end and another_of_a.end, "the streams of A end")
            assert status(of_a.end) is status(another_of_a.end) is UNAUTHENTICATED
            fetch = GatewayEndpointsStub(channel).FetchAuthDataSync
            assert code(fetch, AuthDataRequest(), metadata=bearer(A)) is UNAUTHENTICATED
            assert len(fetch(AuthDataRequest(), metadata=bearer(C)).endpoints) == 40
            done.set()
            writer.join(DEADLINE)
            wait_until(lambda: of_b.map == expected(database), "B goes on as if nothing had happened")
            assert of_b.end is None
            assert server.metric("pads_cdc_auth_failures_total", reason="revoked") == 5
            for method, number in (("StreamAuthDataUpdates", 2), ("Watch", 1)):
                handled = {"grpc_method": method, "grpc_code": "UNAUTHENTICATED"}
                assert server.metric("grpc_server_handled_total", **handled) == number
                handled["grpc_code"] = "CANCELLED"
                assert not server.metric("grpc_server_handled_total", **handled)
            wait_until(
                lambda: server.metric("pads_cdc_subscribers", protocol="gateway_endpoints") == 1, "one"
            )
            assert server.wait_log("call refused", reason="revoked")["caller"] == "gateway-a"
    finally:
        done.set()
        writer.join(DEADLINE)


def test_a_client_that_takes_nothing_loses_its_stream_too(
    database: Database, serve: ServerFactory, tokens: Path
) -> None:
    fill(database, 20_000)
    server = serve(database, AUTH_TOKENS_FILE=str(tokens))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stream = GatewayEndpointsStub(channel).StreamAuthDataUpdates(
            AuthDataUpdatesRequest(), metadata=bearer(A)
        )
        next(stream)  # and no further: the server waits for the connection to take more
        tokens.write_text(f"gateway-b:{B}\n")
        server.wait_log("call refused", reason="revoked", caller="gateway-a")
        wait_until(lambda: server.metric("pads_cdc_subscribers") == 0, "nothing is held for it any more")
        received: list[object] = []
        assert code(map, received.append, stream) is UNAUTHENTICATED
        assert len(received) < 20_000
    assert server.stop() == 0


@pytest.mark.slow
def test_what_is_wrong_with_the_file_is_told_and_the_old_tokens_stay(server: Server, tokens: Path) -> None:
    with (
        closing(Stream(server, A)) as stream,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel,
    ):
        fetch = GatewayEndpointsStub(channel).FetchAuthDataSync

        def told(said: str) -> None:
            wait_until(lambda: said in server.get("/healthz")[1], f"/healthz says: {said}")
            assert fetch(AuthDataRequest(), metadata=bearer(A)).endpoints
            assert server.metric("pads_cdc_trouble", reason="auth_tokens") == 1

        good = tokens.read_text()
        tokens.write_text(f"gateway-b:{B}\ngateway-a:{A[:20]}")
        told("line 2: the token has fewer than 32 characters")
        tokens.write_text("")
        told("holds no token")
        tokens.write_text(good)
        tokens.chmod(0o644)
        told("is open to everybody")
        tokens.unlink()
        told("No such file")
        write_secret(tokens, good + f"gateway-c:{C}")
        wait_until(lambda: "auth_tokens" not in server.get("/healthz")[1], "the trouble is over")
        assert fetch(AuthDataRequest(), metadata=bearer(C)).endpoints
        assert stream.end is None
    assert server.wait_log("trouble", reason="auth_tokens")["level"] == "warning"
    server.wait_log("trouble is over", reason="auth_tokens")
