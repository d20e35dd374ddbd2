"""The Go clients as they are built for people, against the real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from pads_cdc_client.digest import Digest
from pads_cdc_client.pb import gateway_endpoint_pb2
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2

from tests.plugins.server import DEADLINE, expected, fill
from tests.support import ROOT
from tests.support.certificates import Authority, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.descriptor import FileDescriptor

    from tests.plugins.feed import Unsettled
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

TOKEN = "go-clients-token-" * 3
LINES = 300
"""The feed's client is to be read in one sitting."""


class GoClient:
    """A client's process, and the events that it printed."""

    def __init__(self, program: Path, port: int, *options: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._printed = threading.Condition()
        self.process = subprocess.Popen(
            [program, *options, f"127.0.0.1:{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._reading = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)
        self._reading.join(DEADLINE)

    def wait(self, event: str, after: int = 0, **details: Any) -> int:
        """Return the index behind the first such event from ``after`` on."""

        def find() -> int | None:
            for index, each in enumerate(self.events[after:], after + 1):
                if each["event"] == event and details.items() <= each.items():
                    return index
            return None

        with self._printed:
            found = self._printed.wait_for(find, DEADLINE)
        assert found, (event, details, self.events[-5:])
        return found

    def wait_equal(self, database: Database, after: int = 0) -> int:
        """Return the index behind the first event by which the map was the mapping query's result."""
        oracle = expected(database)
        digest = bytes(Digest.of(oracle)).hex()

        def find() -> int | None:
            for index, each in enumerate(self.events[after:], after + 1):
                if each.get("digest") == digest and each["endpoints"] == len(oracle):
                    return index
            return None

        with self._printed:
            found = self._printed.wait_for(find, DEADLINE)
        assert found, (len(oracle), digest, self.events[-5:])
        return found

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._printed:
                self.events.append(json.loads(line))
                self._printed.notify_all()


class GoFactory(Protocol):
    """Starts a program on a port; it ends with the test."""

    def __call__(self, program: str, port: int, *options: str) -> GoClient: ...


@pytest.fixture
def go(programs: Path) -> Iterator[GoFactory]:
    with ExitStack() as clients:
        yield lambda program, port, *options: clients.enter_context(
            GoClient(programs / program, port, *options)
        )


def test_the_feed_client_proves_its_map_resumes_and_sweeps(
    database: Database, serve: ServerFactory, go: GoFactory, tmp_path: Path
) -> None:
    fill(database, 1000)
    server = serve(database)
    client = go("feed-client", server.grpc)
    client.wait("opened", resumed=False, reason="RESET_REASON_NO_TOKEN")
    seen = client.wait_equal(database)
    database.execute(
        """UPDATE portal_application_settings SET secret_key = 'rotated' WHERE application_id = 'app_1';
        DELETE FROM portal_applications WHERE id = 'app_2'"""
    )
    seen = client.wait_equal(database, seen)

    assert server.stop() == 0
    seen = client.wait("lost", seen)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_3'")
    server = serve(database, PORT=str(server.grpc))
    seen = client.wait("opened", seen, resumed=True)
    seen = client.wait_equal(database, seen)

    assert server.stop() == 0
    database.execute(  # neither the WAL nor a state file tells this server that they were ever there
        """SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
            WHERE database = current_database();
        DELETE FROM portal_applications WHERE id IN ('app_4', 'app_5')"""
    )
    server = serve(database, PORT=str(server.grpc), STATE_FILE=str(tmp_path / "another"))
    seen = client.wait("opened", seen, resumed=False, reason="RESET_REASON_GAP")
    client.wait_equal(database, seen)

    assert not [each for each in client.events if each["event"] == "mismatch"]
    assert "rotated" not in json.dumps(client.events)
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait(DEADLINE) == 0


def test_one_that_stalls_gets_the_latest_and_not_every_step(
    database: Database, serve: ServerFactory, go: GoFactory
) -> None:
    fill(database, 10)
    port = serve(database).grpc
    client = go("feed-client", port)
    seen = client.wait_equal(database)
    client.process.send_signal(signal.SIGSTOP)  # it misses a hundred changes of one key
    for number in range(100):
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = 'app_1'",
            (f"key {number}",),
        )
    client.process.send_signal(signal.SIGCONT)
    client.wait_equal(database, seen)


def test_staleness_grows_while_the_server_is_away(
    database: Database, serve: ServerFactory, go: GoFactory
) -> None:
    fill(database, 10)
    server = serve(database, PROGRESS_INTERVAL="1s")
    client = go("feed-client", server.grpc)
    seen = client.wait_equal(database)
    server.kill()
    started = time.monotonic()
    for _ in range(4):
        seen = client.wait("lost", seen)
    away = time.monotonic() - started
    stale = client.events[seen - 1]["staleness_seconds"]
    assert away - 0.5 < stale < away + DEADLINE


def test_the_old_client_comes_back_without_a_fetch(
    database: Database, serve: ServerFactory, go: GoFactory
) -> None:
    fill(database, 200)
    server = serve(database)
    client = go("old-client", server.grpc)
    seen = client.wait("fetched", endpoints=200)
    client.wait_equal(database)
    database.execute("UPDATE pay_plans SET throughput_limit = 77 WHERE plan_type = 'plan_1'")
    seen = client.wait_equal(database, seen)
    assert server.stop() == 0
    seen = client.wait("ended", seen)
    seen = client.wait("lost", seen)
    database.execute("DELETE FROM portal_applications WHERE id IN ('app_1', 'app_2')")
    serve(database, PORT=str(server.grpc))
    client.wait_equal(database, seen)
    assert [each["event"] for each in client.events].count("fetched") == 1
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("restarts", "within"),
    [
        pytest.param(2, DEADLINE, marks=pytest.mark.slow),
        pytest.param(9, 7.0, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_clients_of_all_generations_are_back_soon_after_each_restart(
    database: Database, serve: ServerFactory, go: GoFactory, restarts: int, within: float
) -> None:
    """... and never in a hot loop. What their delays make of how a stream ends is Go's own code, gRPC's
    reconnecting included. The seconds hold for a machine that has nothing else to do.
    """
    fill(database, 100)
    server = serve(database)
    clients = [go("old-client", server.grpc, f"-generation={number}") for number in (1, 2, 3)]
    seen = [client.wait("opened") for client in clients]
    late: list[tuple[int, int, float]] = []
    for restart in range(restarts):
        assert server.stop() == 0
        stopped = [client.wait("ended", start) for client, start in zip(clients, seen, strict=True)]
        server = serve(database, PORT=str(server.grpc)).wait_ready()
        ready = time.monotonic()
        for number, client in enumerate(clients):
            seen[number] = client.wait("opened", stopped[number])
            late.append((restart, number + 1, time.monotonic() - ready))
            between = [one["event"] for one in client.events[stopped[number] - 1 : seen[number]]]
            assert between.count("ended") == 1, "no stream but the one that was served ends with OK"
            # After the first one a client waits 2 s at least before each attempt.
            assert between.count("opening") <= 2 + (time.monotonic() - ready + DEADLINE) / 2
            client.wait_equal(database, stopped[number])
    assert [one for one in late if one[2] > within] == []


def test_both_through_tls_with_a_certificate_and_a_token(
    database: Database, serve: ServerFactory, go: GoFactory, tmp_path: Path
) -> None:
    fill(database, 10)
    authority = Authority()
    pair = authority.issue("both")  # it is good for either side
    files = {
        "ca": str(write_secret(tmp_path / "ca", authority.certificate)),
        "cert": str(write_secret(tmp_path / "cert", pair.certificate)),
        "key": str(write_secret(tmp_path / "key", pair.key)),
        "token": str(write_secret(tmp_path / "token", f"{TOKEN}\n")),
    }
    server = serve(
        database,
        TLS_CERT_FILE=files["cert"],
        TLS_KEY_FILE=files["key"],
        TLS_CLIENT_CA_FILE=files["ca"],
        AUTH_TOKENS_FILE=str(write_secret(tmp_path / "tokens", f"gateway:{TOKEN}\n")),
    )
    options = [f"-{name}={file}" for name, file in files.items()]
    for program in ("feed-client", "old-client"):
        go(program, server.grpc, *options).wait_equal(database)
    stranger = go("feed-client", server.grpc, *options[:-1])
    stranger.wait("lost")
    assert "Unauthenticated" in stranger.events[0]["why"]
    assert stranger.events[0]["retry_seconds"] >= 30


def test_the_committed_go_stubs_are_of_the_present_protos() -> None:
    for file, stub in (
        (endpoint_feed_pb2.DESCRIPTOR, "pads/cdc/v1/endpoint_feed.pb.go"),
        (gateway_endpoint_pb2.DESCRIPTOR, "proto/gateway_endpoint.pb.go"),
    ):
        text = (ROOT / "examples/go/gen" / stub).read_text()
        raw = re.search(r"_rawDesc = \[\]byte\{(.*?)\}", text, re.DOTALL)
        assert raw is not None
        embedded = FileDescriptorProto.FromString(bytes.fromhex(re.sub(r"0x|[,\s]", "", raw[1])))
        assert _comparable(embedded) == _comparable(_proto(file)), f"{stub} is stale: make go-stubs"


def test_the_feed_client_takes_an_unsettled_checkpoint_for_no_proof(
    unsettled: Unsettled, go: GoFactory
) -> None:
    client = go("feed-client", unsettled.port)
    seen = client.wait("unsettled", endpoints=1)
    seen = client.wait("unsettled", seen)
    assert not [event for event in client.events if event["event"] == "proved"]
    unsettled.rest.set()
    client.wait("proved", seen, endpoints=1)


def test_the_authorizer_stays_short() -> None:
    files = (ROOT / "examples/go/cmd/ext-authz").glob("*.go")
    assert sum(each.read_text().count("\n") for each in files) <= 250


def test_the_feed_client_stays_short() -> None:
    files = [each for each in (ROOT / "examples/go/feed").glob("*.go") if not each.name.endswith("_test.go")]
    assert sum(each.read_text().count("\n") for each in files) < LINES


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    message = FileDescriptorProto()
    file.CopyToProto(message)
    return message


def _comparable(file: FileDescriptorProto) -> bytes:
    """Leave out what differs between generators: the path, and the JSON names, which follow from names."""
    file.name = ""
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
    return file.SerializeToString(deterministic=True)
