"""File descriptors: the soft limit is raised, and operators are answered when clients take all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import AuthDataRequest
from pads_cdc_client.pb.gateway_endpoint_pb2_grpc import GatewayEndpointsStub

from tests.plugins.server import DEADLINE, Server, end, fill, wait_equal, wait_until
from tests.support.crowd import Strangers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.figures import Figure
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With which a client of HTTP/2 begins, so that gRPC's handshake is done."""


class Limited(Server):
    """A server whose descriptors are limited: the soft limit, and the hard one."""

    def __init__(self, environment: dict[str, str], soft: int, hard: int) -> None:
        self.prefix = ("prlimit", f"--nofile={soft}:{hard}")
        super().__init__(environment)

    @property
    def limit(self) -> int:
        """The soft limit that holds."""
        limits = Path(f"/proc/{self.process.pid}/limits").read_text().splitlines()
        return next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))

    @property
    def open(self) -> int:
        """Descriptors that are in use."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def answers(self) -> bool:
        """Whether operators and orchestrators are answered."""
        return all(self.get(path)[0] == 200 for path in ("/livez", "/readyz", "/metrics", "/"))


@pytest.fixture
def limited(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Limited]:
    """A server with the limits that the test's parameter says."""
    fill(database, 20)
    environment = {
        "POSTGRES_CONNECTION_STRING": database.url(),
        "PORT": "0",
        "METRICS_PORT": "0",
        "STATE_FILE": str(tmp_path / "state"),
        "LOG_FORMAT": "json",
    }
    server = Limited(environment, *request.param)
    server.wait_ready()
    yield server
    end(server)


@pytest.mark.parametrize("limited", [(64, 4_096), (1_024, 4_096)], indirect=True)
def test_the_soft_limit_is_raised(limited: Limited) -> None:
    assert limited.limit == 4_096
    assert limited.stop() == 0


@pytest.mark.parametrize(
    "limited", [(64, 64), pytest.param((1_024, 1_024), marks=pytest.mark.soak)], indirect=True
)
def test_clients_of_grpc_take_all_that_they_can_have(
    limited: Limited, database: Database, gateway: GatewayFactory, figure: Figure
) -> None:
    client = gateway(limited)
    wait_equal(client, database)
    with Strangers(limited.grpc, _PREFACE) as crowd:
        crowd.come(limited.limit + 100)
        wait_until(lambda: crowd.open < limited.limit, "some are refused")
        assert crowd.open > 4
        assert limited.answers()
        figure(f"a limit of {limited.limit:,} descriptors: {crowd.open:,} gRPC clients, and health answers")
        # What we need ourselves is there too: the database hangs up, and is connected to again.
        database.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        database.execute("UPDATE pay_plans SET throughput_limit = 7")
        wait_equal(client, database)
        wait_until(lambda: limited.get("/healthz")[0] == 200, "healthy")
        assert limited.open < limited.limit
    with grpc.insecure_channel(f"127.0.0.1:{limited.grpc}") as channel:
        fetch = GatewayEndpointsStub(channel).FetchAuthDataSync
        assert fetch(AuthDataRequest(), wait_for_ready=True, timeout=DEADLINE).endpoints
    assert limited.stop() == 0


@pytest.mark.parametrize(
    "limited", [(64, 64), pytest.param((1_024, 1_024), marks=pytest.mark.soak)], indirect=True
)
def test_strangers_at_the_metrics_port_make_room_for_who_asks(
    limited: Limited, database: Database, gateway: GatewayFactory
) -> None:
    client = gateway(limited)
    wait_equal(client, database)
    with (
        Strangers(limited.http) as silent,
        Strangers(limited.http, b"GET /livez HTTP/1.1\r\nHost: x") as slow,
    ):
        for _ in range(5):
            silent.come(limited.limit // 4)
            slow.come(limited.limit // 4)
            assert limited.answers()
        wait_until(lambda: not silent.open and not slow.open, "who asks nothing is sent away")
        database.execute("UPDATE pay_plans SET throughput_limit = 7")
        wait_equal(client, database)
    assert limited.stop() == 0


@pytest.mark.parametrize("limited", [(64, 64)], indirect=True)
def test_both_ports_are_taken_at_once(limited: Limited, database: Database, gateway: GatewayFactory) -> None:
    client = gateway(limited)
    wait_equal(client, database)
    with Strangers(limited.http) as strangers, Strangers(limited.grpc, _PREFACE) as crowd:
        for _ in range(3):
            crowd.come(100)
            strangers.come(100)
            assert limited.answers()
            assert limited.open < limited.limit
        database.execute("UPDATE pay_plans SET throughput_limit = 7")
        wait_equal(client, database)
    assert limited.stop() == 0
