"""The authorizers, in Python and in Go, as processes of their own, and a client that asks as Envoy does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub
from google.protobuf.json_format import MessageToDict

from tests.plugins.postgres import make_database
from tests.plugins.server import DEADLINE, Server, end, wait_until
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Headers = Sequence[tuple[str, str]]

    from tests.plugins.postgres import Database
    from tests.support.cluster import Cluster

TABLE = tomllib.loads((Path(__file__).parents[1] / "authz/requests.toml").read_text())


@dataclass(frozen=True)
class Answer:
    """What Envoy is told."""

    code: int
    """200 where the request may pass."""
    upstream: dict[str, str]
    """Headers that go upstream in place of the client's."""
    removed: frozenset[str]
    """Headers that are taken away, in lower case."""
    downstream: dict[str, str]
    """Headers for the client, in lower case."""
    body: str
    metadata: dict[str, Any]


class Checks:
    """Asks one authorizer."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = (
            grpc.insecure_channel(target, options=options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=options)
        )
        self.stub = AuthorizationStub(self._channel)

    def __call__(self, path: str, headers: Headers = (), *, raw: bool = False) -> Answer:
        """Ask; ``raw`` hands headers over as with Envoy's ``encode_raw_headers``."""
        return read(self.stub.Check(asked(path, headers, raw=raw), timeout=DEADLINE, wait_for_ready=True))

    def close(self) -> None:
        """Cut the connection."""
        self._channel.close()


def asked(path: str, headers: Headers = (), *, raw: bool = False) -> CheckRequest:
    """Return what Envoy makes of a request; in ``raw`` each character of a value is a byte."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path = "GET", path
    for name, value in headers:
        if raw:
            http.header_map.headers.add(key=name, raw_value=value.encode("latin-1"))
        elif name in http.headers:
            http.headers[name] += f",{value}"
        else:
            http.headers[name] = value
    return request


def read(response: CheckResponse) -> Answer:
    """Make values of an answer; headers must overwrite what is there."""
    allowed = response.WhichOneof("http_response") == "ok_response"
    assert allowed == (response.status.code == 0)
    ok, denied = response.ok_response, response.denied_response
    for each in (*ok.headers, *ok.response_headers_to_add, *denied.headers):
        assert each.append_action == each.OVERWRITE_IF_EXISTS_OR_ADD, each
    down = ok.response_headers_to_add if allowed else denied.headers
    upstream = {each.header.key: each.header.value for each in ok.headers}
    assert len(upstream) == len(ok.headers)
    return Answer(
        200 if allowed else denied.status.code,
        upstream,
        frozenset(each.lower() for each in ok.headers_to_remove),
        {each.header.key.lower(): each.header.value for each in down},
        denied.body,
        MessageToDict(response.dynamic_metadata),
    )


class Authorizer(Server):
    """A ``pads-cdc authorize`` that runs."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment, "authorize")
        self.check = Checks(f"127.0.0.1:{self.grpc}")

    def wait_answer(self, code: int, path: str, headers: Headers = ()) -> Answer:
        """Return the first answer with this code."""
        return wait_answer(self.check, code, path, headers)


def wait_answer(check: Callable[..., Answer], code: int, path: str, headers: Headers = ()) -> Answer:
    """Return the first answer with this code."""
    got: list[Answer] = []

    def answered() -> bool:
        got.append(check(path, headers))
        return got[-1].code == code

    wait_until(answered, f"{code} for {path}")
    return got[-1]


class AuthorizerFactory(Protocol):
    """Starts an authorizer on feeds (servers, or addresses); settings by their environment names."""

    def __call__(self, *feeds: Server | str, **settings: str) -> Authorizer: ...


@pytest.fixture
def authorize() -> Iterator[AuthorizerFactory]:
    """Authorizers; they end with the test."""
    with ExitStack() as running:
        yield lambda *feeds, **settings: start(running, *feeds, **settings)


def start(running: ExitStack, *feeds: Server | str, **settings: str) -> Authorizer:
    """Start one that ends with the context."""
    environment = {
        "FEED_ADDRESSES": addresses(feeds),
        "PORT": "0",
        "METRICS_PORT": "0",
        "LOG_FORMAT": "json",
        **settings,
    }
    authorizer = Authorizer(environment)
    running.callback(end, authorizer)
    running.callback(authorizer.check.close)
    return authorizer


def addresses(feeds: Sequence[Server | str]) -> str:
    """Write FEED_ADDRESSES."""
    return ",".join(each if isinstance(each, str) else f"127.0.0.1:{each.grpc}" for each in feeds)


