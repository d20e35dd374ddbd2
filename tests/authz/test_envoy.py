"""Through the real Envoy, with the configurations that deploy/envoy has."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from envoy.service.ratelimit.v3.rls_pb2_grpc import (
    RateLimitServiceServicer,
    add_RateLimitServiceServicer_to_server,
)
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from authz.identity import Places, Unidentified, identify
from server.commands.demo.envoy_process import find_envoy
from tests.authz.test_serve import endpoint
from tests.plugins.authorizer import rows
from tests.plugins.envoy import read_reply, start_envoy
from tests.plugins.server import DEADLINE, fill, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.authorizer import Authorizer, AuthorizerFactory, Row
    from tests.plugins.envoy import EnvoyFactory, Gateway
    from tests.plugins.feed import Scripted
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

OURS = {"portal-application-id", "portal-account-id", "rl-endpoint-id", "rl-throughput"}
FILES = sorted((ROOT / "deploy/envoy").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_envoy_itself_finds_nothing_wrong_with_our_configurations(file: Path) -> None:
    command = [find_envoy(), "--mode", "validate", "--log-level", "warning", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr + done.stdout, done.stderr


# --- the table


@pytest.fixture(scope="module")
def gateway(table_authorizer: Authorizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An Envoy before the authorizer that holds the table's endpoints."""
    with ExitStack() as running:
        yield start_envoy(running, tmp_path_factory.mktemp("envoy"), table_authorizer.grpc)


@pytest.mark.parametrize("row", [row for row in rows() if row.raw], ids=lambda row: row.what)
def test_every_request_gets_its_answer_through_envoy(row: Row, gateway: Gateway) -> None:
    reply = gateway.get(row.path, row.headers)
    assert reply.code == row.envoy, reply
    if reply.code == 200 and row.to is not None:
        ours = [(name, value) for name, value in reply.upstream if name in OURS]
        assert sorted(ours) == sorted((name.lower(), value) for name, value in row.upstream.items())
        assert not [name for name, _ in reply.upstream if name in ("authorization", "jwt-user-id")]
        assert identify(reply.path, [], Places()) in (row.to, Unidentified.MISSING), reply.path


# --- what comes and goes


@pytest.fixture
def held(scripted: Scripted, authorize: AuthorizerFactory) -> Authorizer:
    """An authorizer that holds app_open, app_key (`sesame`) and app_slow (two calls a second)."""
    authorizer = authorize(
        f"127.0.0.1:{scripted.port}",
        STALENESS_HEADER="Portal-Map-Staleness",
        RATE_LIMIT="local",
        DRAIN_TIME="3s",
    )
    scripted.opened()
    scripted.send(
        endpoint("app_open"), endpoint("app_key", "sesame"), endpoint("app_slow", limit=2), end=True
    )
    return authorizer.wait_ready()


def test_what_a_client_is_told(held: Authorizer, envoy: EnvoyFactory) -> None:
    gateway = envoy(held.grpc)
    passed = gateway.wait(200, "/v1/app_open")
    assert float(passed.headers["portal-map-staleness"]) < 60
    refused = gateway.get("/v1/app_key", [("authorization", "Bearer wrong key")])
    assert (refused.code, json.loads(refused.body)) == (401, {"code": 401, "message": "unauthorized"})
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["www-authenticate"] == "Bearer"
    limited = gateway.wait(429, "/v1/app_slow")
    assert limited.headers["retry-after"] == "1"
    log = gateway.process.log
    wait_until(lambda: '"outcome":"rate_limited"' in log.read_text(), "the access log has outcomes")
    assert '"endpoint":"app_key"' in log.read_text()
    assert "wrong key" not in log.read_text()


def test_nobody_gets_in_while_it_is_down(held: Authorizer, envoy: EnvoyFactory) -> None:
    gateway = envoy(held.grpc)
    gateway.wait(200, "/v1/app_open")
    held.kill()
    for path in ("/v1/app_open", "/v1/app_key", "/"):
        assert gateway.wait(503, path).code == 503
    assert {gateway.get("/v1/app_open").code for _ in range(20)} == {503}


def test_nobody_gets_in_before_the_first_map(
    scripted: Scripted, authorize: AuthorizerFactory, envoy: EnvoyFactory
) -> None:
    gateway = envoy(authorize(f"127.0.0.1:{scripted.port}").grpc)
    assert {gateway.get(path).code for path in ("/v1/app_open", "/v1/app_unknown", "/")} == {503}
    scripted.opened()
    scripted.send(endpoint("app_open"), end=True)
    gateway.wait(200, "/v1/app_open")


