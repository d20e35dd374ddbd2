"""The real server, in a process of its own, and clients of the legacy contract over real gRPC."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, suppress
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import (
    AuthDataRequest,
    AuthDataUpdatesRequest,
    CapacityLimitPeriod,
    GatewayEndpoint,
)
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from cdc.mapping.mapping import load
from cdc.mapping.row_rule import MESSAGE_BYTES
from tests.plugins.decoding import plugin_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from psycopg2.extensions import connection

    from tests.plugins.postgres import Database

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds after which a condition that should come soon counts as never."""


def wait_until(condition: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Return the condition's first true value; fails after the deadline, with what was waited for."""
    until = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {deadline:.0f} s: {what}"
        time.sleep(0.005)
    return value


def confirmed(database: Database, end: str) -> bool:
    """Return whether the database's slot is confirmed up to a position."""
    query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE database = current_database()"
    return bool(database.value(query, (end,)))


def wait_confirmed(database: Database, end: str | None = None, deadline: float = DEADLINE) -> None:
    """Wait until the database's slot is confirmed up to a position, by default the present end of the WAL."""
    until = end or database.value("SELECT pg_current_wal_lsn()")
    wait_until(lambda: confirmed(database, until), f"the slot is confirmed up to {until}", deadline)


class Server:
    """A ``pads-cdc serve``, or another command that serves, that runs; ``logs`` fills as it writes."""

    prefix: tuple[str, ...] = ()
    """A command that executes what follows, such as ``prlimit``."""
    interpreter = sys.executable

    def __init__(self, environment: dict[str, str], command: str = "serve", module: str = "server") -> None:
        self.environment = environment
        self.logs: list[dict[str, Any]] = []
        self._written = threading.Condition()
        self.process = subprocess.Popen(
            [*self.prefix, self.interpreter, "-m", module, command],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.output = ""
        try:
            serving = self.wait_log("serving")
        except BaseException:
            self.kill()
            raise
        self.grpc, self.http = int(serving["grpc"]), int(serving["http"])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._written:
                with suppress(json.JSONDecodeError):
                    self.logs.append(json.loads(line))
                self.output += line
                self._written.notify_all()

    def wait_log(self, event: str, **values: Any) -> dict[str, Any]:
        """Return the first line of an event with these values."""

        def find() -> dict[str, Any] | None:
            for line in self.logs:
                if line.get("event") == event and all(line.get(key) == of for key, of in values.items()):
                    return line
            assert self.process.poll() is None or self._reading.is_alive(), self.output
            return None

        with self._written:
            found = self._written.wait_for(find, DEADLINE)
        assert found is not None, f"no {event} {values} in the log:\n{self.output}"
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Ask the HTTP side; returns the status and the body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=DEADLINE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the series that have these labels; 0.0 when there is none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(f'{key}="{of}"' in series for key, of in labels.items()):
                total += float(value)
        return total

    def wait_metric(self, at_least: float, name: str, **labels: str) -> None:
        """Return when a series has reached a value."""
        wait_until(lambda: self.metric(name, **labels) >= at_least, f"{name} {labels} >= {at_least}")

    def wait_ready(self) -> Self:
        """Return itself once it holds a complete map: a client may still hold what an earlier server sent."""
        wait_until(lambda: self.get("/readyz")[0] == 200, "ready")
        return self

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.join()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.join()

    def join(self) -> int:
        """Wait for the end, which has been asked for; returns the exit code."""
        code = self.process.wait(DEADLINE)
        self._reading.join(DEADLINE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


class ServerFactory(Protocol):
    """Starts a server on a database; settings by their environment names. Ends with the test.

    ``module`` names another one to be run in place of ours.
    """

    def __call__(self, database: Database | str, *, module: str = "server", **settings: str) -> Server: ...


@pytest.fixture
def serve(tmp_path: Path, plugin: str) -> Iterator[ServerFactory]:
    """Servers of a test's own, with one state file unless it is given."""
    with ExitStack() as servers:

        def start(database: Database | str, *, module: str = "server", **settings: str) -> Server:
            environment = {
                "POSTGRES_CONNECTION_STRING": database if isinstance(database, str) else database.url(),
                "PORT": "0",
                "METRICS_PORT": "0",
                "STATE_FILE": str(tmp_path / "state"),
                "LOG_FORMAT": "json",
                **plugin_settings(plugin),
                **settings,
            }
            server = Server(environment, module=module)
            servers.callback(end, server)
            return server

        yield start


class RelayFactory(Protocol):
    """Starts a relay; settings by their environment names. Ends with the test."""

    def __call__(self, **settings: str) -> Server: ...


@pytest.fixture
def relay() -> Iterator[RelayFactory]:
    """Relays of a test's own."""
    with ExitStack() as relays:

        def start(**settings: str) -> Server:
            environment = {"PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json", **settings}
            one = Server(environment, "relay")
            relays.callback(end, one)
            return one

        yield start


def end(server: Server) -> None:
    """End a server that may have ended; it must not have met a fault of ours."""
    if server.process.poll() is None:
        server.kill()
    assert "Traceback" not in server.output, server.output


class Gateway:
    """A client of the legacy contract: fetches once, then streams and reopens its stream whenever it ends.

    ``refetch`` makes it the generation that fetches again before each stream and replaces its map by the
    answer.
    """

    def __init__(self, port: int, *, refetch: bool = False, fetch: bool = True) -> None:
        self.port = port
        self._refetch = refetch
        self.map: dict[str, bytes] = {}
        self.updates: list[tuple[str, bytes | None]] = []
        """Every update in the order of its arrival."""
        self.ends: list[grpc.StatusCode] = []
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._channel: grpc.Channel | None = None
        if fetch:
            self._fetch()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _stub(self) -> GatewayEndpointsStub:
        if self._channel is not None:
            self._channel.close()
        # The deployed client limits a message to 4 MiB; how a larger map is had is another test's matter.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        return GatewayEndpointsStub(self._channel)

    def _fetch(self) -> None:
        response = self._stub().FetchAuthDataSync(AuthDataRequest(), wait_for_ready=True, timeout=DEADLINE)
        with self._changed:
            self.map = {key: _bytes(endpoint) for key, endpoint in response.endpoints.items()}
            assert all(key == endpoint.endpoint_id for key, endpoint in response.endpoints.items())

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._refetch:
                    self._fetch()
                for update in self._stub().StreamAuthDataUpdates(AuthDataUpdatesRequest()):
                    self._apply(update.endpoint_id, None if update.delete else update.gateway_endpoint)
                self.ends.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                self.ends.append(error.code())
            self._stopped.wait(0.05)

    def _apply(self, endpoint_id: str, endpoint: GatewayEndpoint | None) -> None:
        with self._changed:
            if endpoint is None:
                self.map.pop(endpoint_id, None)
                self.updates.append((endpoint_id, None))
            else:
                assert endpoint.endpoint_id == endpoint_id
                self.map[endpoint_id] = _bytes(endpoint)
                self.updates.append((endpoint_id, self.map[endpoint_id]))
            self._changed.notify_all()

    def wait(self, condition: Callable[[Gateway], Any], what: str, deadline: float = DEADLINE) -> None:
        """Return when the condition holds for this client."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), deadline), f"a client never had {what}"

    def endpoint(self, endpoint_id: str) -> GatewayEndpoint | None:
        """Return what the client holds for an id."""
        with self._changed:
            payload = self.map.get(endpoint_id)
        return None if payload is None else GatewayEndpoint.FromString(payload)

    def key(self, endpoint_id: str) -> str | None:
        """Return the API key that the client holds for an id; None if it has no such endpoint or needs no
        key.
        """
        endpoint = self.endpoint(endpoint_id)
        return (
            endpoint.auth.static_api_key.api_key
            if endpoint and endpoint.auth.HasField("static_api_key")
            else None
        )

    def stop(self) -> None:
        """Close the connection and end."""
        self._stopped.set()
        if self._channel is not None:
            self._channel.close()
        self._thread.join(DEADLINE)


class GatewayFactory(Protocol):
    """Connects a client; it ends with the test."""

    def __call__(self, server: Server, *, refetch: bool = False, fetch: bool = True) -> Gateway: ...


@pytest.fixture
def gateway() -> Iterator[GatewayFactory]:
    """Clients of the legacy contract."""
    with ExitStack() as clients:

        def connect(server: Server, *, refetch: bool = False, fetch: bool = True) -> Gateway:
            client = Gateway(server.grpc, refetch=refetch, fetch=fetch)
            clients.callback(client.stop)
            return client

        yield connect


def expected(database: Database, mapping: str = "grove") -> dict[str, bytes]:
    """Return the mapping query's result, encoded by protobuf's own classes and not by ours: the oracle."""
    with closing(database.connect()) as session:  # in which nothing waits for ever for somebody's lock
        return expected_by(session, mapping)


def expected_by(session: connection, mapping: str = "grove", schema: str = "public") -> dict[str, bytes]:
    """Return the oracle as a session sees it now."""
    any_bytes = session.encoding in ("SQLASCII", "SQL_ASCII")
    if any_bytes:
        session.set_client_encoding("LATIN1")  # unconverted, and a character for each byte
    with session.cursor() as cursor:
        cursor.execute(_endpoints_query(mapping, schema), {})
        return endpoints_of(cursor, _text_of_bytes if any_bytes else None)


def endpoints_of(
    rows: Iterable[tuple[Any, ...]], text_of: Callable[[Any], Any] | None = None
) -> dict[str, bytes]:
    """Return what rows of the mapping are, by the written rule for odd ones (docs/operate.md).

    ``text_of`` makes text of each value, or raises ValueError for what is none.
    """
    found: dict[Any, set[tuple[str, bytes] | None]] = {}
    for row in rows:
        endpoint: tuple[str, bytes] | None = None
        with suppress(ValueError, TypeError, ArithmeticError, AttributeError):  # as what nobody can encode
            values = row if text_of is None else tuple(map(text_of, row))
            endpoint = values[0], _encode(*values)
            if sum(len(_as_bytes(part)) for part in endpoint) > MESSAGE_BYTES:
                endpoint = None
        found.setdefault(row[0], set()).add(endpoint)
    once = [payloads.pop() for name, payloads in found.items() if len(payloads) == 1 and name]
    return dict(endpoint for endpoint in once if endpoint is not None)


def _as_bytes(part: str | bytes) -> bytes:
    return part.encode() if isinstance(part, str) else part


def _text_of_bytes(value: Any) -> Any:
    return value.encode("latin-1").decode() if isinstance(value, str) else value


@cache
def _endpoints_query(mapping: str, schema: str) -> str:
    return load(mapping).within(schema).queries["Endpoints"]


def wait_equal(
    client: Gateway, database: Database, mapping: str = "grove", deadline: float = DEADLINE
) -> None:
    """Return when the client's map is the mapping query's result, byte for byte."""
    oracle = expected(database, mapping)
    with suppress(AssertionError):
        client.wait(lambda one: one.map == oracle, "the mapping query's result", deadline)
        return
    extra = client.map.keys() - oracle.keys()
    missing = oracle.keys() - client.map.keys()
    other = [key for key in oracle.keys() & client.map.keys() if oracle[key] != client.map[key]]
    raise AssertionError(
        f"{len(extra)} endpoints too many {sorted(extra)[:5]}, {len(missing)} missing {sorted(missing)[:5]},"
        f" {len(other)} other ones {sorted(other)[:5]}, of {len(oracle)}"
    )


def _encode(
    endpoint_id: str,
    secret_key: str | None,
    secret_key_required: bool | str | None,
    authorized_users: list[str] | None,
    account_id: str | None,
    plan_type: str | None,
    throughput_limit: Any,
    capacity_limit: Any,
) -> bytes:
    endpoint = GatewayEndpoint(endpoint_id=endpoint_id)
    if authorized_users is not None:
        endpoint.auth.jwt.SetInParent()
        for user in authorized_users:
            endpoint.auth.jwt.authorized_users[user].SetInParent()
    elif _flag(secret_key_required):
        endpoint.auth.static_api_key.api_key = secret_key or ""
    else:
        endpoint.auth.no_auth.SetInParent()
    limits = endpoint.rate_limiting
    limits.SetInParent()
    limits.throughput_limit, limits.capacity_limit = _limit(throughput_limit), _limit(capacity_limit)
    if limits.capacity_limit > 0:
        limits.capacity_limit_period = CapacityLimitPeriod.CAPACITY_LIMIT_PERIOD_MONTHLY
    endpoint.metadata.SetInParent()
    endpoint.metadata.account_id, endpoint.metadata.plan_type = account_id or "", plan_type or ""
    # The copy for clients of the contract's second revision: unknown fields here.
    limits.MergeFromString(endpoint.metadata.SerializeToString(deterministic=True))
    return _bytes(endpoint)


def _flag(value: bool | str | None) -> bool:
    """Return whether it is true, as Postgres reads it, or a number other than 0.

    Raises:
        ArithmeticError, ValueError: it is neither true nor false.

    """
    if not isinstance(value, str):
        return bool(value)
    word = value.strip().lower()
    for meaning, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off"))):
        if any(word and one.startswith(word) and word != "o" for one in words):
            return meaning
    return bool(Decimal(word))


def _limit(value: Any) -> int:
    """Return the nearest limit that the wire carries, away from 0.

    Raises:
        ArithmeticError, TypeError, ValueError: it is no number.

    """
    if isinstance(value, str):
        if not value.isascii() or "_" in value:  # which are numbers to Python
            raise ValueError
        value = float(value) if "inf" in value.lower() else Decimal(value)
    if not value:
        return 0
    if not -(2**31) <= value <= 2**31 - 1:
        if value != value:  # noqa: PLR0124 - NaN
            raise ValueError
        return 2**31 - 1 if value > 0 else -(2**31)
    return int(math.ceil(value) if value > 0 else math.floor(value))


def _bytes(endpoint: GatewayEndpoint) -> bytes:
    return endpoint.SerializeToString(deterministic=True)


def fill(database: Database, applications: int, *, plans: int = 10, per_account: int = 10) -> None:
    """Fill the ERD: every kind of plan, account and settings, evenly."""
    database.execute(
        """
        INSERT INTO pay_plans SELECT 'plan_' || g, g * 1000, g FROM generate_series(0, %(plans)s - 1) g;
        INSERT INTO accounts SELECT 'acc_' || g, 'plan_' || (g %% %(plans)s)
            FROM generate_series(0, %(accounts)s - 1) g;
        INSERT INTO portal_applications SELECT 'app_' || g, 'acc_' || (g %% %(accounts)s)
            FROM generate_series(1, %(applications)s) g;
        INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
            SELECT 'app_' || g, 'key_' || g, g %% 3 <> 0 FROM generate_series(1, %(applications)s) g
            WHERE g %% 7 <> 0;
        ANALYZE;
        """,
        {"applications": applications, "plans": plans, "accounts": max(1, applications // per_account)},
    )
