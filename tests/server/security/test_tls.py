"""TLS and mutual TLS on the real server, and what settings are needed to listen where others can connect."""

from __future__ import annotations

import secrets
import threading
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest, AuthDataUpdatesRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from tests.plugins.server import DEADLINE, expected, fill, wait_until
from tests.support.certificates import Authority, Pair, served_serial, write_secret
from tests.support.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import Server, ServerFactory

TOKEN = secrets.token_hex(32)
URL = "postgresql://nobody@127.0.0.1:1/none"
EXPIRY = "pads_cdc_tls_certificate_expiry_timestamp_seconds"


class Files:
    """What the settings name."""

    def __init__(self, folder: Path, pair: Pair, clients: Authority) -> None:
        self.certificate = folder / "tls.crt"
        self.certificate.write_bytes(pair.certificate)
        self.key = write_secret(folder / "tls.key", pair.key)
        self.clients = folder / "clients.crt"
        self.clients.write_bytes(clients.certificate)
        self.tokens = write_secret(folder / "tokens", f"gateway-a:{TOKEN}\n")
        self.tls = {"TLS_CERT_FILE": str(self.certificate), "TLS_KEY_FILE": str(self.key)}
        self.mutual = {**self.tls, "TLS_CLIENT_CA_FILE": str(self.clients)}


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signs the server's certificates."""
    return Authority("servers")


@pytest.fixture(scope="module")
def clients() -> Authority:
    """Who signs the clients' certificates."""
    return Authority("clients")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("first")


@pytest.fixture
def files(tmp_path: Path, pair: Pair, clients: Authority) -> Files:
    return Files(tmp_path, pair, clients)


def fetch(port: int, credentials: grpc.ChannelCredentials | None, token: str | None = None) -> str:
    """Fetch over a new connection; returns the status, as which OK stands for an answer with endpoints."""
    target = f"127.0.0.1:{port}"
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with (
        grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials)
    ) as channel:
        call = GatewayEndpointsStub(channel).FetchAuthDataSync
        try:
            assert call(AuthDataRequest(), metadata=metadata, timeout=DEADLINE).endpoints
        except grpc.RpcError as error:
            return error.code().name if isinstance(error, grpc.Call) else "?"
    return "OK"


def test_with_a_certificate_nothing_is_said_in_plaintext(
    database: Database, serve: ServerFactory, files: Files, authority: Authority, pair: Pair
) -> None:
    fill(database, 10)
    # On every address: TLS and tokens are what ALLOW_INSECURE would be asked for otherwise.
    server = serve(database, **files.tls, AUTH_TOKENS_FILE=str(files.tokens), HOST="0.0.0.0")  # noqa: S104 (meant)
    trusting = grpc.ssl_channel_credentials(authority.certificate)
    assert fetch(server.grpc, trusting, TOKEN) == "OK"
    assert fetch(server.grpc, trusting) == "UNAUTHENTICATED"
    assert fetch(server.grpc, trusting, TOKEN[::-1]) == "UNAUTHENTICATED"
    assert fetch(server.grpc, None, TOKEN) == "UNAVAILABLE"
    stranger = grpc.ssl_channel_credentials(Authority("other").certificate)
    assert fetch(server.grpc, stranger, TOKEN) == "UNAVAILABLE"
    assert server.metric(EXPIRY) == pair.expires
    _end(server, pair)


def test_mutual_tls_lets_in_whom_the_authority_has_signed_and_nobody_else(
    database: Database,
    serve: ServerFactory,
    files: Files,
    authority: Authority,
    clients: Authority,
    pair: Pair,
) -> None:
    fill(database, 10)
    server = serve(database, **files.mutual)
    client = clients.issue("gateway")
    assert fetch(server.grpc, _credentials(authority, client)) == "OK"
    for wrong in (
        clients.issue("late", ends=-timedelta(hours=1)),
        clients.issue("early", begins=timedelta(hours=1)),
        authority.issue("of the servers' authority"),
        Authority("clients").issue("of a namesake"),
    ):
        assert fetch(server.grpc, _credentials(authority, wrong)) == "UNAVAILABLE"
    assert fetch(server.grpc, grpc.ssl_channel_credentials(authority.certificate)) == "UNAVAILABLE"
    assert fetch(server.grpc, None) == "UNAVAILABLE"
    _end(server, pair, client)


def test_mutual_tls_and_tokens_must_both_be_passed(
    database: Database, serve: ServerFactory, files: Files, authority: Authority, clients: Authority
) -> None:
    fill(database, 10)
    server = serve(database, **files.mutual, AUTH_TOKENS_FILE=str(files.tokens))
    known = _credentials(authority, clients.issue("gateway"))
    assert fetch(server.grpc, known, TOKEN) == "OK"
    assert fetch(server.grpc, known) == "UNAUTHENTICATED"
    assert fetch(server.grpc, grpc.ssl_channel_credentials(authority.certificate), TOKEN) == "UNAVAILABLE"