def test_two_are_restarted_in_turn_and_no_request_is_refused(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory, envoy: EnvoyFactory
) -> None:
    """As a Deployment does it: another one is ready before one goes."""
    fill(database, 10)
    server = serve(database, SLOT_NAME=database.name)  # the table's server follows the usual one
    ending, staying = (authorize(server, DRAIN_TIME="3s").wait_ready() for _ in range(2))
    address = "socket_address: {{address: 127.0.0.1, port_value: {}}}".format
    behind = "\n              - endpoint:\n                  address:\n                    "
    gateway = envoy(f"{address(ending.grpc)}{behind}{address(staying.grpc)}")
    gateway.wait(200, "/v1/app_3")
    wait_until(lambda: gateway.stat("cluster.authorizer.membership_healthy") == 2, "both are healthy")
    codes: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(_ask_until, gateway, ending, codes)
        wait_until(lambda: len(codes) > 10, "requests pass")
        ending.process.send_signal(signal.SIGTERM)
        asking.result(DEADLINE)
    assert set(codes) == {200}
    assert ending.join() == 0


def _ask_until(gateway: Gateway, ending: Authorizer, codes: list[int]) -> None:
    while ending.process.poll() is None:
        codes.append(gateway.get("/v1/app_3").code)


def test_over_a_unix_socket(
    scripted: Scripted, authorize: AuthorizerFactory, envoy: EnvoyFactory, tmp_path: Path
) -> None:
    path = tmp_path / "authorize.sock"
    authorize(f"127.0.0.1:{scripted.port}", UNIX_SOCKET=str(path))
    scripted.opened()
    scripted.send(endpoint("app_open"), end=True)
    gateway = envoy(f"pipe: {{path: {path}}}", edits=[("type: STRICT_DNS", "type: STATIC")])
    gateway.wait(200, "/v1/app_open")
    assert gateway.get("/v1/app_unknown").code == 404


# --- WebSockets


class _WebSocketUpstream:
    """Agrees to every upgrade, and sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            if b"\r\n\r\n" in connection.recv(65536):
                connection.sendall(
                    b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
                )
                while part := connection.recv(65536):
                    connection.sendall(part)

    def close(self) -> None:
        self._listener.close()


def test_an_open_websocket_is_bounded_by_envoy_and_a_revocation_waits_for_that(
    scripted: Scripted, held: Authorizer, envoy: EnvoyFactory
) -> None:
    with closing(_WebSocketUpstream()) as upstream:
        gateway = envoy(
            held.grpc,
            upstream=upstream.port,
            edits=[("max_stream_duration: 600s", "max_stream_duration: 4s")],
        )
        asked = b"GET /v1/app_key HTTP/1.1\r\nhost: x\r\nauthorization: sesame\r\nupgrade: websocket\r\n"
        asked += b"connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n\r\n"
        held.wait_answer(200, "/v1/app_key", [("authorization", "sesame")])
        gateway.wait(404, "/v1/app_unknown")  # Envoy has found it healthy
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", gateway.process.port), DEADLINE) as opened:
            opened.sendall(asked)
            assert b" 101 " in opened.recv(65536)
            scripted.send(endpoint("app_key", key=""))
            held.wait_answer(401, "/v1/app_key", [("authorization", "sesame")])
            opened.sendall(b"still here")
            assert opened.recv(100) == b"still here", "what is open stays open"
            assert not opened.recv(100), "until Envoy ends it"
            assert time.monotonic() - began > 3.5
        with socket.create_connection(("127.0.0.1", gateway.process.port), DEADLINE) as refused:
            refused.sendall(asked)
            assert read_reply(refused).code == 401


# --- tokens that Envoy has verified, and its rate limits


class _RateLimits(RateLimitServiceServicer):  # type: ignore[misc] # no stubs
    """Counts as Envoy's reference service does, with the limits that come with the descriptors."""

    def __init__(self) -> None:
        self.requests: list[RateLimitRequest] = []

    def ShouldRateLimit(self, request: RateLimitRequest, _: Any) -> RateLimitResponse:  # noqa: N802 - the proto's
        self.requests.append(request)
        [descriptor] = request.descriptors
        same = [each for each in self.requests if each.descriptors[0].entries == descriptor.entries]
        over = len(same) > descriptor.limit.requests_per_unit
        code = RateLimitResponse.OVER_LIMIT if over else RateLimitResponse.OK
        status = RateLimitResponse.DescriptorStatus(code=code)
        return RateLimitResponse(overall_code=code, statuses=[status])


