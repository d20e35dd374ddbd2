"""The HTTP side, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest

from cdc.freshness import Freshness
from cdc.lsn import Lsn
from cdc.observer import SlotSeen
from cdc.pair.pair import Pair
from cdc.store.store import Store
from server.addresses import ListenError
from server.observe import http
from server.observe.health import Health
from server.observe.metrics import Metrics
from server.observe.recent import Recent
from server.observe.status_page import StatusPage
from server.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Scene:
    """A server's parts behind the HTTP side, with a clock that stands still."""

    def __init__(self, max_staleness: float | None = None) -> None:
        self.now = 1000.0
        self.store = Store()
        self.freshness = Freshness(lambda: self.now)
        self.health = Health(self.store, self.freshness, max_staleness)
        self.metrics = Metrics(
            version="1.2.3",
            store=self.store,
            freshness=self.freshness,
            subscribers=Subscribers(),
            audit_interval=300.0,
        )
        self.page = StatusPage(
            version="1.2.3",
            slot_name="pads_cdc",
            store=self.store,
            freshness=self.freshness,
            subscribers=Subscribers(),
            health=self.health,
            recent=Recent(),
            pair=Pair(),
        )

    def load(self) -> None:
        """Have a complete map."""
        self.store.publish(self.store.prepare([("a", b"1")], 10), consistent=True)
        self.store.loaded()
        self.freshness.exact(self.now)

    def well(self) -> None:
        """Have everything as it should be."""
        self.load()
        self.health.mode("streaming")
        self.health.connected(connected=True)

    async def start(self, host: str = "127.0.0.1", port: int = 0, most: int = 20) -> http.HttpServer:
        return await http.start(
            host=host,
            port=port,
            most=most,
            registry=self.metrics.registry,
            health=self.health,
            page=self.page,
        )

    def serve(self, visit: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
        """Run ``visit`` against the server."""

        async def main() -> None:
            server = await self.start()
            try:
                async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
                    await visit(session)
            finally:
                await server.stop()

        asyncio.run(main())

    def codes(self, path: str) -> list[str]:
        """Codes of the reasons that ``path`` gives; empty for 200 ok."""
        found: list[str] = []

        async def visit(session: aiohttp.ClientSession) -> None:
            async with session.get(path) as response:
                if response.status == 200:
                    assert await response.text() == "ok"
                    return
                assert response.status == 503
                assert response.content_type == "application/json"
                found.extend(reason["code"] for reason in (await response.json())["reasons"])

        self.serve(visit)
        return found


def test_a_server_that_has_just_started_lives_but_is_not_ready() -> None:
    scene = Scene()
    assert scene.codes("/livez") == []
    assert scene.codes("/readyz") == ["not_ready"]
    assert scene.codes("/healthz") == ["not_ready", "disconnected"]


def test_all_is_well() -> None:
    scene = Scene()
    scene.well()
    assert [scene.codes(path) for path in ("/livez", "/readyz", "/healthz")] == [[], [], []]


def test_a_database_outage_is_no_gateway_outage() -> None:
    scene = Scene()
    scene.well()
    scene.health.reconnecting("refused", "connection refused at db:5432")
    scene.health.connected(connected=False)
    scene.now += 86_400
    assert scene.codes("/readyz") == []
    assert scene.codes("/healthz") == ["disconnected", "stale"]
    assert scene.health.reasons()[0].message == "connection refused at db:5432"


def test_a_query_server_that_does_not_replay_is_named() -> None:
    scene = Scene()
    scene.well()
    scene.freshness.reported(Lsn(0x2000), scene.now)
    scene.now += 40
    [alone] = scene.health.reasons()
    assert "query server" not in alone.message, "there is none beside the slot's"
    scene.freshness.replayed(Lsn(0x1800))
    [reason] = scene.health.reasons()
    assert "the query server has replayed up to 0/1800, 2048 bytes less" in reason.message
    scene.freshness.replayed(Lsn(0x2000))
    assert scene.health.reasons() == (alone,), "something else is slow"


def test_staleness_makes_it_unready_only_where_an_operator_says_so() -> None:
    scene = Scene(max_staleness=10)
    scene.well()
    scene.now += 10
    assert scene.codes("/readyz") == []
    scene.now += 1
    assert scene.codes("/readyz") == ["stale"]
    scene.now += 60
    assert scene.codes("/healthz") == ["stale"], "told once"


def test_an_empty_map_is_a_complete_one() -> None:
    scene = Scene()
    scene.store.publish(scene.store.prepare([], 10), consistent=True)
    scene.store.loaded()
    assert scene.codes("/readyz") == []


def test_a_part_of_a_map_is_not_ready() -> None:
    scene = Scene()
    scene.store.publish(scene.store.prepare([("a", b"1")], 10), consistent=False)
    assert scene.codes("/readyz") == ["not_ready"]


def test_conditions_come_and_go() -> None:
    scene = Scene()
    scene.well()
    scene.health.mode("polling")
    scene.health.slot(SlotSeen(0, 0, "lost", None, None))
    scene.health.trouble("reconcile_owed", "a reconcile is owed since 0/1")
    assert scene.codes("/healthz") == ["polling", "slot_lost", "reconcile_owed"]
    scene.health.mode("streaming")
    scene.health.slot(SlotSeen(0, 0, "reserved", None, None))
    scene.health.trouble("reconcile_owed", None)
    scene.health.trouble("never_there", None)
    assert scene.codes("/healthz") == []


def test_no_secret_is_served_even_if_a_message_holds_one() -> None:
    scene = Scene()
    scene.health.reconnecting("refused", "cannot reach postgresql://u:hunter22@h/db")

    async def visit(session: aiohttp.ClientSession) -> None:
        async with session.get("/healthz") as response:
            text = await response.text()
            assert "cannot reach" in text
            assert "hunter22" not in text

    scene.serve(visit)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text"),
    ],
)
def test_metrics_come_in_the_form_that_is_asked_for(accept: str, content_type: str) -> None:
    async def visit(session: aiohttp.ClientSession) -> None:
        async with session.get("/metrics", headers={"Accept": accept}) as response:
            assert response.status == 200
            assert response.content_type == content_type
            text = await response.text()
            assert "pads_cdc_endpoints 0.0" in text
            assert text.endswith("# EOF\n") == (content_type != "text/plain")
        async with session.get("/metrics?name[]=pads_cdc_endpoints") as response:
            assert "source_mode" not in await response.text()

    Scene().serve(visit)


