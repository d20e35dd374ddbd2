"""The status page: its words for every state, and the real page of a real server in a real browser."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.freshness import Freshness
from cdc.observer import BatchSeen, ReconcileSeen, SlotSeen, TransactionSeen
from cdc.pair.pair import Pair
from cdc.store.store import Store
from cdc.units import Revision
from server.observe.health import Health
from server.observe.lag_history import LagHistory
from server.observe.recent import Recent
from server.observe.status_page import StatusPage, duration
from server.subscribers import Subscribers
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cdc.changes import Action
    from tests.plugins.chromium import Browser
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory

    Rows = dict[tuple[str, Action], int]

PHONE, DESK = (390, 844), (1180, 1240)


class Scene:
    """A page over real parts, with one clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        clock = lambda: self.now  # noqa: E731 (it reads the scene)
        self.store = Store()
        self.freshness = Freshness(clock)
        self.subscribers = Subscribers(clock, clock)
        self.recent = Recent(clock)
        self.pair = Pair(peered=True, clock=clock)
        self.health = Health(self.store, self.freshness, None, self.pair)
        self.page = StatusPage(
            version="1.2.3",
            slot_name="pads_cdc",
            store=self.store,
            freshness=self.freshness,
            subscribers=self.subscribers,
            health=self.health,
            recent=self.recent,
            pair=self.pair,
            wall=clock,
            monotonic=clock,
        )

    def well(self) -> None:
        self.store.publish(self.store.prepare([("a", b"1")], 10), consistent=True)
        self.store.loaded()
        for listener in (self.health, self.recent):
            listener.mode("streaming")
            listener.connected(connected=True)
        self.caught_up()

    def caught_up(self) -> None:
        """Hear of an end of WAL that everything is applied up to."""
        self.freshness.reported(100, self.now)
        self.freshness.applied(100)

    def words(self) -> str:
        """What the page says, without its markup, its style and its script."""
        text = re.sub(r"<(style|script|noscript)>.*?</\1>", "", self.page.render(), flags=re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_server_that_has_just_started_is_not_ready(scene: Scene) -> None:
    words = scene.words()
    assert "Not ready: no complete map has been loaded yet." in words
    assert "Nobody is subscribed." in words
    assert "✗ pads-cdc" in scene.page.render()


def test_idle_for_a_day_is_well(scene: Scene) -> None:
    scene.well()
    scene.now += 86_400
    scene.caught_up()
    words = scene.words()
    assert "The map is exact; nobody is subscribed." in words
    assert "Stalled" not in words
    assert "0 s since last known to be exact" in words


def test_a_stall_is_called_one_within_seconds_and_however_quiet(scene: Scene) -> None:
    scene.well()
    scene.now += 4
    assert "Stalled" not in scene.words()
    scene.now += 2
    assert "Stalled: gateways hold the map as it was 6.0 s ago." in scene.words()
    scene.now += 120
    assert "Stalled: gateways hold the map as it was 2 min ago." in scene.words()


def test_a_server_that_stands_by_is_well_and_says_whether_it_holds_the_map(scene: Scene) -> None:
    scene.pair.mirror()
    scene.caught_up()
    words = scene.words()
    assert "Standing by: the peer leads, and its map is mirrored here." in words
    assert "this server stands by both hold the same map yes" in words
    assert "source read by the peer" in words
    assert "Not ready" not in words
    scene.pair.peer_lost()
    words = scene.words()
    assert "Standing by, but there is something to look at." in words
    assert "both hold the same map no" in words


def test_who_leads_says_what_its_standby_lacks(scene: Scene) -> None:
    scene.well()
    scene.pair.lead()
    standby = scene.pair.join(lambda: None)
    scene.pair.confirmable(100, exact=True)
    standby.acknowledge(100)
    scene.pair.confirmable(100, exact=True)
    scene.pair.confirmable(1_100, exact=True)
    words = scene.words()
    assert "this server leads both hold the same map yes its standby lacks 1000 Bytes of WAL" in words
    scene.pair.leave(standby)
    assert "both hold the same map no" in scene.words()


def test_polling_is_no_stall_until_it_fails_too(scene: Scene) -> None:
    scene.well()
    scene.health.mode("polling")
    scene.now += 8
    assert "No usable slot: the whole map is re-read every few seconds." in scene.words()
    scene.now += 60
    assert "Stalled" in scene.words()


def test_subscribers_are_counted_and_the_latest_comes_first(scene: Scene) -> None:
    scene.well()
    quick = scene.subscribers.add("ipv4:10.0.0.1:1", "gateway_endpoints")
    scene.subscribers.add("ipv4:10.0.0.2:2", "endpoint_feed", "gateway<b>eu")
    scene.subscribers.published(7)
    quick.revision = Revision(7)
    scene.now += 3
    scene.caught_up()
    words = scene.words()
    assert "The map is exact; 1 of 2 subscribers are behind." in words
    assert "1 of 2 subscribers have what we have" in words
    assert words.index("10.0.0.2") < words.index("10.0.0.1")
    assert "gateway&lt;b&gt;eu at ipv4:10.0.0.2:2" in words, "a client's name is text, whatever is in it"


def test_a_crowd_of_subscribers_leaves_a_page_that_can_be_read(scene: Scene) -> None:
    scene.well()
    for number in range(2000):
        scene.subscribers.add(f"ipv4:10.0.0.1:{number}", "gateway_endpoints")
    assert "and 1950 more, none of them further behind" in scene.words()
    assert len(scene.page.render()) < 50_000


def test_recent_transactions_say_what_how_much_and_how_fast(scene: Scene) -> None:
    scene.well()
    rows: Rows = {("pay_plans", "update"): 1, ("accounts", "insert"): 12_000}
    busy = TransactionSeen(771, 0x16B374D848, 998.0, 998.004, rows, 2500)
    idle = TransactionSeen(772, 0x16B374D849, 999.0, 999.0, {}, 0)
    scene.recent.batch(BatchSeen((busy, idle), 2500, 3, 1, 0, 0.1, 0.0, 4))
    words = scene.words()
    assert "The last change was committed 2.0 s ago." in words
    assert "00:16:38 771 16/B374D848 accounts: 12,000 inserts, pay_plans: 1 update 2,500 4 ms" in words
    assert " 772 " not in words, "a transaction without rows of ours is no news"


def test_only_the_newest_transactions_are_kept(scene: Scene) -> None:
    scene.well()
    rows: Rows = {("accounts", "update"): 1}
    for xid in range(1, 1001):
        scene.recent.batch(
            BatchSeen((TransactionSeen(xid, xid, 998.0, 998.0, rows, 1),), 1, 1, 0, 0, 0, 0, xid)
        )
    kept = [one.xid for one in scene.recent.lately().transactions]
    assert kept == list(range(1000, 980, -1))


def test_the_slot_in_each_of_its_states(scene: Scene) -> None:
    assert "not asked yet" in scene.words()
    scene.recent.slot(SlotSeen(3 * 2**20, None, "reserved", 5, 4711))
    words = scene.words()
    assert "wal_status reserved" in words
    assert "holds back 3.0 MiB of WAL" in words
    assert "safe for another no limit is set" in words
    assert "read by process 4711" in words
    scene.recent.slot(SlotSeen(3, 0, "lost", 5, None))
    words = scene.words()
    assert "wal_status lost" in words
    assert "read by process nobody" in words
    scene.recent.slot(SlotSeen(None, None, None, None, None))
    assert "there is no such slot" in scene.words()


def test_an_audit_that_found_something_stays_to_be_seen(scene: Scene) -> None:
    scene.recent.reconciled(ReconcileSeen("audit", 4000, 2, 1, 0.5))
    scene.now += 60
    scene.recent.reconciled(ReconcileSeen("large", 4000, 0, 0, 1.5))
    words = scene.words()
    assert "last audit 60 s ago, audit: 4,000 endpoints, 3 differed , 500 ms" in words
    assert "last of any kind 0 s ago, large: 4,000 endpoints, none differed, 1.5 s" in words


def test_no_secret_and_no_markup_gets_onto_the_page(scene: Scene) -> None:
    scene.well()
    scene.health.trouble("query", "cannot reach postgresql://u:hunter22@h/db <script>alert(1)</script>")
    page = scene.page.render()
    assert "hunter22" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "something to look at" in page


def test_the_plot_keeps_the_worst_of_an_hour_and_forgets_what_is_older() -> None:
    now = 5.0
    history = LagHistory(lambda: now)
    assert history.line(720, 120, 10) == ""
    for now in range(5, 4000):
        history.note(90.0 if now == 333 else 40.0 if now == 2005 else 0.0)
    assert history.worst == 40.0
    points = history.line(720, 120, 80).split()
    assert len(points) <= 722
    assert sum(point.endswith(",60.0") for point in points) == 1
    assert sum(point.endswith(",120.0") for point in points) == len(points) - 1
    places = [float(point.partition(",")[0]) for point in points]
    assert places == sorted(places)
    assert places[-1] == 720.0


def test_the_plot_of_a_young_server_is_not_a_dot() -> None:
    now = 1000.0
    history = LagHistory(lambda: now)
    history.note(0.0)
    now = 1150.0
    history.note(5.0)
    assert history.span == 300.0
    assert history.line(720, 120, 10) == "360.0,120.0 720.0,60.0 720.0,60.0"
    now = 9000.0
    assert history.span == 3600.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "0 s"),
        (0.0, "0 s"),
        (0.0042, "4 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (7169.0, "119 min"),
        (7171.0, "2 h 0 min"),
        (20_000.0, "5 h 33 min"),
        (400_000.0, "4 d"),
    ],
)
def test_durations_are_said_shortly_and_rounded_into_the_right_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- in a browser