@pytest.fixture
def rate_limits() -> Iterator[tuple[int, _RateLimits]]:
    """A rate limit service, and its port."""
    with ThreadPoolExecutor(2) as threads:
        server, counts = grpc.server(threads), _RateLimits()
        add_RateLimitServiceServicer_to_server(counts, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port, counts
        server.stop(0).wait()


class _Issuer:
    """Signs tokens, as a portal's identity provider does."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)

    def jwks(self) -> str:
        numbers = self._key.public_key().public_numbers()
        n = _base64(numbers.n.to_bytes(256, "big"))
        key = {"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": n, "e": "AQAB"}
        return json.dumps({"keys": [key]})

    def token(self, subject: str, **claims: Any) -> str:
        claims = {
            "iss": "https://portal.example/",
            "aud": "https://api.example/",
            "sub": subject,
            "exp": int(time.time()) + 600,
            **claims,
        }
        parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims)]
        signature = self._key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, _base64(signature)])


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def issuer() -> _Issuer:
    return _Issuer()


@pytest.fixture
def full(
    scripted: Scripted,
    authorize: AuthorizerFactory,
    envoy: EnvoyFactory,
    issuer: _Issuer,
    rate_limits: tuple[int, _RateLimits],
) -> Gateway:
    """Envoy with all of it, and an authorizer that holds app_jwt (alice) and app_key (`sesame`, limit 3)."""
    authorizer = authorize(f"127.0.0.1:{scripted.port}", JWT_SUBJECT_HEADER="jwt-user-id")
    wanted = GatewayEndpoint(endpoint_id="app_jwt")
    wanted.auth.jwt.authorized_users["auth0|alice"].SetInParent()
    scripted.opened()
    scripted.send(wanted, endpoint("app_key", "sesame", limit=3), end=True)
    authorizer.wait_ready()
    text = (ROOT / "deploy/envoy/envoy-jwt-ratelimit.yaml").read_text()
    begin, end = (
        text.index("                          remote_jwks:"),
        text.index("                          forward: true"),
    )
    jwks = f"                          local_jwks: {{inline_string: {json.dumps(issuer.jwks())}}}\n"
    cluster = text[text.index("    - name: jwks") :]
    gateway = envoy(
        authorizer.grpc,
        name="envoy-jwt-ratelimit.yaml",
        edits=[
            (text[begin:end], jwks),
            (cluster, ""),
            (
                "{address: 127.0.0.1, port_value: 8081}",
                f"{{address: 127.0.0.1, port_value: {rate_limits[0]}}}",
            ),
        ],
    )
    gateway.wait(404, "/v1/app_unknown")
    return gateway


def test_only_a_subject_that_envoy_has_verified_counts(full: Gateway, issuer: _Issuer) -> None:
    def code(token: str, *more: tuple[str, str]) -> int:
        return full.get("/v1/app_jwt", [("authorization", f"Bearer {token}"), *more]).code

    alice, mallory = "auth0|alice", "auth0|mallory"
    assert code(issuer.token(alice)) == 200
    assert code(issuer.token(mallory)) == 401
    assert code(issuer.token(alice, exp=1)) == 401
    assert code(issuer.token(alice, aud="https://other.example/")) == 401
    assert code(issuer.token(alice, iss="https://other.example/")) == 401
    assert code(_Issuer().token(alice)) == 401, "signed by somebody else"
    claimed = ("jwt-user-id", alice)
    assert full.get("/v1/app_jwt", [claimed]).code == 401
    assert full.get("/v1/app_jwt", [("Jwt-User-ID", alice)]).code == 401
    assert code(issuer.token(mallory), claimed) == 401
    assert code("no token", claimed) == 401
    assert code(issuer.token(alice), ("jwt-user-id", mallory)) == 200
    assert full.get("/v1/app_key", [("authorization", "Bearer sesame")]).code == 200, "a static key is no JWT"


def test_envoy_s_rate_limits_have_the_plan_s_limit_of_the_moment(
    full: Gateway, scripted: Scripted, issuer: _Issuer, rate_limits: tuple[int, _RateLimits]
) -> None:
    key = [("authorization", "Bearer sesame"), ("rl-endpoint-id", "mine")]
    assert [full.get("/v1/app_key", key).code for _ in range(5)] == [200, 200, 200, 429, 429]
    counts = rate_limits[1]
    [descriptor] = counts.requests[-1].descriptors
    assert [(entry.key, entry.value) for entry in descriptor.entries] == [("endpoint", "app_key")]
    assert (descriptor.limit.requests_per_unit, descriptor.limit.unit) == (3, 1)
    scripted.send(endpoint("app_key", "sesame", limit=100))
    full.wait(200, "/v1/app_key", key)
    assert counts.requests[-1].descriptors[0].limit.requests_per_unit == 100
    asked = len(counts.requests)
    assert full.get("/v1/app_jwt", [("authorization", f"Bearer {issuer.token('auth0|alice')}")]).code == 200
    assert len(counts.requests) == asked, "who has no limit is not counted"