@pytest.mark.slow
def test_certificates_are_rotated_under_load_and_no_stream_or_connection_fails(
    database: Database, serve: ServerFactory, files: Files, authority: Authority, pair: Pair
) -> None:
    fill(database, 40)
    server = serve(database, **files.tls)
    trusting = grpc.ssl_channel_credentials(authority.certificate)
    done, failures = threading.Event(), list[str]()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            database.execute("UPDATE pay_plans SET monthly_relay_limit = %s", (number,))

    def connect() -> None:
        while not done.is_set():
            if (status := fetch(server.grpc, trusting)) != "OK":
                failures.append(status)

    with ExitStack() as ending:
        channel = ending.enter_context(grpc.secure_channel(f"127.0.0.1:{server.grpc}", trusting))
        maps: list[dict[str, bytes]] = [{}, {}]
        threads = [threading.Thread(target=_follow, args=(channel, each, failures)) for each in maps]
        threads += [threading.Thread(target=write), threading.Thread(target=connect)]
        for thread in threads:
            ending.callback(thread.join, DEADLINE)
            thread.start()
        ending.callback(channel.close)
        ending.callback(done.set)
        wait_until(lambda: all(len(each) == 40 for each in maps), "both streams have everything")
        assert served_serial(server.grpc, authority) == pair.serial
        for name in ("second", "third"):
            latest = authority.issue(name)
            # Half of it, then one file after the other: what is there in between is never served.
            files.key.write_bytes(latest.key[:100])
            _told(server, "TLS_KEY_FILE: the file's content is not")
            files.key.write_bytes(latest.key)
            _told(server, "TLS_KEY_FILE: is not the key")
            assert served_serial(server.grpc, authority) != latest.serial
            files.certificate.write_bytes(latest.certificate)
            wait_until(
                lambda latest=latest: served_serial(server.grpc, authority) == latest.serial,  # type: ignore[misc] # of this turn
                f"new connections see the {name} certificate",
            )
            wait_until(lambda: server.metric("pads_cdc_trouble", reason="tls_certificate") == 0, "it is over")
            assert server.metric(EXPIRY) == latest.expires
        done.set()
        wait_until(lambda: all(each == expected(database) for each in maps), "both streams went on")
        assert failures == []
        assert server.metric("pads_cdc_subscribers", protocol="gateway_endpoints") == 2
    _end(server, pair, latest)


def test_a_certificate_that_nobody_would_accept_is_not_taken(
    database: Database, serve: ServerFactory, files: Files, authority: Authority, pair: Pair
) -> None:
    server = serve(database, **files.tls)
    late = authority.issue("late", ends=-timedelta(hours=1))
    files.key.write_bytes(late.key)
    files.certificate.write_bytes(late.certificate)
    _told(server, "TLS_CERT_FILE: the certificate expired at")
    assert served_serial(server.grpc, authority) == pair.serial
    assert server.metric(EXPIRY) == pair.expires
    files.certificate.unlink()
    _told(server, "TLS_CERT_FILE: ")
    _told(server, "cannot be read: No such file")
    assert served_serial(server.grpc, authority) == pair.serial
    _end(server, pair, late)


@pytest.mark.slow
def test_the_last_certificate_ends_while_it_is_served(
    database: Database, serve: ServerFactory, files: Files, authority: Authority
) -> None:
    short = authority.issue("short", ends=timedelta(seconds=15))
    files.certificate.write_bytes(short.certificate)
    files.key.write_bytes(short.key)
    server = serve(database, **files.tls)
    _told(server, "TLS_CERT_FILE: the certificate expired at")
    _end(server, short)


def test_the_clients_authority_is_exchanged_for_new_connections(
    database: Database, serve: ServerFactory, files: Files, authority: Authority, clients: Authority
) -> None:
    fill(database, 10)
    server = serve(database, **files.mutual)
    others = Authority("new")
    old, new = (_credentials(authority, of.issue("gateway")) for of in (clients, others))
    assert [fetch(server.grpc, each) for each in (old, new)] == ["OK", "UNAVAILABLE"]
    files.clients.write_bytes(clients.certificate + others.certificate)
    wait_until(lambda: fetch(server.grpc, new) == "OK", "both are let in")
    assert fetch(server.grpc, old) == "OK"
    files.clients.write_bytes(others.certificate)
    wait_until(lambda: fetch(server.grpc, old) == "UNAVAILABLE", "the old one is let in no more")
    assert fetch(server.grpc, new) == "OK"


