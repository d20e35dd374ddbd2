"""`serve` that is started while Postgres starts up or recovers: it waits, whatever language it is told in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.plugins.server import DEADLINE, fill, wait_equal, wait_until
from tests.support.starting_up import starting_up

if TYPE_CHECKING:
    from tests.plugins.languages import SpeakingFactory
    from tests.plugins.postgres import DatabaseFactory
    from tests.plugins.server import GatewayFactory, ServerFactory
    from tests.support.cluster import Cluster


def refusals(cluster: Cluster) -> int:
    """Return how often the server has said that it is not ready."""
    return (cluster.folder / "postgres.log").read_text().count("57P03")


@pytest.mark.parametrize("language", ["de", pytest.param("fr", marks=pytest.mark.soak)])
def test_serve_waits_for_a_server_that_starts_up(
    speaking: SpeakingFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    language: str,
) -> None:
    cluster = speaking(language, {"log_error_verbosity": "verbose"})
    database = database_factory(cluster=cluster)
    fill(database, 50)

    def refuses() -> bool:
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(database.url()).close()
        return refusals(cluster) > 0

    with ThreadPoolExecutor(1) as other:
        with starting_up(cluster):
            wait_until(refuses, "57P03")
            before = refusals(cluster)
            served = other.submit(serve, database)
            wait_until(lambda: refusals(cluster) > before + 2, "serve is refused, and tries again")
        server = served.result(DEADLINE)
    client = gateway(server.wait_ready())
    database.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
    wait_equal(client, database)
    assert server.stop() == 0
