"""Changes that never come: of tables that are not in the WAL, or have no replica identity.

As soon as a table is like that, it is said by its name, and the mapping is polled until that is over.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

_COLUMNS = "application_id, secret_key, secret_key_required"
_PARTITIONED = """
DROP TABLE portal_application_settings;
CREATE TABLE portal_application_settings (
    id SERIAL, application_id VARCHAR(24) NOT NULL, secret_key VARCHAR(64), secret_key_required BOOLEAN
) PARTITION BY RANGE (application_id);
CREATE TABLE settings_before PARTITION OF portal_application_settings FOR VALUES FROM (MINVALUE) TO ('x');
ALTER TABLE settings_before ADD PRIMARY KEY (id);
"""
_ATTACH = "ALTER TABLE portal_application_settings ATTACH PARTITION settings_x FOR VALUES FROM ('x') TO ('y')"
_PART = "CREATE {} settings_x (id INT NOT NULL, application_id VARCHAR(24) NOT NULL, secret_key VARCHAR(64),"
_PART += " secret_key_required BOOLEAN"
_SWAPPED = """
CREATE {} fresh (LIKE portal_application_settings {});
INSERT INTO fresh SELECT * FROM portal_application_settings;
ALTER TABLE portal_application_settings RENAME TO away;
ALTER TABLE fresh RENAME TO portal_application_settings
"""


@dataclass(frozen=True)
class Way:
    """How changes come to be missing."""

    lose: str
    mend: str
    table: str = "public.portal_application_settings"
    write: str = "portal_application_settings"
    prepare: str = ""


WAYS = {
    "no replica identity": Way(
        "ALTER TABLE portal_application_settings REPLICA IDENTITY NOTHING",
        "ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT",
    ),
    "unlogged": Way(
        "ALTER TABLE portal_application_settings SET UNLOGGED",
        "ALTER TABLE portal_application_settings SET LOGGED",
    ),
    "an unlogged one, by renames": Way(
        _SWAPPED.format("UNLOGGED TABLE", "INCLUDING ALL"),
        "ALTER TABLE portal_application_settings SET LOGGED",
    ),
    "one without a key, by renames": Way(
        _SWAPPED.format("TABLE", ""),
        "ALTER TABLE portal_application_settings ADD PRIMARY KEY (id)",
    ),
    "an unlogged partition": Way(
        f"{_PART.format('UNLOGGED TABLE')}, PRIMARY KEY (id)); {_ATTACH}",
        "ALTER TABLE portal_application_settings DETACH PARTITION settings_x; DROP TABLE settings_x",
        "public.settings_x",
        "settings_x",
        _PARTITIONED,
    ),
    "no primary key any more": Way(
        "ALTER TABLE portal_application_settings DROP CONSTRAINT portal_application_settings_pkey",
        "ALTER TABLE portal_application_settings ADD PRIMARY KEY (id)",
    ),
    "the identity's index is gone": Way(
        "ALTER TABLE portal_application_settings"
        " DROP CONSTRAINT portal_application_settings_application_id_key",
        "ALTER TABLE portal_application_settings REPLICA IDENTITY DEFAULT",
        prepare=(
            "ALTER TABLE portal_application_settings"
            " REPLICA IDENTITY USING INDEX portal_application_settings_application_id_key"
        ),
    ),
}
OFTEN = ("an unlogged one, by renames",)


def _reasons(server: Server) -> dict[str, str]:
    status, page = server.get("/healthz")
    return {} if status == 200 else {one["code"]: one["message"] for one in json.loads(page)["reasons"]}


def _said_and_polled(database: Database, serve: ServerFactory, gateway: GatewayFactory, way: Way) -> None:
    if way.prepare:
        database.execute(way.prepare)
    fill(database, 40)
    database.publish()
    server = serve(database, AUDIT_INTERVAL="1h").wait_ready()
    clients = [gateway(server), gateway(server, refetch=True)]
    wait_until(lambda: not _reasons(server), "healthy")
    database.execute(way.lose)
    wait_until(lambda: way.table in _reasons(server).get("lossy", ""), "the table is named")
    database.execute("INSERT INTO portal_applications VALUES ('x_1')")
    for change in (
        f"INSERT INTO {way.write} (id, {_COLUMNS}) VALUES (990, 'x_1', 'new', true)",
        f"DELETE FROM {way.write} WHERE application_id = 'x_1'; UPDATE {way.write} SET secret_key = 'newer'",
    ):
        database.execute(change)
        for client in clients:
            wait_equal(client, database)
    assert _reasons(server).keys() >= {"lossy", "polling"}
    assert server.metric("pads_cdc_replication_lag_seconds") > 0, "between polls nothing is known to be exact"
    database.execute(way.mend)
    wait_until(lambda: not _reasons(server), "healthy again")
    numbers = count()

    def streamed() -> bool:
        """Return whether a change arrives without a poll. The stream may start again after the mend."""
        polls = server.metric("pads_cdc_reconcile_total", reason="polling")
        database.execute(
            "UPDATE portal_application_settings SET secret_key = %s", (f"streamed {next(numbers)}",)
        )
        for client in clients:
            wait_equal(client, database)
        return server.metric("pads_cdc_reconcile_total", reason="polling") == polls

    wait_until(streamed, "no poll brings it")
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1
    assert server.metric("pads_cdc_audit_runs_total") == 0
    assert server.metric("pads_cdc_decode_errors_total") == 0


@pytest.mark.only_with("wal2json")
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in OFTEN else pytest.mark.soak) for way in WAYS]
)
def test_what_the_stream_lacks_is_said_and_polled(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, way: str
) -> None:
    _said_and_polled(database, serve, gateway, WAYS[way])


@pytest.mark.soak
@pytest.mark.only_with("pgoutput")
@pytest.mark.parametrize("way", ["an unlogged partition"])
def test_what_a_publication_lets_through_in_vain_is_said_and_polled(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, way: str
) -> None:
    """Postgres refuses to publish an unlogged table by its name, and not as a partition of another one."""
    _said_and_polled(database, serve, gateway, WAYS[way])


@pytest.mark.both_plugins
def test_a_temporary_table_that_inherits_is_no_loss(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """It is not in the WAL either, but no other session reads its rows."""
    fill(database, 40)
    server = serve(database, AUDIT_INTERVAL="1h").wait_ready()
    client = gateway(server)
    wait_until(lambda: not _reasons(server), "healthy")
    with closing(database.connect()) as session, session.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE mine () INHERITS (portal_applications)")
        cursor.execute("INSERT INTO mine VALUES ('nobody_s')")
        reads = server.metric("pads_cdc_reconcile_total")
        database.execute("ALTER TABLE pay_plans ADD COLUMN note TEXT")
        server.wait_metric(reads + 1, "pads_cdc_reconcile_total")  # the definitions have been looked at
        wait_equal(client, database)
        assert not _reasons(server)
        assert server.metric("pads_cdc_source_mode", mode="streaming") == 1


@pytest.mark.only_with("wal2json")
def test_a_partition_on_another_server_is_said_and_the_remedy_works(
    database: Database, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """Its rows are in another log, and the code that reads them is not ours."""
    database.execute(_PARTITIONED)
    fill(database, 40)
    server = serve(database).wait_ready()
    client = gateway(server)
    wait_equal(client, database)
    before = dict(client.map)
    database.execute(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;"
        "CREATE FOREIGN TABLE settings_x PARTITION OF portal_application_settings"
        " FOR VALUES FROM ('x') TO ('y') SERVER far"
    )
    database.execute("UPDATE pay_plans SET throughput_limit = 77")
    wait_until(lambda: "detach that partition" in _reasons(server).get("query", ""), "the remedy")
    lossy = "changes of public.settings_x, which are not in the WAL"  # not only those that need an identity
    wait_until(lambda: lossy in _reasons(server).get("lossy", ""), "the partition's name")
    assert client.map == before
    database.execute("ALTER TABLE portal_application_settings DETACH PARTITION settings_x")
    wait_equal(client, database)
    wait_until(lambda: not _reasons(server), "healthy again")
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1