@pytest.mark.slow
def test_each_bad_setting_is_one_line_and_exit_code_2(files: Files, authority: Authority) -> None:
    files.certificate.with_name("garbage").write_bytes(b"garbage")
    garbage = str(files.certificate.with_name("garbage"))
    other = str(write_secret(files.key.with_name("other"), authority.issue("other").key))
    public = files.tokens.with_name("public")
    public.write_text(files.tokens.read_text())
    public.chmod(0o644)
    everywhere = {"HOST": "0.0.0.0"}  # noqa: S104 (refused)
    tokens = {"AUTH_TOKENS_FILE": str(files.tokens)}
    peer = {"PEER_ADDRESS": "127.0.0.1:1"}
    for settings, said in (
        (
            {"TLS_CERT_FILE": str(files.certificate)},
            "TLS_CERT_FILE (--tls-cert-file): needs TLS_KEY_FILE too",
        ),
        ({"TLS_KEY_FILE": str(files.key)}, "TLS_KEY_FILE (--tls-key-file): needs TLS_CERT_FILE too"),
        (
            {"TLS_CLIENT_CA_FILE": str(files.clients)},
            "TLS_CLIENT_CA_FILE (--tls-client-ca-file): needs TLS_CE",
        ),
        (files.tls | {"TLS_CERT_FILE": "/none"}, "TLS_CERT_FILE: /none cannot be read: No such file"),
        (files.tls | {"TLS_CERT_FILE": garbage}, "TLS_CERT_FILE: the file's content is not one or more PEM"),
        (files.tls | {"TLS_KEY_FILE": other}, "TLS_KEY_FILE: is not the key of the first certificate"),
        (files.mutual | {"TLS_CLIENT_CA_FILE": garbage}, "TLS_CLIENT_CA_FILE: the file's content is not one"),
        (peer | {"PEER_CA_FILE": "/none"}, "PEER_CA_FILE: /none cannot be read: No such file"),
        (peer | {"PEER_TOKEN_FILE": "/none"}, "PEER_TOKEN_FILE: /none cannot be read: No such file"),
        ({"AUTH_TOKENS_FILE": "/none"}, "AUTH_TOKENS_FILE: /none cannot be read: No such file"),
        ({"AUTH_TOKENS_FILE": garbage}, f"AUTH_TOKENS_FILE: {garbage} is open to everybody on this machine"),
        ({"AUTH_TOKENS_FILE": other}, "AUTH_TOKENS_FILE: line 1 is not name:token"),
        ({"AUTH_TOKENS_FILE": str(public)}, f"AUTH_TOKENS_FILE: {public} is open to everybody on this mac"),
        (
            everywhere,
            "HOST (--host): 0.0.0.0 is not loopback, and gRPC would hand API keys, unencrypted, to any",
        ),
        (
            everywhere | files.tls,
            "HOST (--host): 0.0.0.0 is not loopback, and gRPC would hand API keys to anyone",
        ),
        (
            everywhere | tokens,
            "HOST (--host): 0.0.0.0 is not loopback, and gRPC would send API keys and tokens un",
        ),
    ):
        with Command(
            "serve", **settings, POSTGRES_CONNECTION_STRING=URL, PORT="0", METRICS_PORT="0"
        ) as serving:
            assert serving.end() == 2, serving.told(said)
        assert len(serving.errors) == 1, serving.told(said)
        assert serving.errors[0].startswith(f"pads-cdc: {said}"), serving.told(said)


def _credentials(servers: Authority, client: Pair) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(servers.certificate, client.key, client.certificate)


def _follow(channel: grpc.Channel, into: dict[str, bytes], failures: list[str]) -> None:
    stream: Iterator[Any] = GatewayEndpointsStub(channel).StreamAuthDataUpdates(AuthDataUpdatesRequest())
    try:
        for update in stream:
            into[update.endpoint_id] = update.gateway_endpoint.SerializeToString(deterministic=True)
    except grpc.RpcError as error:
        if (
            isinstance(error, grpc.Call) and error.code() is not grpc.StatusCode.CANCELLED
        ):  # by the test's end
            failures.append(f"{error.code()}: {error.details()}")


def _told(server: Server, said: str) -> None:
    wait_until(lambda: said in server.get("/healthz")[1], f"/healthz says: {said}")
    assert server.metric("pads_cdc_trouble", reason="tls_certificate") == 1
    assert server.wait_log("trouble", reason="tls_certificate")["level"] == "warning"


def _end(server: Server, *pairs: Pair) -> None:
    """Stop; nothing secret is in what the server wrote, and nothing that is not a line of its log."""
    assert server.stop() == 0
    for secret in (TOKEN, *(line for pair in pairs for line in pair.secrets())):
        assert secret not in server.output
    assert len(server.logs) == len(server.output.splitlines())
