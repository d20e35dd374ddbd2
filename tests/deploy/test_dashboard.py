"""The dashboard: every query returns data on a real Prometheus that scrapes a real server at work."""

from __future__ import annotations

import json
import runpy
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.test_pair import start_pair
from tests.plugins.server import fill, wait_equal, wait_until
from tests.support import ROOT
from tests.support.certificates import Authority, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.authorizer import AuthorizerFactory
    from tests.plugins.nats import Node
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory
    from tests.plugins.prometheus import Prometheus, PrometheusFactory
    from tests.plugins.server import GatewayFactory, RelayFactory, ServerFactory

DASHBOARD = ROOT / "deploy/grafana/pads-cdc.json"


def model() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def panels() -> list[dict[str, Any]]:
    return [panel for panel in model()["panels"] if panel["type"] != "row"]


def targets() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def as_asked(query: str) -> str:
    """Fill in what Grafana fills in."""
    return query.replace("$__rate_interval", "8s").replace("$job", "pads-cdc").replace("$instance", ".*")


@contextmanager
def workload(database: Database) -> Iterator[None]:
    """Change something of every kind, again and again."""
    ended = threading.Event()

    def work() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            one = {"id": f"app_{number % 500 + 1}", "new": f"new_{number}", "number": number}
            database.execute(
                "UPDATE pay_plans SET throughput_limit = %(number)s WHERE plan_type = 'plan_1'", one
            )
            database.execute("UPDATE accounts SET plan_type = plan_type WHERE id = 'acc_1'")
            database.execute("INSERT INTO portal_applications VALUES (%(new)s, 'acc_1')", one)
            database.execute("DELETE FROM portal_applications WHERE id = %(id)s", one)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def test_the_file_is_what_the_generator_makes() -> None:
    generator = runpy.run_path(str(DASHBOARD.with_name("generate.py")))
    assert DASHBOARD.read_text() == generator["text"](), "stale: run deploy/grafana/generate.py"


def test_it_can_be_imported_anywhere() -> None:
    """No uid, no id and no data source of the Grafana that it was made on."""
    dashboard = model()
    assert "uid" not in dashboard
    assert "id" not in dashboard
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "job",
        "instance",
    ]
    for panel in panels():
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_fill_the_grid_without_overlap_and_freshness_comes_first() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in model()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    rows = [panel["title"] for panel in model()["panels"] if panel["type"] == "row"]
    assert rows[0].startswith("Freshness")
    assert len({panel["id"] for panel in model()["panels"]}) == len(model()["panels"])
    assert all(panel["description"] for panel in panels())


def test_every_query_is_about_the_chosen_servers() -> None:
    for title, query in targets():
        assert query.count("{") == query.count('job=~"$job", instance=~"$instance"') > 0, title


@pytest.mark.slow
def test_every_query_of_every_panel_returns_data(
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    prometheus: PrometheusFactory,
    relay: RelayFactory,
    authorize: AuthorizerFactory,
    nats: Node,
    tmp_path: Path,
) -> None:
    cluster = cluster_factory({"max_slot_wal_keep_size": "1GB"})
    database = database_factory(cluster=cluster)
    fill(database, 500)
    server, standby = start_pair(serve, database, tmp_path, {"AUDIT_INTERVAL": "2s", "BROKER_URL": nats.url})
    client = gateway(server)
    wait_equal(client, database)
    pair = Authority().issue("server")
    encrypted = serve(
        database,
        SLOT_NAME="pads_cdc_2",
        STATE_FILE=str(tmp_path / "state2"),
        TLS_CERT_FILE=str(write_secret(tmp_path / "tls.crt", pair.certificate)),
        TLS_KEY_FILE=str(write_secret(tmp_path / "tls.key", pair.key)),
        AUTH_TOKENS_FILE=str(write_secret(tmp_path / "tokens", "gateway:" + "t" * 40)),
    )
    authorizer = authorize(server, RATE_LIMIT="local").wait_ready()
    scraping = prometheus(server, encrypted, standby, relay(BROKER_URL=nats.url), authorizer)
    wanting = dict.fromkeys(targets())

    def answered() -> bool:
        authorizer.check("/v1/app_7")
        for target in list(wanting):
            if scraping.query(as_asked(target[1])):
                del wanting[target]
        return not wanting

    with workload(database):
        try:
            wait_until(answered, "every query has an answer", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}; without one: {list(wanting)}") from None
        variables_have_values(scraping)
        [standing] = [query for title, query in targets() if title == "Not streaming"]
        [count] = scraping.query(as_asked(standing))
        assert count.value == 0, "who stands by is as it should be"
    wait_equal(client, database)


def variables_have_values(scraping: Prometheus) -> None:
    samples = scraping.query("pads_cdc_build_info")
    assert [sample.labels["job"] for sample in samples] == ["pads-cdc"] * 5
    assert len({sample.labels["instance"] for sample in samples}) == 5