class GoAuthorizer:
    """The one in Go, on a port of its own."""

    def __init__(self, program: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.grpc = free.getsockname()[1]
        self.process = subprocess.Popen(
            [program, "-listen", f"127.0.0.1:{self.grpc}", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GOMEMLIMIT": "200MiB"},
        )
        self.check = Checks(f"127.0.0.1:{self.grpc}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.check.close()
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=DEADLINE)[1]
        assert "panic" not in said, said


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the programs, which `make go` has built before."""
    built = subprocess.run([ROOT / "scripts/build-go"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture(scope="module")
def table_server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the database that the table describes."""
    with ExitStack() as ending:
        database = make_database(ending, cluster, "grove_jwt")
        _fill(database)
        environment = {
            "POSTGRES_CONNECTION_STRING": database.url(),
            "MAPPING": "grove_jwt",
            "PORT": "0",
            "METRICS_PORT": "0",
            "STATE_FILE": str(tmp_path_factory.mktemp("table") / "state"),
            "LOG_FORMAT": "json",
        }
        server = Server(environment)
        ending.callback(end, server)
        yield server


@pytest.fixture(scope="module")
def table_authorizer(table_server: Server) -> Iterator[Authorizer]:
    """The authorizer in Python, on the table's endpoints."""
    with ExitStack() as running:
        authorizer = start(running, table_server, JWT_SUBJECT_HEADER="jwt-user-id")
        authorizer.wait_ready()
        yield authorizer


@pytest.fixture(scope="module", params=["Python", "Go"])
def checks(request: pytest.FixtureRequest, table_server: Server) -> Iterator[Checks]:
    """Asks one of the authorizers, which holds the table's endpoints."""
    if request.param == "Python":
        yield request.getfixturevalue("table_authorizer").check
        return
    program = request.getfixturevalue("programs") / "ext-authz"
    if not program.exists():
        pytest.skip("ext-authz is not built with Debian's libraries: they lack Envoy's messages")
    options = ("-subject-header", "jwt-user-id", f"127.0.0.1:{table_server.grpc}")
    with GoAuthorizer(program, *options) as in_go:
        wait_until(lambda: in_go.check("/v1/app_open").code == 200, "the Go server has a map")
        yield in_go.check


def _fill(database: Database) -> None:
    for plan, limits in TABLE["plans"].items():
        database.execute(
            "INSERT INTO pay_plans VALUES (%s, %s, %s)", (plan, limits["capacity"], limits["throughput"])
        )
    for endpoint_id, endpoint in TABLE["endpoints"].items():
        _insert(database, endpoint_id, endpoint)


def _insert(database: Database, endpoint_id: str, endpoint: dict[str, Any]) -> None:
    account = endpoint.get("account")
    if account is not None:
        plan = endpoint.get("plan", "plan_free")
        database.execute("INSERT INTO accounts VALUES (%s, %s) ON CONFLICT DO NOTHING", (account, plan))
    database.execute("INSERT INTO portal_applications VALUES (%s, %s)", (endpoint_id, account))
    required = "key" in endpoint or "users" in endpoint
    columns = "application_id, secret_key, secret_key_required"
    database.execute(
        f"INSERT INTO portal_application_settings ({columns}) VALUES (%s, %s, %s)",
        (endpoint_id, endpoint.get("key") or None, required),
    )
    if "users" not in endpoint:
        return
    for number, subject in enumerate(endpoint["users"] or ("",)):
        user = f"{account}_{number}"
        database.execute("INSERT INTO users VALUES (%s)", (user,))
        database.execute("INSERT INTO account_users (user_id, account_id) VALUES (%s, %s)", (user, account))
        if subject:  # else a user who can sign in nowhere
            columns = "type, user_id, provider_user_id"
            database.execute(
                f"INSERT INTO user_auth_providers ({columns}) VALUES ('auth0_github', %s, %s)",
                (user, subject),
            )


@dataclass(frozen=True)
class Row:
    """One request of the table."""

    what: str
    path: str
    headers: tuple[tuple[str, str], ...]
    raw: bool
    code: int
    to: str | None
    envoy: int

    @property
    def upstream(self) -> dict[str, str]:
        """What the endpoint's callers send upstream."""
        found: dict[str, str] = TABLE["endpoints"][self.to]["upstream"]
        return found


def rows() -> Iterator[Row]:
    """Yield every request in both forms of headers, as far as it has them."""
    for each in TABLE["request"]:
        assert each.keys() <= {"is", "path", "headers", "to", "code", "only", "envoy"}, each
        assert ("to" in each) != ("code" in each), each
        code = each.get("code", 200)
        headers = tuple((name, value) for name, value in each.get("headers", ()))
        for raw in (False, True):
            if each.get("only") != ("map" if raw else "raw"):
                yield Row(
                    each["is"], each["path"], headers, raw, code, each.get("to"), each.get("envoy", code)
                )


def parsed(answer: Answer) -> dict[str, Any]:
    """Return a refusal's body."""
    found: dict[str, Any] = json.loads(answer.body)
    return found