class Rig:
    """A server on a cluster of its own, a gateway, and some changes; and the page of it."""

    def __init__(self, database: Database, server: Server, client: Gateway, browser: Browser) -> None:
        self.database, self.server, self.client, self.browser = database, server, client, browser
        fill(database, 2000)
        wait_equal(client, database)
        for number in range(6):
            database.execute(
                "UPDATE portal_application_settings SET secret_key = 'key_x' WHERE id = %s", (number + 1,)
            )
        database.execute("UPDATE pay_plans SET throughput_limit = 7 WHERE plan_type = 'plan_3'")
        database.execute("DELETE FROM portal_applications WHERE id IN ('app_7', 'app_14')")
        wait_equal(client, database)

    def open(self) -> None:
        self.browser.look(*DESK, scheme="light")
        self.browser.open(f"http://127.0.0.1:{self.server.http}/")

    def frozen(self) -> AbstractContextManager[None]:
        return self.database.cluster.frozen()


@pytest.fixture
def rig(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    browser: Browser,
) -> Rig:
    database = database_factory(cluster=cluster_factory())
    server = serve(database)
    return Rig(database, server, gateway(server), browser)


def keep(browser: Browser, name: str, tmp_path: Path) -> None:
    """Take a picture; SCREENSHOTS names a folder for those who want to look."""
    browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png")


