"""A mapping of one's own with the optional columns: the limit's period, and more of the metadata."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pads_cdc_client.pb import gateway_endpoint_pb2 as pb

from cdc.mapping.mapping import COLUMNS, OPTIONAL_COLUMNS, load
from tests.plugins.server import fill
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import Gateway, GatewayFactory, ServerFactory

TABLES = """
CREATE TYPE plan_interval AS ENUM ('day', 'month', 'year');
ALTER TABLE pay_plans ADD usage_interval plan_interval;
ALTER TABLE portal_applications ADD name VARCHAR(40);
ALTER TABLE portal_application_settings ADD environment TEXT;
"""
COLUMNS_OF_TABLES = {
    "throughput_limit INT NOT NULL": "throughput_limit INT NOT NULL, usage_interval PLAN_INTERVAL",
    "account_id VARCHAR(10) REFERENCES accounts (id)": (
        "account_id VARCHAR(10) REFERENCES accounts (id), name VARCHAR(40)"
    ),
    "secret_key_required BOOLEAN\n": "secret_key_required BOOLEAN, environment TEXT\n",
}
IN_THE_QUERY = """capacity_limit,
    pay_plans.usage_interval AS capacity_limit_period,
    applications.name,
    settings.environment::TEXT
FROM portal_applications"""


def own_mapping(folder: Path) -> Path:
    """Make the mapping grove with three columns more."""
    shutil.copytree(ROOT / "sql/grove", folder)
    queries = (folder / "queries.sql").read_text()
    (folder / "queries.sql").write_text(
        queries.replace("capacity_limit\nFROM portal_applications", IN_THE_QUERY, 1)
    )
    schema = (folder / "schema.sql").read_text()
    for old, new in COLUMNS_OF_TABLES.items():
        assert old in schema
        schema = schema.replace(old, new)
    (folder / "schema.sql").write_text(schema)
    return folder


def test_what_a_schema_has_of_them_is_served(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    mapping = own_mapping(tmp_path / "mapping")
    assert load("grove").columns == COLUMNS
    wanted = (*COLUMNS, "capacity_limit_period", "name", "environment")
    assert load(str(mapping)).columns == wanted
    assert [name for name in wanted if name in OPTIONAL_COLUMNS] == list(wanted[len(COLUMNS) :])
    database.execute(TABLES)
    fill(database, 30, plans=3)
    client = gateway(serve(database, MAPPING=str(mapping)))

    def is_at(one: Gateway, endpoint_id: str, name: str, environment: str, period: int) -> bool:
        found = one.endpoint(endpoint_id)
        return found is not None and (
            (found.metadata.name, found.metadata.environment) == (name, environment)
            and found.rate_limiting.capacity_limit_period == period
        )

    def wait(endpoint_id: str, name: str, environment: str, period: int) -> None:
        client.wait(
            lambda one: is_at(one, endpoint_id, name, environment, period), f"{endpoint_id} with {name!r}"
        )

    wait("app_1", "", "", pb.CAPACITY_LIMIT_PERIOD_MONTHLY)  # NULL is a month
    database.execute("UPDATE pay_plans SET usage_interval = 'year' WHERE plan_type = 'plan_1'")  # by column
    wait("app_1", "", "", pb.CAPACITY_LIMIT_PERIOD_YEARLY)
    database.execute("UPDATE portal_applications SET name = 'Shop' WHERE id = 'app_1'")  # by id
    database.execute(
        "UPDATE portal_application_settings SET environment = 'production' WHERE application_id = 'app_1'"
    )
    wait("app_1", "Shop", "production", pb.CAPACITY_LIMIT_PERIOD_YEARLY)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    client.wait(lambda one: one.endpoint("app_1") is None, "the delete")
