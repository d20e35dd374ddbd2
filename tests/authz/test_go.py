"""What the authorizer in Go does beyond the table of requests: how it keeps connections, and how it ends."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.plugins.authorizer import Checks, GoAuthorizer
from tests.plugins.server import DEADLINE
from tests.support.http2 import GOAWAY, connected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.feed import Scripted


@pytest.fixture
def program(programs: Path) -> Path:
    """The program."""
    found = programs / "ext-authz"
    if not found.exists():
        pytest.skip("ext-authz is not built with Debian's libraries: they lack Envoy's messages")
    return found


@pytest.fixture
def in_go(program: Path, scripted: Scripted) -> Iterator[GoAuthorizer]:
    """One whose feed says nothing."""
    with GoAuthorizer(program, f"127.0.0.1:{scripted.port}") as running:
        assert running.check("/").code == 503
        yield running


@pytest.mark.soak  # it drains for 3 s
def test_who_watches_its_health_does_not_keep_it_from_ending(in_go: GoAuthorizer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{in_go.grpc}") as channel:
        stub: Any = HealthStub(channel)
        watch = iter(stub.Watch(HealthCheckRequest()))
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        in_go.process.send_signal(signal.SIGTERM)
        assert in_go.process.wait(DEADLINE) == 0


@pytest.mark.soak  # for four of Envoy's pings
def test_envoy_s_pings_do_not_end_an_idle_connection(in_go: GoAuthorizer) -> None:
    with connected(in_go.grpc) as envoy:
        for count in range(1, 5):
            envoy.ping()
            envoy.wait(6, flags=1, count=count)
            time.sleep(6)  # Envoy waits for 15 s
        assert not [frame for frame in envoy.frames if frame[0] == GOAWAY]


def test_the_socket_of_a_killed_process_is_replaced_and_that_of_a_living_one_is_not(
    program: Path, scripted: Scripted, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path / 'authz.sock'}"
    options = ("-listen", address, f"127.0.0.1:{scripted.port}")  # the later -listen counts
    with GoAuthorizer(program, *options) as first, closing(Checks(address)) as checks:
        assert checks("/").code == 503
        with GoAuthorizer(program, *options) as second:
            assert second.process.wait(DEADLINE) == 1
        assert checks("/").code == 503
        first.process.kill()
        first.process.wait()
    with GoAuthorizer(program, *options), closing(Checks(address)) as checks:
        assert checks("/").code == 503