def background(browser: Browser) -> str:
    return str(browser.evaluate("getComputedStyle(document.body).backgroundColor"))


def fits(browser: Browser) -> bool:
    """Whether nothing has to be scrolled sideways, tables apart, which scroll by themselves."""
    return bool(
        browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    )


@pytest.mark.slow
def test_a_healthy_server_in_a_browser_on_a_desk_and_on_a_phone(rig: Rig, tmp_path: Path) -> None:
    rig.open()
    rig.browser.wait_text(
        "The map is exact, and every subscriber has all of it.",
        "1 of 1",
        "1,998",
        "streaming",
        "reserved",
        "pay_plans: 1 update",
        "portal_applications: 2 deletes",
    )
    assert rig.browser.evaluate("document.title") == "✓ pads-cdc"
    assert rig.browser.evaluate("document.querySelector('polyline').getAttribute('points').length") > 10
    assert "key_" not in rig.browser.evaluate("document.documentElement.outerHTML")
    keep(rig.browser, "healthy", tmp_path)
    light = background(rig.browser)
    rig.browser.look(*PHONE, scheme="dark")
    assert background(rig.browser) != light
    assert fits(rig.browser)
    keep(rig.browser, "healthy-phone-dark", tmp_path)
    assert rig.browser.complaints == []


@pytest.mark.slow
def test_a_frozen_database_is_seen_as_a_stall_without_a_reload_and_so_is_its_end(
    rig: Rig, tmp_path: Path
) -> None:
    rig.open()
    rig.browser.wait_text("The map is exact")
    with rig.frozen():
        rig.browser.wait_text("Stalled: gateways hold the map as it was")
        assert rig.browser.evaluate("document.title") == "✗ pads-cdc"
        wait_until(lambda: "as it was 1" in rig.browser.text(), "the stall grows to 10 s", 60)
        keep(rig.browser, "stalled", tmp_path)
        rig.browser.look(*PHONE, scheme="dark")
        assert fits(rig.browser)
        keep(rig.browser, "stalled-phone-dark", tmp_path)
    rig.browser.wait_text("The map is exact", without="Stalled")


@pytest.mark.slow
def test_a_slot_that_is_gone_and_cannot_be_made_says_who_is_in_the_way(rig: Rig, tmp_path: Path) -> None:
    rig.open()
    rig.browser.wait_text("The map is exact")
    session = rig.database.connect()
    session.autocommit = False
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")

        def drop() -> bool:
            try:
                rig.database.rows(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid > 0"
                )
                rig.database.rows("SELECT pg_drop_replication_slot('pads_cdc')")
            except psycopg2.errors.ObjectInUse:
                return False
            return True

        wait_until(drop, "the slot is dropped")
        rig.browser.wait_text("No usable slot", "polling", "the slot is created once these end")
        keep(rig.browser, "lost-slot", tmp_path)
        rig.database.execute("DELETE FROM portal_applications WHERE id = 'app_21'")
        rig.browser.wait_text("1,997")
    session.rollback()
    rig.browser.wait_text("The map is exact", "streaming", without="No usable slot")


@pytest.mark.slow
def test_a_server_that_has_gone_is_not_shown_as_well(rig: Rig) -> None:
    rig.open()
    rig.browser.wait_text("The map is exact")
    rig.server.stop()
    rig.browser.wait_text("This server does not answer: what is shown is old.")
    assert rig.browser.evaluate("document.title") == "? pads-cdc"
