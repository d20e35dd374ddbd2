"""The Python client against the real server: cut off at random, moved, misled, stopped."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest
from pads_cdc_client import Change, EndpointFeed, FeedStoppedError
from pads_cdc_client.digest import Digest
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.retry import Backoff, Remedy, remedy

from tests.plugins.feed import wait_exact
from tests.plugins.server import DEADLINE, expected, fill, wait_until
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.feed import FeedFactory, Scripted
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory


def rotate(database: Database, number: int, key: str) -> None:
    database.execute(
        "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
        " WHERE application_id = %s",
        (key, f"app_{number}"),
    )


def test_a_map_a_callback_and_how_stale_it_is(
    database: Database, serve: ServerFactory, either_feed: FeedFactory
) -> None:
    fill(database, 100)
    server = serve(database, PROGRESS_INTERVAL="200ms")
    changes: list[Change] = []
    client = either_feed(server, on_change=changes.append)
    assert client.wait_ready(DEADLINE)
    assert len(client) == len(changes) == 100
    wait_until(lambda: client.staleness() < 1, "a fresh map")
    rotate(database, 1, "rotated-secret")
    wait_until(lambda: len(changes) == 101, "the callback")
    endpoint = client.get("app_1")
    assert endpoint is not None
    assert endpoint.auth.static_api_key.api_key == "rotated-secret"
    assert "rotated-secret" not in repr(changes[-1])
    assert changes[-1].after == client.endpoints["app_1"]
    assert client.get("app_none") is None
    server.kill()
    wait_until(lambda: client.staleness() > 1, "a map that grows stale")
    assert client.ready, "a server that is away is no reason to turn anybody away"
    assert len(client) == 100


def test_a_token_file_amid_its_renewal_is_waited_out_and_never_shown(
    scripted: Scripted,
    either_feed: FeedFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pads_cdc_client.feed.Backoff", partial(Backoff, late=0.01))
    files = iter([b"sesame\xff", "sesam\u00e9".encode(), b"sesame\nsesame", b"sesame"])
    scripted.opened()
    scripted.send(end=True)
    target = f"127.0.0.1:{scripted.port}"
    client = either_feed(target, bearer=lambda: next(files).decode())
    assert client.wait_ready(DEADLINE)
    assert client.attempts == 1, "of the others nobody was told"
    assert "is malformed" in caplog.text
    assert "sesam" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cuts", [40, pytest.param(100, marks=pytest.mark.soak)])
def test_a_client_cut_off_many_times_is_exact_at_each_token(
    database: Database, serve: ServerFactory, cuts: int
) -> None:
    fill(database, 2000)
    server = serve(database, PROGRESS_INTERVAL="200ms")
    stop, writing = threading.Event(), threading.Lock()
    writer = threading.Thread(target=storm, args=(database, stop, writing))
    with Proxy(server.grpc) as proxy, ExitStack() as after:
        client = after.enter_context(EndpointFeed(f"127.0.0.1:{proxy.port}", client_id="storm"))
        assert client.wait_ready(DEADLINE)
        snapshot = client.received_bytes
        after.callback(writer.join)
        after.callback(stop.set)
        writer.start()
        for cut in range(1, cuts + 1):
            wait_cut(client, proxy)
            if cut % 20 == 0:
                with writing:
                    oracle = expected(database)
                    wait_exact(client, oracle)
                    proofs = client.proofs
                    wait_until(lambda: client.proofs > proofs, "a proof")  # noqa: B023 (called at once)
                    assert bytes(Digest.of(client.endpoints)) == bytes(Digest.of(oracle))
        assert client.attempts > cuts / 2, "some are cut while they connect, which gRPC itself tries again"
        # One snapshot, at the beginning: no digest ever differed, no token was ever refused.
        assert client.resets == 1
        assert client.received_bytes < 20 * snapshot, (
            "a hundred resumes cost what changed, not a snapshot each"
        )


def storm(database: Database, stop: threading.Event, writing: threading.Lock) -> None:
    """Change this and that, some hundred times a second."""
    choose = random.Random(7)  # noqa: S311 (which one is no secret)
    with database.connect().cursor() as cursor:
        for number in itertools.count(1):
            if stop.wait(0.002):
                return
            app = f"app_{choose.randint(1, 2000)}"
            with writing:
                cursor.execute(
                    "UPDATE portal_application_settings SET secret_key = %s WHERE application_id = %s",
                    (str(number), app),
                )
                if number % 20 == 0:
                    cursor.execute("DELETE FROM portal_applications WHERE id = %s", (app,))
                    cursor.execute("INSERT INTO portal_applications VALUES (%s, 'acc_1')", (f"new_{number}",))
                if number % 50 == 0:
                    plan = f"plan_{choose.randint(0, 9)}"
                    cursor.execute("UPDATE accounts SET plan_type = %s WHERE id = 'acc_7'", (plan,))


def wait_cut(client: EndpointFeed, proxy: Proxy) -> None:
    """Cut the client off after a proof, or while it is still connecting, opening or reading."""
    attempts, proofs, hasty = client.attempts, client.proofs, random.random() < 0.3  # noqa: S311
    wait_until(lambda: client.proofs > proofs or (hasty and client.attempts > attempts), "a moment to cut")
    wait_until(lambda: proxy.cut() > 0, "a connection to cut")


def test_a_client_moves_between_servers_and_never_goes_back(
    database: Database,
    serve: ServerFactory,
    feed: FeedFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fill(database, 50)
    folder = tmp_path_factory.mktemp("states")
    states = {f"pads_{n}": str(folder / str(n)) for n in range(2)}
    servers = [
        serve(database, SLOT_NAME=name, STATE_FILE=state, PROGRESS_INTERVAL="200ms")
        for name, state in states.items()
    ]
    keys: list[int] = []

    def note(change: Change) -> None:
        endpoint = client.get("app_1")
        if change.endpoint_id == "app_1" and endpoint is not None:
            keys.append(int(endpoint.auth.static_api_key.api_key.removeprefix("key_")))

    with ExitStack() as closing:
        proxies = [closing.enter_context(Proxy(server.grpc)) for server in servers]
        client = feed(*(f"127.0.0.1:{proxy.port}" for proxy in proxies), on_change=note)
        assert client.wait_ready(DEADLINE)
        # A token is good at the other server from the moment on at which that one began to follow.
        for server in servers:
            server.wait_metric(50, "pads_cdc_endpoints")
        rotate(database, 1, "1")
        wait_exact(client, expected(database))
        proofs = client.proofs
        wait_until(lambda: client.proofs > proofs, "a token of now")
        for number in range(2, 12):
            rotate(database, 1, str(number))
            proofs = client.proofs
            for proxy in proxies:
                proxy.cut()
            wait_until(lambda: client.proofs > proofs, "a proof at the other server")  # noqa: B023 (called at once)
        wait_exact(client, expected(database))
        assert keys == sorted(keys)
        assert client.resets == 1


def test_a_map_that_has_gone_wrong_is_noticed_and_had_anew(
    database: Database, serve: ServerFactory, either_feed: FeedFactory
) -> None:
    fill(database, 50)
    server = serve(database, PROGRESS_INTERVAL="100ms")
    token: bytes
    with EndpointFeed(f"127.0.0.1:{server.grpc}", client_id="one") as one:
        assert one.wait_ready(DEADLINE)
        held, token = dict(one.endpoints), one.resume_token
    held["app_1"], held["app_ghost"] = b"damaged", b"damaged"
    del held["app_2"]
    client = either_feed(server, endpoints=held, resume_token=token)
    wait_exact(client, expected(database))
    assert client.resets == 1
    assert server.metric("pads_cdc_feed_resets_total", reason="digest_mismatch") == 1


def test_a_map_that_was_kept_is_resumed_in_the_next_process(
    database: Database, serve: ServerFactory, feed: FeedFactory
) -> None:
    fill(database, 500)
    server = serve(database)
    with EndpointFeed(f"127.0.0.1:{server.grpc}", client_id="one") as one:
        assert one.wait_ready(DEADLINE)
    rotate(database, 1, "while away")
    client = feed(server, endpoints=one.endpoints, resume_token=one.resume_token)
    wait_exact(client, expected(database))
    assert client.resets == 0
    assert client.received_bytes < one.received_bytes / 10


def test_code_in_asyncio_uses_the_same_client(database: Database, serve: ServerFactory) -> None:
    fill(database, 10)
    server = serve(database)

    async def main() -> None:
        loop, seen = asyncio.get_running_loop(), asyncio.Event()

        def note(change: Change) -> None:
            if change.endpoint_id == "app_new":
                loop.call_soon_threadsafe(seen.set)

        async with EndpointFeed(f"127.0.0.1:{server.grpc}", client_id="aio", on_change=note) as client:
            async with asyncio.timeout(DEADLINE):
                await client.until_ready()
                await asyncio.to_thread(
                    database.execute, "INSERT INTO portal_applications VALUES ('app_new', 'acc_0')"
                )
                await seen.wait()
            assert client.get("app_new") is not None

    asyncio.run(main())


def test_nobody_waits_for_a_feed_that_will_never_be(database: Database, serve: ServerFactory) -> None:
    server = serve(database)
    with EndpointFeed(f"127.0.0.1:{server.grpc}", client_id="a bug\n") as client:
        with pytest.raises(FeedStoppedError, match="client_id"):
            client.wait_ready(DEADLINE)
        with pytest.raises(FeedStoppedError):
            asyncio.run(client.until_ready())
    with EndpointFeed("127.0.0.1:1", client_id="nobody there") as client:
        assert not client.wait_ready(0.1)
        assert client.staleness() == float("inf")
    with pytest.raises(FeedStoppedError, match="closed"):
        client.wait_ready(DEADLINE)


def test_a_callback_that_fails_and_one_that_closes_do_no_harm(
    database: Database, serve: ServerFactory, feed: FeedFactory, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database, 5)
    server = serve(database)

    def fail(_: Change) -> None:
        raise ValueError("of the user's")

    assert feed(server, on_change=fail).wait_ready(DEADLINE)
    assert "a callback failed for app_" in caplog.text
    closing: EndpointFeed = feed(server, on_change=lambda _: closing.close())
    closing._thread.join(DEADLINE)
    assert not closing._thread.is_alive()
    assert len(closing) == 5, "the batch that was being applied is in"


def test_a_server_that_falls_silent_is_given_up(
    database: Database, serve: ServerFactory, either_feed: FeedFactory
) -> None:
    fill(database, 5)
    server = serve(database, PROGRESS_INTERVAL="300ms")
    with Proxy(server.grpc) as proxy:
        client = either_feed(f"127.0.0.1:{proxy.port}")
        assert client.wait_ready(DEADLINE)
        proxy.stalled = True
        rotate(database, 1, "unheard")
        began = time.monotonic()
        wait_until(lambda: client.attempts > 1, "another attempt")
        assert time.monotonic() - began < 10
        proxy.stalled = False
        wait_exact(client, expected(database))


def test_what_each_status_asks_for() -> None:
    stop = [code for code in grpc.StatusCode if remedy(code) is Remedy.STOP]
    assert stop == [grpc.StatusCode.INVALID_ARGUMENT]
    assert remedy(grpc.StatusCode.UNAVAILABLE) is remedy(grpc.StatusCode.OK) is Remedy.RETRY
    assert remedy(grpc.StatusCode.UNAUTHENTICATED) is Remedy.BACK_OFF


def test_waits_double_up_to_a_bound_and_are_never_the_same_for_all() -> None:
    backoff = Backoff(first=1, most=8, late=60)
    waits = [backoff.wait(Remedy.RETRY) for _ in range(6)]
    for wait, bound in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert bound / 2 <= wait <= bound
    assert 30 <= backoff.wait(Remedy.BACK_OFF) <= 60
    backoff.succeeded()
    assert backoff.wait(Remedy.RETRY) <= 1
    assert len({Backoff().wait(Remedy.RETRY) for _ in range(100)}) > 90


@pytest.mark.soak
def test_two_hundred_thousand_endpoints_and_a_change_that_touches_a_tenth_of_them(
    database: Database, serve: ServerFactory, feed: FeedFactory
) -> None:
    fill(database, 200_000)
    server = serve(database)
    server.wait_metric(200_000, "pads_cdc_endpoints")
    client = feed(server)
    assert client.wait_ready(DEADLINE)
    snapshot = client.received_bytes
    database.execute(
        "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = 'plan_3'"
    )
    wait_exact(client, expected(database))
    assert client.resets == 1
    assert client.received_bytes < 1.3 * snapshot


def test_after_a_message_that_cannot_be_decoded_it_connects_again(
    either_feed: FeedFactory,
) -> None:
    def watch(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield b"\xff\xff\xff\xff"

    server = grpc.server(ThreadPoolExecutor(4))
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(watch)
    service = pb.DESCRIPTOR.services_by_name["EndpointFeedService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Watch": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = either_feed(f"127.0.0.1:{port}")
    wait_until(lambda: client.attempts > 1, "another attempt")
    client.close()
    server.stop(None).wait()
