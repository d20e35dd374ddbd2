"""What an authorizer does while its feed comes, goes, and errs; one process, real gRPC."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from server.commands.demo.cluster import free_port
from tests.plugins.authorizer import Checks, parsed
from tests.plugins.server import DEADLINE, fill, wait_until
from tests.support.http2 import GOAWAY, connected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.authorizer import Authorizer, AuthorizerFactory
    from tests.plugins.feed import Scripted
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

SERVICE = "envoy.service.auth.v3.Authorization"
KEY = (("authorization", "Bearer key_1"),)
"""Of app_1, as `fill` makes it."""


def endpoint(endpoint_id: str, key: str | None = None, limit: int = 0) -> GatewayEndpoint:
    """Make one that is open, or asks for a key."""
    made = GatewayEndpoint(endpoint_id=endpoint_id)
    made.rate_limiting.throughput_limit = limit
    if key is None:
        made.auth.no_auth.SetInParent()
    else:
        made.auth.static_api_key.api_key = key
    return made


def health(authorizer: Authorizer, service: str = "") -> int:
    """Ask grpc.health.v1."""
    with grpc.insecure_channel(f"127.0.0.1:{authorizer.grpc}") as channel:
        stub: Any = HealthStub(channel)
        status: int = stub.Check(HealthCheckRequest(service=service), timeout=DEADLINE).status
        return status


def test_a_revoked_key_is_refused_and_a_new_one_works(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    fill(database, 100)
    authorizer = authorize(serve(database)).wait_ready()
    assert authorizer.check("/v1/app_1", KEY).code == 200
    database.execute(
        "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'"
    )
    authorizer.wait_answer(401, "/v1/app_1", KEY)
    database.execute(
        "UPDATE portal_application_settings SET secret_key = 'new' WHERE application_id = 'app_1'"
    )
    authorizer.wait_answer(200, "/v1/app_1", (("authorization", "new"),))
    assert authorizer.check("/v1/app_1", KEY).code == 401
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    authorizer.wait_answer(404, "/v1/app_1", KEY)
    assert "key_1" not in authorizer.output


def test_until_the_first_complete_map_nobody_is_known_and_nobody_unknown(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    assert authorizer.check("/v1/app_1").code == 503
    scripted.opened()
    scripted.send(endpoint("app_1"), proof=False)
    wait_until(lambda: authorizer.metric("pads_cdc_authorize_endpoints") == 1, "half a snapshot has come")
    for path in ("/v1/app_1", "/v1/app_unknown", "/"):
        answer = authorizer.check(path)
        assert answer.code == 503
        assert parsed(answer)["code"] == 503
    assert authorizer.get("/readyz")[0] == 503
    assert "no complete map" in authorizer.get("/healthz")[1]
    assert authorizer.get("/livez")[0] == 200
    assert health(authorizer) == health(authorizer, SERVICE) == HealthCheckResponse.NOT_SERVING
    assert authorizer.metric("pads_cdc_authorize_checks_total", outcome="not_ready") == 4
    scripted.send(endpoint("app_2"), end=True)
    authorizer.wait_answer(200, "/v1/app_1")
    assert authorizer.check("/v1/app_unknown").code == 404
    authorizer.wait_ready()
    wait_until(lambda: health(authorizer, SERVICE) == HealthCheckResponse.SERVING, "health says so")


def test_a_map_that_differs_goes_on_being_used_until_another_one_is_whole(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    scripted.opened()
    scripted.send(endpoint("app_1"), endpoint("app_2"), end=True)
    authorizer.wait_answer(200, "/v1/app_1")
    scripted.send(endpoint("app_3"), wrong=True)
    wait_until(
        lambda: scripted.acknowledged.get(timeout=DEADLINE).digest_mismatch, "the difference is reported"
    )
    assert authorizer.check("/v1/app_1").code == 200
    scripted.opened()
    scripted.send(endpoint("app_2", key="new"), proof=False)
    authorizer.wait_answer(401, "/v1/app_2")  # what the snapshot has brought counts already
    assert authorizer.check("/v1/app_1").code == 200, "what it has not brought yet goes on"
    assert authorizer.get("/readyz")[0] == 200
    scripted.send(endpoint("app_4"), end=True)
    authorizer.wait_answer(404, "/v1/app_1")
    assert authorizer.check("/v1/app_4").code == 200


def test_checks_that_cannot_be_decoded_are_answered_and_not_logged(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    with grpc.insecure_channel(f"127.0.0.1:{authorizer.grpc}") as channel:
        check: Any = channel.unary_unary(f"/{SERVICE}/Check")
        with pytest.raises(grpc.RpcError) as refused:
            check(b"\xff\xff\xff\xff", wait_for_ready=True, timeout=DEADLINE)
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert authorizer.check("/v1/app_1").code == 503
    assert "Traceback" not in authorizer.output


def test_without_its_feed_it_goes_on_and_says_how_old_its_map_is(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    fill(database, 10)
    server = serve(database, PROGRESS_INTERVAL="500ms")
    authorizer = authorize(server, STALENESS_HEADER="Portal-Map-Staleness").wait_ready()
    fresh = authorizer.check("/v1/app_1", KEY)
    assert float(fresh.downstream["portal-map-staleness"]) < 2
    server.kill()
    killed = time.monotonic()
    wait_until(lambda: authorizer.metric("pads_cdc_authorize_staleness_seconds") > 2.5, "staleness grows")
    assert authorizer.check("/v1/app_1", KEY).code == 200
    for path, code in (("/v1/app_1", 401), ("/v1/app_unknown", 404)):
        answer = authorizer.check(path)
        assert answer.code == code
        assert 2 < float(answer.downstream["portal-map-staleness"]) < time.monotonic() - killed + 2
    assert authorizer.get("/readyz")[0] == 200
    again = serve(database, PORT=str(server.grpc), PROGRESS_INTERVAL="500ms").wait_ready()
    wait_until(lambda: authorizer.metric("pads_cdc_authorize_staleness_seconds") < 2, "it heals")
    assert again.process.poll() is None


@pytest.mark.soak
def test_beyond_max_staleness_everything_is_refused_until_the_feed_is_back(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    fill(database, 10)
    server = serve(database, PROGRESS_INTERVAL="500ms")
    authorizer = authorize(server, MAX_STALENESS="3s").wait_ready()
    assert authorizer.check("/v1/app_1", KEY).code == 200
    server.kill()
    authorizer.wait_answer(503, "/v1/app_1", KEY)
    assert authorizer.check("/v1/app_unknown").code == 503
    assert authorizer.get("/readyz")[0] == 503
    assert "MAX_STALENESS" in authorizer.get("/healthz")[1]
    assert authorizer.metric("pads_cdc_authorize_ready") == 0
    serve(database, PORT=str(server.grpc), PROGRESS_INTERVAL="500ms")
    authorizer.wait_answer(200, "/v1/app_1", KEY)
    assert authorizer.metric("pads_cdc_authorize_checks_total", outcome="too_stale") > 0


def test_another_server_takes_over_where_one_is_gone(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory, tmp_path: Path
) -> None:
    fill(database, 10)
    first = serve(database, SLOT_NAME="one")
    second = serve(database, SLOT_NAME="two", STATE_FILE=str(tmp_path / "second"))
    authorizer = authorize(first, second).wait_ready()
    first.kill()
    database.execute(
        "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'"
    )
    authorizer.wait_answer(401, "/v1/app_1", KEY)


def test_sigterm_lets_envoy_go_elsewhere_before_it_ends(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}", DRAIN_TIME="2s")
    scripted.opened()
    scripted.send(endpoint("app_1"), end=True)
    authorizer.wait_ready()
    codes: list[int] = []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            codes.append(authorizer.check("/v1/app_1").code)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: len(codes) > 10, "checks are answered")
    authorizer.process.send_signal(signal.SIGTERM)
    wait_until(lambda: health(authorizer) == HealthCheckResponse.NOT_SERVING, "health says no at once")
    assert authorizer.get("/readyz")[0] == 503
    before = len(codes)
    wait_until(lambda: len(codes) > before + 10, "checks go on being answered")
    stopped.set()
    asking.join()
    assert authorizer.join() == 0
    assert set(codes) == {200}


def test_it_ends_amid_a_ripple(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}", DRAIN_TIME="10ms")
    scripted.opened()
    scripted.send(end=True)
    authorizer.wait_ready()
    for part in range(20):
        scripted.send(*(endpoint(f"app_{part}_{number}") for number in range(3_000)), proof=False)
    wait_until(lambda: authorizer.metric("pads_cdc_authorize_endpoints") > 0, "the ripple begins")
    authorizer.process.send_signal(signal.SIGTERM)
    assert authorizer.join() == 0
    assert "Traceback" not in authorizer.output


def test_signals_that_mean_nothing_here_end_nothing(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        authorizer.process.send_signal(number)
        assert authorizer.check("/").code == 503
    assert authorizer.process.poll() is None


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_ctrl_c_and_a_second_sigterm_do_not_wait(
    scripted: Scripted, authorize: AuthorizerFactory, signals: list[signal.Signals]
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}", DRAIN_TIME="1h")
    for number in signals:
        authorizer.process.send_signal(number)
        if number is signal.SIGTERM:
            authorizer.wait_log("stopping")
    assert authorizer.join() == 0


def test_local_rate_limits_follow_the_plan_at_once(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}", RATE_LIMIT="local")
    scripted.opened()
    scripted.send(endpoint("app_1", limit=2), endpoint("app_2"), end=True)
    authorizer.wait_ready()
    answers = [authorizer.check("/v1/app_1") for _ in range(20)]
    limited = [answer for answer in answers if answer.code == 429]
    assert {answer.code for answer in answers} == {200, 429}
    assert limited[0].downstream["retry-after"] == "1"
    assert parsed(limited[0]) == {"code": 429, "message": "rate limit exceeded"}
    assert limited[0].metadata["endpoint_id"] == "app_1"
    assert {authorizer.check("/v1/app_2").code for _ in range(50)} == {200}, "no limit is none"
    assert authorizer.metric("pads_cdc_authorize_checks_total", outcome="rate_limited") == len(limited)
    scripted.send(endpoint("app_1", limit=100_000))
    authorizer.wait_answer(200, "/v1/app_1")
    assert {authorizer.check("/v1/app_1").code for _ in range(50)} == {200}
    scripted.send(endpoint("app_1", limit=1))
    authorizer.wait_answer(429, "/v1/app_1")


def test_with_headers_nobody_is_limited_here(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    scripted.opened()
    scripted.send(endpoint("app_1", limit=1), end=True)
    authorizer.wait_ready()
    assert {authorizer.check("/v1/app_1").upstream["Rl-Throughput"] for _ in range(30)} == {"1"}


def test_settings_of_headers_and_path(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(
        f"127.0.0.1:{scripted.port}",
        ID_HEADER="X-App",
        ID_PATH_PREFIX="/gw/v2/",
        UPSTREAM_ENDPOINT_HEADER="endpoint-id",
        UPSTREAM_ACCOUNT_HEADER="none",
        UPSTREAM_LIMITED_HEADER="rl-endpoint-id",
        UPSTREAM_THROUGHPUT_HEADER="rl-throughput",
        REMOVE_AUTHORIZATION="false",
    )
    scripted.opened()
    scripted.send(endpoint("app_1", limit=7), end=True)
    authorizer.wait_ready()
    for path, headers in (("/gw/v2/app_1/x", ()), ("/v1/other", (("x-app", "app_1"),))):
        answer = authorizer.check(path, headers)
        assert answer.upstream == {"endpoint-id": "app_1", "rl-endpoint-id": "app_1", "rl-throughput": "7"}
        assert not answer.removed
    assert authorizer.check("/v1/app_1").code == 400


def test_without_a_header_for_it_no_subject_is_believed(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    scripted.opened()
    wanted = GatewayEndpoint(endpoint_id="app_1")
    wanted.auth.jwt.authorized_users["auth0|alice"].SetInParent()
    scripted.send(wanted, end=True)
    authorizer.wait_ready()
    for name in ("jwt-user-id", "x-jwt-user-id", "", "authorization"):
        for raw in (False, True):
            assert authorizer.check("/v1/app_1", [(name, "auth0|alice")], raw=raw).code == 401


def test_ids_that_no_request_can_name_are_counted(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    scripted.opened()
    scripted.send(endpoint("app_1"), endpoint("app 2"), endpoint("app/3"), end=True)
    authorizer.wait_ready()
    assert authorizer.metric("pads_cdc_authorize_unnameable_endpoints") == 2
    assert authorizer.metric("pads_cdc_authorize_endpoints") == 3


def test_reflection_names_the_service(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    with grpc.insecure_channel(f"127.0.0.1:{authorizer.grpc}") as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert set(known.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
        assert "envoy/service/auth/v3/external_auth.proto" in known.FindFileContainingSymbol(SERVICE).name


def test_a_method_whose_name_is_not_utf_8_ends_nothing(
    scripted: Scripted, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    with connected(authorizer.grpc) as stranger:
        stranger.call(1, b"/\xff\xfe/Check")
        stranger.ping()
        assert authorizer.check("/").code == 503
        assert not [frame for frame in stranger.frames if frame[0] == GOAWAY]


def test_a_request_without_anything_is_answered(scripted: Scripted, authorize: AuthorizerFactory) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    scripted.opened()
    scripted.send(endpoint("app_1"), end=True)
    authorizer.wait_ready()
    assert authorizer.check("").code == 400


def test_what_else_listens_there_is_one_line(
    scripted: Scripted, authorize: AuthorizerFactory, pads_cdc: Callable[..., Any]
) -> None:
    authorizer = authorize(f"127.0.0.1:{scripted.port}")
    for settings, named in (
        ({"PORT": str(authorizer.grpc), "METRICS_PORT": "0"}, "PORT"),
        ({"PORT": str(authorizer.grpc), "METRICS_PORT": "0", "WORKERS": "2"}, "PORT"),
        ({"PORT": "0", "METRICS_PORT": str(authorizer.http)}, "METRICS_PORT"),
        ({"PORT": "0", "METRICS_PORT": "0", "UNIX_SOCKET": "/nowhere/at/all"}, "UNIX_SOCKET"),
    ):
        ended = pads_cdc("authorize", FEED_ADDRESSES=f"127.0.0.1:{free_port()}", **settings)
        assert ended.returncode == 1, settings
        [line] = [line for line in ended.stderr.splitlines() if line.startswith("pads-cdc:")]
        assert named in line


def test_a_unix_socket_is_ours_and_our_group_s(
    scripted: Scripted, authorize: AuthorizerFactory, tmp_path: Path
) -> None:
    path = tmp_path / "authorize.sock"
    first = authorize(f"127.0.0.1:{scripted.port}", UNIX_SOCKET=str(path))
    scripted.opened()
    scripted.send(endpoint("app_1"), end=True)
    first.wait_ready()
    assert path.stat().st_mode & 0o777 == 0o660
    checks = Checks(f"unix:{path}")
    assert checks("/v1/app_1").code == 200
    checks.close()
    first.kill()
    assert path.exists(), "what a killed process leaves behind"
    second = authorize(f"127.0.0.1:{scripted.port}", UNIX_SOCKET=str(path))
    checks = Checks(f"unix:{path}")
    assert checks("/v1/app_1").code == 503
    checks.close()
    assert second.stop() == 0