def test_a_wrong_path_is_told_the_right_ones_and_nothing_is_cached() -> None:
    async def visit(session: aiohttp.ClientSession) -> None:
        async with session.get("/health") as response:
            assert response.status == 404
            text = await response.text()
            assert all(path in text for path in ("/metrics", "/livez", "/readyz", "/healthz"))
        async with session.post("/metrics") as response:
            assert response.status == 405
        async with session.get("/livez") as response:
            assert response.headers["Cache-Control"] == "no-store"

    Scene().serve(visit)


def test_a_taken_port_is_one_line_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            asyncio.run(Scene().start(port=port))
    assert str(caught.value) == (
        f"the metrics page cannot listen on 127.0.0.1:{port}: something else listens there; "
        "stop it, or choose another port with METRICS_PORT"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_one_line_too(host: str) -> None:
    with pytest.raises(ListenError, match="METRICS_HOST") as caught:
        asyncio.run(Scene().start(host=host))
    assert "\n" not in str(caught.value)


def test_the_port_is_free_again_after_the_stop() -> None:
    async def main() -> None:
        scene = Scene()
        first = await scene.start()
        # A connection that stays open, as those of Prometheus do.
        reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await asyncio.wait_for(first.stop(), timeout=3)
        second = await scene.start(port=first.port)
        await second.stop()
        writer.close()

    asyncio.run(main())
